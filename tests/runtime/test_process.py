"""What ends a process, or copies it, while a Runtime is in use: no hang, no abort."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SECONDS = 120


def run(base: Path, script: str) -> subprocess.CompletedProcess[str]:
    """A program that has `rt`, a Runtime of two threads that was used."""
    head = f"""
        import os, sys, threading, time
        from dqrelo_gguf import InputError, Runtime
        rt = Runtime({str(base)!r}, n_threads=2)
        rt.logits([1, 5, 6])
    """
    program = textwrap.dedent(head) + textwrap.dedent(script)
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS, check=False, env=env
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_is_refused_and_ends(base: Path) -> None:
    done = run(
        base,
        """
        pid = os.fork()
        if pid == 0:
            calls = {
                "logits": lambda: rt.logits([1]),
                "generate": lambda: rt.generate("a"),
                "tokenize": lambda: rt.tokenize("a"),
                "detokenize": lambda: rt.detokenize([1]),
                "pieces": lambda: rt.pieces([1]),
                "loglikelihood": lambda: rt.loglikelihood([("a", "b")]),
                "load_delta": lambda: rt.load_delta(rt.path),
            }
            for name, call in calls.items():
                try:
                    call()
                    print("no error:", name)
                except InputError as e:
                    print(e)
            rt.close()
            sys.exit(7)
        print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        print("parent", rt.logits([1]).shape[0])
        """,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if "made before a fork" in line] == lines[:7]
    assert lines[7:] == ["child 7", "parent 1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_of_a_process_with_a_running_call_ends(base: Path) -> None:
    done = run(
        base,
        """
        running = threading.Thread(target=lambda: rt.generate(["a"] * 8, max_tokens=400))
        running.start()
        time.sleep(0.05)
        pid = os.fork()
        if pid == 0:
            sys.exit(7)
        print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        running.join()
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "child 7\n"


@pytest.mark.parametrize("call", ["rt.generate(['a'] * 8, max_tokens=400)", "rt.logits([[1] * 400] * 8)"])
@pytest.mark.parametrize("pause", [0.0, 0.02, 0.2])
def test_a_daemon_thread_in_a_call_ends_with_the_interpreter(base: Path, call: str, pause: float) -> None:
    done = run(
        base,
        f"""
        def work():
            while True:
                {call}
        threading.Thread(target=work, daemon=True).start()
        time.sleep({pause})
        """,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "terminate" not in done.stderr


def test_a_call_after_the_interpreter_began_to_end_is_refused(base: Path) -> None:
    done = run(
        base,
        """
        import atexit
        from dqrelo_gguf.runtime import process

        def late():
            try:
                rt.logits([1])
            except InputError as e:
                print(e)

        atexit.unregister(process.end_calls)
        atexit.register(late)
        atexit.register(process.end_calls)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "was stopped: the interpreter ends" in done.stdout

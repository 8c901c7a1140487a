"""cli.run: how every command ends. _pin: which gguf is imported."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.cli import run
from dqrelo_gguf.errors import DiskFullError, FormatError, raise_os_error


def raising(error: BaseException) -> Callable[[], int | None]:
    def command() -> int | None:
        raise error

    return command


def test_exit_codes() -> None:
    assert run(lambda: None, "prog") == 0
    assert run(lambda: 0, "prog") == 0
    assert run(lambda: 3, "prog") == 3


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FormatError("a.gguf: bad"), "prog: error: a.gguf: bad\n"),
        (FormatError("two\nlines"), "prog: error: two lines\n"),
        (FormatError("tensor '\x1b[31m'"), "prog: error: tensor '?[31m'\n"),
        (KeyboardInterrupt(), "prog: error: interrupted, no output was left behind\n"),
        (MemoryError(), "prog: error: out of memory\n"),
        (OSError(errno.ENOSPC, "No space left", "x.gguf"), "prog: error: x.gguf: the disk is full\n"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "prog: error: x: permission denied\n"),
    ],
)
def test_an_error_is_one_line(error: BaseException, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(error), "prog") == 1
    assert capsys.readouterr() == ("", line)


def test_our_own_bugs_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()), "prog")


def test_sigterm_unwinds_like_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    cleaned = []

    def command() -> int | None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert run(command, "prog") == 1
    assert cleaned == [True]
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_closed_pipe_is_no_error(small_delta: Path) -> None:
    command = f"{sys.executable} -m dqrelo_gguf.cli.inspect {small_delta} --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{", "")


def test_system_errors_get_their_class() -> None:
    with pytest.raises(DiskFullError, match="x: the disk is full"):
        raise_os_error(OSError(errno.EDQUOT, "Quota exceeded"), "x")


# --- the pin ---


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, check=True
    )


def test_the_pinned_gguf_wins_over_an_installed_one(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "__init__.py").write_text("raise SystemExit('the wrong gguf')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run_python("from dqrelo_gguf._pin import gguf; print(gguf.__file__)", PYTHONPATH=path)
    assert done.stdout.strip() == gguf.__file__


def test_a_gguf_imported_before_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "__init__.py").write_text("")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code = (
        "import gguf\n"
        "from dqrelo_gguf.errors import PinError\n"
        "try: import dqrelo_gguf._pin\n"
        "except PinError as e: print(e)"
    )
    done = run_python(code, PYTHONPATH=path)
    assert done.stdout.startswith(f"gguf: already imported from {tmp_path / 'gguf'}, expected the pinned copy")


def test_public_names_are_importable() -> None:
    import dqrelo_gguf

    for name in dqrelo_gguf.__all__:
        assert getattr(dqrelo_gguf, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = dqrelo_gguf.nothing

"""dqrelo-convert as a process: its report, its options, its end by a signal, its memory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.models import (
    convert_hf,
    pico_gguf,
    pico_tuned,
    pico_tuned_gguf,
    rewrite_gguf,
    save_model,
    tune,
)
from tests.support.sharded import served
from tests.support.tiny_architectures import ARCHITECTURES, write_base, write_tuned


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "ft.dq.gguf"


def test_dry_run_says_what_a_run_writes(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(out), "--json", "-"]
    assert main([*arguments, "--dry-run"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert dry["dry_run"]
    assert dry["estimate"]["memory_bytes"] > 0
    assert dry["estimate"]["seconds"] > 0
    assert main(arguments) == 0
    wet = json.loads(capsys.readouterr().out)
    for key in ("ratio", "n_bytes", "n_file_bytes", "identical", "excluded"):
        assert dry[key] == wet[key]
    assert wet["n_file_bytes"] == out.stat().st_size
    keep = ("name", "ne", "rank", "n_planes", "n_bytes")
    assert [{k: w[k] for k in keep} for w in dry["weights"]] == [{k: w[k] for k in keep} for w in wet["weights"]]


def test_report_table_and_metadata_agree(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    assert main([str(pico_gguf("llama")), str(pico_tuned("llama")), "-o", str(out), "--json", str(report)]) == 0
    shown = capsys.readouterr()
    assert "blk.*.attn_q" in shown.out
    assert f"{DeltaReader(out).ratio:.5f}" in shown.out
    assert "converting: 100 %" in shown.err  # The lines are plain, because stderr is no terminal.
    listed = {w["name"]: w for w in json.loads(report.read_text())["weights"]}
    for w in DeltaReader(out).weights:
        assert listed[w.name]["error_delta"] == pytest.approx(w.error_delta, rel=1e-6)
        assert listed[w.name]["error_weight"] == pytest.approx(w.error_weight, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratio", "x"], "--ratio x: not a ratio"),
        (["--ratio", "1/40", "--method", "paper"], "--ratio 1/40: the sign bits, scales and vectors alone cost"),
        (["--ratio", "1/4000"], "--ratio 0.00025: norms, biases and the smallest factors alone cost"),
        (["--method", "best", "--rank", "4"], "--rank: cannot go with --method best, belongs to --method paper, svd"),
        (["--method", "best", "--svd", "exact"], "--svd: cannot go with --method best"),
        (["--method", "bitdelta", "--ratio", "1/16"], "--ratio: --method bitdelta has one size"),
        (["--method", "svd", "--rank", "0"], "--rank 0: leaves nothing where there are no sign planes"),
        (
            ["--method", "svd", "--ratio", "1/4000"],
            "--ratio 0.00025: the vectors and factors of the lowest rank alone cost",
        ),
        (["--method", "lora", "--ratio", "1/4000"], "--ratio 0.00025: factors of the lowest rank alone cost"),
        (["--threads", "0"], "--threads 0: must be at least 1"),
        (["--include", "("], "--include (: not a regular expression"),
        (["--include", "q_proj"], "--include, --exclude: none of 21 weights is left to convert"),
        (["--exclude", "."], "--include, --exclude: none of 21 weights is left to convert"),
        (["--rank", "-1"], "--rank -1: must not be negative"),
        (["--min-cosine", "nan"], "--min-cosine nan: must lie between -1 and 1"),
        (["--min-cosine", "1.5"], "--min-cosine 1.5: must lie between -1 and 1"),
    ],
)
def test_bad_options_are_one_line(
    arguments: list[str], message: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = pico_gguf("llama"), pico_tuned_gguf("llama")
    capsys.readouterr()  # of making them
    assert main([str(base), str(tuned), "-o", str(out), *arguments]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("checking:", "measuring:"))]
    assert len(error) == 1
    assert error[0].startswith(f"dqrelo-convert: error: {message}")
    assert not out.exists()


def test_ratio_and_rank_are_a_usage_error(out: Path) -> None:
    with pytest.raises(SystemExit) as e:
        main(["b.gguf", "t", "-o", str(out), "--ratio", "1/8", "--rank", "4"])
    assert e.value.code == 2


def test_help_needs_neither_torch_nor_numpy() -> None:
    code = "import sys; from dqrelo_gguf.cli.convert import _parser; _parser().format_help(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "numpy", "transformers", "gguf"} & set(modules)


def _holds_bytes(folder: Path) -> bool:
    """Whether a file in the folder has bytes, unlike the empty one that comes and goes when the outputs are checked before the work."""
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > 0:
                return True
    return False


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_killed_command_leaves_nothing(sign: signal.Signals, tmp_path: Path, out: Path) -> None:
    """A real process, stopped while it encodes a weight large enough to be met at work."""
    rng = np.random.default_rng(4)
    w = rng.standard_normal((4096, 2048)).astype(np.float32)
    base = rewrite_gguf(pico_gguf("llama"), tmp_path / "b.gguf", {"w.weight": w})
    tuned = rewrite_gguf(
        base, tmp_path / "t.gguf", {"w.weight": w + 0.1 * rng.standard_normal(w.shape).astype(np.float32)}
    )
    # A shell's background jobs ignore SIGINT, and their children with them.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from dqrelo_gguf.cli.convert import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, str(base), str(tuned), "-o", str(out), "--rank", "600"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        deadline = time.monotonic() + 60
        while not _holds_bytes(out.parent) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "the conversion ended too soon"
        assert time.monotonic() < deadline, "nothing was written within a minute"
        process.send_signal(sign)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert err.splitlines()[-1] == "dqrelo-convert: error: interrupted, no output was left behind"
    assert "Traceback" not in err
    assert list(out.parent.iterdir()) == []


# Runs a conversion and prints by how many bytes its resident memory rose over what it was with every library loaded: all of it, and what is its
# own, without the pages of mapped files, which the kernel takes back at need.
_MEMORY_PROBE = """
import sys
import termios
import threading
from dqrelo_gguf.convert.job import Job, convert

convert(Job(*sys.argv[4:6], sys.argv[3] + ".warm"))  # a tiny one, so that every library is there

def status(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))

open("/proc/self/clear_refs", "w").write("5")  # sets the peak to the present size
before = status("VmRSS:"), status("RssAnon:")
own, is_over = [before[1]], threading.Event()

def watch():
    while not is_over.wait(0.002):
        own.append(status("RssAnon:"))

watcher = threading.Thread(target=watch)
watcher.start()
convert(Job(*sys.argv[1:4], stream=True))
is_over.set()
watcher.join()
print(status("VmHWM:") - before[0], max(own) - before[1])
"""


def _peak_bytes(base: Path, tuned: Path | str, out: Path) -> tuple[int, int]:
    """By how much a conversion's memory rises: all of it, and its own."""
    paths = base, tuned, out, pico_gguf("llama"), pico_tuned("llama")
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY_PROBE, *map(str, paths)],
        check=True,
        capture_output=True,
        text=True,
        # Without, MKL keeps buffers for each thread, 20 to 45 MiB in all with two threads, and how many depends on which thread comes first.
        env={**os.environ, "DQRELO_CACHE": str(out.parent / "cache"), "MKL_DISABLE_FAST_MM": "1"},
    )
    whole, own = map(int, done.stdout.split())
    return whole, own


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("source", ["directory", "stream", pytest.param("gguf", marks=pytest.mark.slow)])
def test_peak_memory(source: str, tmp_path: Path, out: Path) -> None:
    """At most six times the largest weight in float32, on a model where one weight dominates, and what libraries keep."""
    n_vocab, n_in = 60_000, 256
    directory, base, tuned = _dominated_model(tmp_path, n_vocab, n_in)
    with served(directory) if source == "stream" else contextlib.nullcontext(directory) as target:
        rise, _ = _peak_bytes(base, tuned if source == "gguf" else target, out)
    libraries = 48 << 20  # With the pages of their own files.
    assert rise <= 6 * 4 * n_vocab * n_in + libraries


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("source", ["directory", "stream"])
def test_peak_memory_of_experts(source: str, tmp_path: Path, out: Path) -> None:
    """The same for its own memory, where the largest weights are stacks of experts, all in mapped files or elsewhere."""
    n_expert, n_ff, n_embd = 64, 512, 256
    sizes = {"num_local_experts": n_expert, "intermediate_size": n_ff, "hidden_size": n_embd, "num_hidden_layers": 1}
    plain = write_base(ARCHITECTURES["mixtral"], tmp_path / "plain", **sizes)
    tuned = write_tuned(plain, tmp_path / "tuned", seed=1)
    base = convert_hf(plain, tmp_path / "base.gguf")
    with served(tuned) if source == "stream" else contextlib.nullcontext(tuned) as target:
        _, rise = _peak_bytes(base, target, out)
    n_elements = n_expert * n_ff * n_embd
    ahead = 2 * n_elements if source == "stream" else 0  # Of so small a stack all is read ahead.
    # What they keep does not grow with a weight. It is 0 to 20 MiB, by the processor and by which thread comes first; a fourth of
    # such weights would be 32 MiB.
    libraries = 24 << 20
    assert rise <= 3 * 4 * n_elements + ahead + libraries


def _dominated_model(tmp_path: Path, n_vocab: int, n_in: int) -> tuple[Path, Path, Path]:
    """A Llama with a huge embedding: the fine-tune as a directory, the base, the fine-tune as a GGUF."""
    plain = save_model(tmp_path / "plain", "llama-tied", vocab_size=n_vocab, hidden_size=n_in)
    tuned = tune(plain, tmp_path / "tuned")
    base = convert_hf(plain, tmp_path / "base.gguf")
    return tuned, base, convert_hf(tuned, tmp_path / "tuned.gguf")


@pytest.mark.parametrize("columns", [0, 100])  # Some terminals do not know their width.
def test_terminal_shows_a_bar(columns: int, out: Path) -> None:
    """A bar with rate and remaining time, in a real pseudo-terminal."""
    main_end, command_end = pty.openpty()
    fcntl.ioctl(command_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "dqrelo_gguf.cli.convert", str(pico_gguf("llama")), str(pico_tuned_gguf("llama"))]
    with subprocess.Popen([*command, "-o", str(out)], stderr=command_end, stdout=subprocess.DEVNULL) as process:
        os.close(command_end)
        shown = b""
        with contextlib.suppress(OSError):  # Linux says so that the other end is closed.
            while chunk := os.read(main_end, 4096):
                shown += chunk
    os.close(main_end)
    assert process.returncode == 0
    for title in (b"checking", b"converting"):
        assert re.search(title + rb" *: *\d+%.*\[\d\d:\d\d<.*params/s", shown)


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("option", ["-o", "--json"])
@pytest.mark.parametrize("target", ["base.gguf", "reference.gguf", "tuned/model.safetensors", "tuned/config.json"])
def test_an_input_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, option: str, link: bool
) -> None:
    for name in ("base.gguf", "reference.gguf"):
        shutil.copyfile(pico_gguf("llama"), tmp_path / name)
    shutil.copytree(pico_tuned("llama"), tmp_path / "tuned")
    before = read_all(tmp_path / "tuned")
    output = tmp_path / target
    if link:
        output = tmp_path / "link"
        output.symlink_to(tmp_path / target)
    other = ["-o", str(tmp_path / "out")] if option == "--json" else []
    arguments = [str(tmp_path / "base.gguf"), str(tmp_path / "tuned"), "--reference", str(tmp_path / "reference.gguf")]
    assert main([*arguments, option, str(output), *other, "--force"]) == 1
    _, err = capsys.readouterr()
    assert "is read by this command" in err
    assert err.count("\n") == 1
    assert (tmp_path / "base.gguf").read_bytes() == pico_gguf("llama").read_bytes()
    assert read_all(tmp_path / "tuned") == before


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("out/ft.dq.gguf", "is the same file as the output"),
        ("none/report.json", "there is no directory"),
        ("out", "is a directory"),
        ("old.json", "exists. Use --force"),
    ],
)
def test_the_report_is_checked_before_the_work(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], report: str, message: str
) -> None:
    (tmp_path / "old.json").touch()
    arguments = [str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(out)]
    assert main([*arguments, "--json", str(tmp_path / report)]) == 1
    _, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1  # No phase has begun.
    assert list(out.parent.iterdir()) == []

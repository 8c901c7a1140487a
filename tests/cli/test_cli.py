"""cli.run: how every command ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dqrelo_gguf.cli import run
from dqrelo_gguf.errors import FormatError


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

"""dqrelo-server: starts the llama-server of this package; every argument is llama-server's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dqrelo_gguf.cli import run
from dqrelo_gguf.errors import InputError

PROG = "dqrelo-server"
_ENV = "DQRELO_BIN_DIR"  # a directory with llama-server, for a source tree without the wheel


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. On POSIX it does not return: llama-server takes the process over."""
    args = list(sys.argv[1:] if argv is None else argv)
    return run(lambda: _serve(args), PROG)


def program(name: str) -> Path:
    """A program of the patched llama.cpp that came with this package.

    Args:
        name: for instance `llama-server`.

    Raises:
        InputError: it is not there.
    """
    folder = os.environ.get(_ENV) or str(Path(__file__).resolve().parents[1] / "bin")
    path = Path(folder) / (f"{name}.exe" if os.name == "nt" else name)
    if not path.is_file():
        raise InputError(
            f"{path}: no such program. Install the wheel, or set {_ENV} to the directory of a build that has it"
        )
    return path


def _serve(args: list[str]) -> int:
    path = str(program("llama-server"))
    if os.name != "nt":  # exec there starts a second process and ends this one at once
        os.execv(path, [path, *args])  # noqa: S606 - the same process goes on as llama-server
    return subprocess.run([path, *args], check=False).returncode

"""dqrelo-server: starts the llama-server of this package; every argument is llama-server's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from dqrelo_gguf.cli import run
from dqrelo_gguf.runtime.programs import program

PROG = "dqrelo-server"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. On POSIX it does not return: llama-server takes the process over."""
    args = list(sys.argv[1:] if argv is None else argv)
    return run(lambda: _serve(args), PROG)


def _serve(args: list[str]) -> int:
    path = str(program("llama-server"))
    if os.name != "nt":  # On Windows, exec would start a second process and end this one at once.
        os.execv(path, [path, *args])  # noqa: S606 - the same process goes on as llama-server
    return subprocess.run([path, *args], check=False).returncode

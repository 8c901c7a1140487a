"""The programs of the patched llama.cpp that come with this package."""

from __future__ import annotations

import os
from pathlib import Path

from dqrelo_gguf.errors import InputError

_ENV = "DQRELO_BIN_DIR"  # It names a directory with the programs, for a source tree without the wheel.
_BUNDLED = Path(__file__).resolve().parents[1] / "bin"


def program(name: str) -> Path:
    """The path of a program.

    Args:
        name: for instance `llama-server`.

    Raises:
        InputError: it is not there.
    """
    path = Path(os.environ.get(_ENV) or _BUNDLED) / (f"{name}.exe" if os.name == "nt" else name)
    if not path.is_file():
        raise InputError(
            f"{path}: no such program. Install the wheel, or set {_ENV} to the directory of a build that has it"
        )
    return path

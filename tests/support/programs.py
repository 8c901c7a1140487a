"""Programs that tests run; a test is skipped where they are not built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.runtime.programs import program


def need_program(name: str) -> Path:
    """A program of the package, for instance llama-server."""
    try:
        return program(name)
    except InputError as e:
        pytest.skip(str(e))


def need_llama_cpp() -> Path:
    """The patched tree of llama.cpp that is built."""
    root = Path(__file__).resolve().parents[2]
    tree = Path(os.environ.get("DQRELO_LLAMA_CPP_DIR", root / "build" / "dev" / "llama.cpp-src"))
    if not tree.is_dir():
        pytest.skip("needs llama.cpp's sources: DQRELO_LLAMA_CPP_DIR")
    return tree


def need_test_program(name: str, option: str = "-DDQRELO_BUILD_TESTS=ON") -> Path:
    """A program that only tests run; `option` is the one of CMake that builds it."""
    directory = os.environ.get("DQRELO_TEST_BIN_DIR")
    if not directory or not (Path(directory) / name).is_file():
        pytest.skip(
            f"{name}: not found; build with {option} and set DQRELO_TEST_BIN_DIR to the directory of the programs"
        )
    return Path(directory) / name

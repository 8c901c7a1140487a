"""A file that shrinks while it is open: one line, and no end of the process by a signal (SIGBUS, which a map would give)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.delta_files import SPECS, write_delta
from tests.support.tiny_llama import NARROW, Type, base_weights, write_model

# Opens a file, shortens it, and uses it; prints the error.
PROGRAM = """
import os, sys
import numpy as np
from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.file.model_file import ModelFile
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.base import GgufModel

kind, path, use, n_bytes = sys.argv[1:]
opened = {"delta": DeltaReader, "model": ModelFile, "base": GgufModel}[kind](path)
os.truncate(path, int(n_bytes))
try:
    eval(use)
except DqreloError as e:
    print(e)
else:
    print("no error")
"""

WEIGHT = SPECS[0].name
USES = [
    ("delta", f"opened.weight({WEIGHT!r})"),
    ("delta", f"opened.reconstruct({WEIGHT!r})"),
    ("delta", "opened.verify()"),
    ("delta", "[opened.meta(key) for key in opened.keys()]"),
    ("model", "[opened.value(key) for key in opened.files[0].keys()]"),
    ("model", "opened.raw('blk.1.ffn_up.weight')"),
    ("model", "opened.elements('blk.1.ffn_up.weight', np.array([5]))"),
    ("base", "opened.load('blk.1.ffn_up.weight', Blocks(1))"),
    ("base", "opened.load_rows('blk.1.ffn_up.weight', np.array([3, 1]))"),
]


@pytest.mark.parametrize("n_bytes", [0, 100])
@pytest.mark.parametrize(("kind", "use"), USES)
def test_a_file_that_shrinks_is_an_error(tmp_path: Path, kind: str, use: str, n_bytes: int) -> None:
    path = tmp_path / "a.gguf"
    if kind == "delta":
        write_delta(path, SPECS)
    else:
        write_model(path, NARROW, base_weights(NARROW), Type.F16)
    n_before = path.stat().st_size
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, path, use, str(n_bytes)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, (result.returncode, result.stderr)
    line = (
        f"{path}: ends at byte {n_bytes}, it had {n_before} when it was opened. Put a new file in place by renaming it"
    )
    assert result.stdout == line + "\n" or (
        ".keys()" in use and result.stdout == "no error\n"
    )  # the header's start is kept

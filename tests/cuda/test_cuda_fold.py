"""Prompts on the emulated ggml-cuda with the base's product in the operator, which DQRELO_FOLD=1 asks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.families import SHAPES, Family, write_family
from tests.support.logits import OTHER, TEXT, Floats, nmse, open_model

ROOT = Path(__file__).resolve().parents[2]

MAX_NMSE = 1e-4  # As on the CPU: tests/graph/test_fold.py.

# Writes the logits of a long prompt with a delta, beside a short one and one of the base.
RUN = """
import sys
import numpy as np
from tests.support.logits import OTHER, TEXT, open_model
base, delta, out, n = sys.argv[1:]
with open_model(base, n_gpu_layers=99, flash_attn="off", n_ctx=256) as rt:
    first = rt.load_delta(delta)
    tokens = rt.tokenize(2 * TEXT)[: int(n)]
    short = rt.tokenize(OTHER)[:5]
    found = rt.logits([tokens, short, short], [first, first, None])
    np.savez(out, *found)
"""


@pytest.fixture
def module() -> Path:
    programs = os.environ.get("DQRELO_TEST_BIN_DIR", "")
    path = Path(programs).parent / "tests" / "cuda" / "backend" / "libdqrelo-emulated-cuda.so"
    if not programs or not path.is_file():
        pytest.skip(f"{path}: not found; build with -DDQRELO_TEST_CUDA_BACKEND=ON and set DQRELO_TEST_BIN_DIR")
    return path


def logits(module: Path, family: Family, out: Path, n: int, fold: str | None) -> list[Floats]:
    """Those of the three prompts."""
    env = os.environ | {"GGML_BACKEND_PATH": str(module)} | ({} if fold is None else {"DQRELO_FOLD": fold})
    command = [sys.executable, "-c", RUN, str(family.base), str(family.deltas[0]), str(out), str(n)]
    subprocess.run(command, check=True, timeout=300, cwd=ROOT, env=env)
    with np.load(out) as found:
        return [found[f"arr_{i}"] for i in range(3)]


@pytest.mark.parametrize("base_type", ["F16", "BF16"])
def test_a_long_prompt_is_folded_where_it_is_asked_for(module: Path, tmp_path: Path, base_type: str) -> None:
    family = write_family(tmp_path, SHAPES["256"], base_type, 1, ())
    plain, off, folded = (logits(module, family, tmp_path / "l.npz", 36, fold) for fold in (None, "0", "1"))
    with open_model(family.base) as rt:
        long, short = rt.tokenize(2 * TEXT)[:36], rt.tokenize(OTHER)[:5]
        of_base = rt.logits(short)
    assert len(long) == 36
    for i, expected in enumerate((family.merged_logits(0, long), family.merged_logits(0, short), of_base)):
        assert np.array_equal(plain[i], off[i])
        assert not np.array_equal(plain[i], folded[i])
        assert nmse(folded[i], expected) <= MAX_NMSE


@pytest.mark.parametrize(("base_type", "n"), [("F16", 10), ("Q8_0", 36)])
def test_what_is_not_folded(module: Path, tmp_path: Path, base_type: str, n: int) -> None:
    """Fewer rows than 32 in the batch, and a base that ggml multiplies by bytes."""
    family = write_family(tmp_path, SHAPES["256"], base_type, 1, ())
    plain, asked = (logits(module, family, tmp_path / "l.npz", n, fold) for fold in (None, "1"))
    for one, other in zip(plain, asked, strict=True):
        assert np.array_equal(one, other)

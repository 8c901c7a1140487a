"""The portable build: its variants of the CPU backend on processors that QEMU plays, against the merged model on this one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.cli import merge
from tests.support.logits import TEXT, Floats, nmse, open_model
from tests.support.programs import need_program
from tests.support.trio import Trio

# What QEMU plays, the instruction set of the operator there, what the backend that is loaded was compiled for, and what it was not.
PROCESSORS = {
    "Haswell": ("avx2", {"AVX2", "FMA", "F16C", "BMI2"}, {"AVX512"}),
    "IvyBridge": ("scalar", {"AVX", "F16C"}, {"AVX2", "FMA"}),
    "Nehalem": ("scalar", {"SSE3", "SSSE3"}, {"AVX"}),
}
MAX_NMSE = 1e-4  # Of F16 weights multiplied by other instructions.

SCRIPT = """
import sys
import numpy as np
from dqrelo_gguf.runtime.native import core
from dqrelo_gguf.runtime.session import Runtime

base, delta, out = sys.argv[1:4]
with Runtime(base, n_threads=1) as runtime:
    np.save(out, runtime.logits(sys.argv[4], runtime.load_delta(delta)))
machine = core.machine()
print(machine["isa"], machine["cpu_features"])
"""


@pytest.fixture(scope="module")
def qemu() -> str:
    """QEMU that plays x86-64 processors, where the build under test is a portable one for them."""
    folder = need_program("dqrelo-op-check").resolve().parent
    if not any((place / "libggml-cpu-haswell.so").is_file() for place in (folder, folder.parent / "lib")):
        pytest.skip(
            "not a portable build for x86-64: install the wheel of `make wheel`, or build with -DDQRELO_PORTABLE=ON"
        )
    found = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if found is None:
        pytest.skip("QEMU is not installed (Debian: apt-get install qemu-user)")
    return found


@pytest.fixture(scope="module")
def merged_logits(trio: Trio, tmp_path_factory: pytest.TempPathFactory) -> Floats:
    """Those of the base with the first delta merged into it, on this processor."""
    path = tmp_path_factory.mktemp("merged") / "merged.gguf"
    assert merge.main([str(trio.base), str(trio.deltas[0]), "-o", str(path), "--outtype", "f32"]) == 0
    with open_model(path) as runtime:
        return runtime.logits(TEXT)


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_logits_on_older_processors_are_those_of_the_merged_model(
    qemu: str, processor: str, trio: Trio, merged_logits: Floats, tmp_path: Path
) -> None:
    out = tmp_path / "logits.npy"
    words = [qemu, "-cpu", processor, sys.executable, "-c", SCRIPT, trio.base, trio.deltas[0], out, TEXT]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    isa, *features = done.stdout.split()
    expected_isa, has, lacks = PROCESSORS[processor]
    assert isa == expected_isa
    assert has <= set(features)
    assert not lacks & set(features)
    assert nmse(np.load(out), merged_logits) < MAX_NMSE


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_operator_agrees_on_older_processors(qemu: str, processor: str) -> None:
    words = [qemu, "-cpu", processor, need_program("dqrelo-op-check"), "CPU"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cases agree" in done.stdout

"""The portable builds: their variants of the CPU backend on processors that QEMU plays, against the merged model on this one.

That for x86-64 is the build under test. That for 64-bit ARM is a wheel in a folder of cmake/aarch64_root.py, which DQRELO_AARCH64_ROOT names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import aarch64_root
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
# QEMU's "max" has SVE2 and vectors of 512 bits; those of the processors that are sold with SVE2 have 128.
ARM_PROCESSORS = {
    "cortex-a53": ("scalar", {"NEON"}, {"DOTPROD", "SVE"}),
    "neoverse-n1": ("neon", {"NEON", "DOTPROD", "FP16_VA"}, {"SVE"}),
    "max,sve-default-vector-length=16": ("neon", {"NEON", "DOTPROD", "SVE", "MATMUL_INT8"}, set()),
}
PROGRAMS = ("llama-server", "llama-completion", "llama-cli")
EMULATED_SECONDS = 1800
MAX_NMSE = 1e-4  # Of F16 weights multiplied by other instructions.

SCRIPT = """
import sys
import numpy as np
from dqrelo_gguf.native import core
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


@dataclass(frozen=True)
class Arm:
    """A Python for 64-bit ARM with the wheel."""

    qemu: str
    root: Path

    @property
    def package(self) -> Path:
        return aarch64_root.site_of(self.root) / "dqrelo_gguf"

    def run(self, processor: str, program: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs one of its programs, with none of this environment's parts of the package."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DQRELO_", "PYTHON"))}
        environment |= {"PYTHONPATH": str(self.package.parent), "OMP_NUM_THREADS": "1"}
        command = [self.qemu, "-cpu", processor, "-L", self.root, program, *words]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=EMULATED_SECONDS, check=False
        )


@pytest.fixture(scope="module")
def arm() -> Arm:
    """The wheel for 64-bit ARM."""
    root, qemu = (
        os.environ.get("DQRELO_AARCH64_ROOT"),
        shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static"),
    )
    if root is None or qemu is None:
        pytest.skip(
            "needs QEMU (Debian: apt-get install qemu-user) and a wheel of `make wheel ARCH=aarch64`: "
            "cmake/aarch64_root.py FOLDER --wheel dist/...; DQRELO_AARCH64_ROOT=FOLDER"
        )
    found = Arm(qemu, Path(root).resolve())
    assert any(found.package.glob("_core.*-aarch64-linux-gnu.so")), f"{root}: has no wheel for 64-bit ARM in site/"
    return found


def check_logits(
    done: subprocess.CompletedProcess[str], out: Path, expected: tuple[str, set[str], set[str]], merged: Floats
) -> None:
    """That SCRIPT found the instruction set and the backend that are right for a processor, and the merged model's logits."""
    assert done.returncode == 0, done.stderr
    isa, *features = done.stdout.split()
    expected_isa, has, lacks = expected
    assert isa == expected_isa
    assert has <= set(features)
    assert not lacks & set(features)
    assert nmse(np.load(out), merged) < MAX_NMSE


def check_operator(done: subprocess.CompletedProcess[str]) -> None:
    """That dqrelo-op-check found no difference."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cases agree" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_logits_on_older_processors_are_those_of_the_merged_model(
    qemu: str, processor: str, trio: Trio, merged_logits: Floats, tmp_path: Path
) -> None:
    out = tmp_path / "logits.npy"
    words = [qemu, "-cpu", processor, sys.executable, "-c", SCRIPT, trio.base, trio.deltas[0], out, TEXT]
    done = subprocess.run(words, capture_output=True, text=True, timeout=EMULATED_SECONDS, check=False)
    check_logits(done, out, PROCESSORS[processor], merged_logits)


@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_operator_agrees_on_older_processors(qemu: str, processor: str) -> None:
    words = [qemu, "-cpu", processor, need_program("dqrelo-op-check"), "CPU"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=EMULATED_SECONDS, check=False)
    check_operator(done)


@pytest.mark.slow
@pytest.mark.parametrize("processor", ARM_PROCESSORS)
def test_logits_on_arm_are_those_of_the_merged_model(
    arm: Arm, processor: str, trio: Trio, merged_logits: Floats, tmp_path: Path
) -> None:
    out = tmp_path / "logits.npy"
    python = aarch64_root.python_of(arm.root)
    done = arm.run(processor, python, "-c", SCRIPT, trio.base, trio.deltas[0], out, TEXT)
    check_logits(done, out, ARM_PROCESSORS[processor], merged_logits)


@pytest.mark.slow
@pytest.mark.parametrize("processor", ARM_PROCESSORS)
def test_the_operator_agrees_on_arm(arm: Arm, processor: str) -> None:
    done = arm.run(processor, arm.package / "bin" / "dqrelo-op-check", "CPU")
    check_operator(done)


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_start_on_arm(arm: Arm, program: str) -> None:
    done = arm.run("cortex-a53", arm.package / "bin" / program, "--version")
    assert done.returncode == 0
    assert "for Linux aarch64" in done.stderr

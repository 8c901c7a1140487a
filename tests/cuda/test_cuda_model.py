"""Models on the emulated ggml-cuda against the CPU: whole, in part, over two devices; tests/cuda/backend/test-cuda-model.cpp runs them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.architecture_families import ArchitectureFamily, write_architecture_family
from tests.support.programs import need_test_program
from tests.support.tiny_architectures import N_LAYER

ALL_LAYERS = 99
CASES = (
    "base prompt",
    "base token",
    "mixed prompt",
    "mixed token",
    "swapped prompt",
    "swapped token",
    "blended prompt",
    "blended token",
)

# With weights of F16 the CPU rounds activations to F16: 2^-22 of their power at most, in some ten products one behind the
# other. With Q8_0 both sides round them to bytes, which are other bytes where activations differ at all: measured 4e-4,
# without deltas as with them.
MAX_NMSE = {"ALL_F32": 1e-8, "MOSTLY_F16": 1e-5, "MOSTLY_Q8_0": 2e-3}


@dataclass
class Figures:
    """A line of the program: error against the CPU, what a delta changes, and the ops that ran on devices, of all."""

    nmse: float
    of_base: float
    on_devices: int
    n_ops: int


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ArchitectureFamily]:
    made: dict[tuple[str, str], ArchitectureFamily] = {}

    def get(arch: str, file_type: str) -> ArchitectureFamily:
        if (arch, file_type) not in made:
            made[arch, file_type] = write_architecture_family(tmp_path_factory.mktemp(arch), arch, file_type)
        return made[arch, file_type]

    return get


@pytest.fixture(scope="module")
def program() -> Path:
    return need_test_program("test-cuda-model", "-DDQRELO_TEST_CUDA_BACKEND=ON")


def run(
    program: Path, family: ArchitectureFamily, n_gpu_layers: int, n_devices: int
) -> tuple[dict[str, Figures], dict[str, int]]:
    """The figures of each case, and the bytes of the first delta in each memory. Kernels cannot read the files themselves."""
    done = subprocess.run(
        [program, str(n_gpu_layers), family.base, *family.deltas],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "CUEMU_DEVICES": str(n_devices), "CUEMU_HIDE": ".gguf"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^(\w+ \w+): nmse (\S+) base (\S+) ops (\d+) of (\d+)$", done.stdout, re.MULTILINE)
    memories = re.findall(r"^memory (\w+): (\d+) bytes$", done.stdout, re.MULTILINE)
    figures = {name: Figures(float(e), float(b), int(g), int(a)) for name, e, b, g, a in lines}
    assert tuple(figures) == CASES, done.stdout
    return figures, {name: int(n_bytes) for name, n_bytes in memories}


@pytest.mark.parametrize(("n_gpu_layers", "n_devices"), [(ALL_LAYERS, 1), (N_LAYER // 2 + 1, 1), (ALL_LAYERS, 2)])
@pytest.mark.parametrize(
    "model",
    [("llama", "ALL_F32"), ("llama", "MOSTLY_F16"), ("llama", "MOSTLY_Q8_0"), ("qwen3moe", "ALL_F32")],
)
def test_a_batch_of_the_base_and_two_deltas_is_the_cpus(
    program: Path,
    families: Callable[[str, str], ArchitectureFamily],
    model: tuple[str, str],
    n_gpu_layers: int,
    n_devices: int,
) -> None:
    figures, memories = run(program, families(*model), n_gpu_layers, n_devices)
    max_nmse = MAX_NMSE[model[1]]
    for name, f in figures.items():
        assert f.nmse <= max_nmse, f"{name}: {f}"
        if name.startswith("base"):
            assert f.n_ops == 0
            continue
        n_parts = 2 if name.startswith("blended") else 1  # An op for each part of a blend.
        assert f.of_base > 100 * max_nmse, f"{name}: a delta that does nothing would pass"
        if n_gpu_layers == ALL_LAYERS:
            assert f.on_devices == f.n_ops - n_parts, f"{name}: all but the embeddings belong on devices"
        else:
            assert 0 < f.on_devices < f.n_ops - n_parts
    assert set(memories) == {"CPU", *(f"CUDA{i}" for i in range(n_devices))}
    assert all(n_bytes > 0 for n_bytes in memories.values())

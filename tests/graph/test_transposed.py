"""Deltas whose signs were transposed when they were loaded, as the kernels for AVX2 take them: here on any CPU that has AVX2."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.delta_kinds import KINDS
from tests.support.exact_delta import Kind
from tests.support.upstream_models import QUICK, check, run_arch

AVX2 = {"DQRELO_ISA": "avx2"}

pytestmark = pytest.mark.skipif(
    "avx2" not in (Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else ()),
    reason="this CPU has no AVX2, or does not tell",
)


@pytest.mark.parametrize("arch", QUICK)
def test_architecture(bases: dict[str, Path], tmp_path: Path, arch: str) -> None:
    check([run_arch(bases[arch], tmp_path, **AVX2)])


# A plain model with tied embeddings, experts, and matrices a head.
@pytest.mark.parametrize("arch", ["gemma3-dense", "qwen3moe-moe", "deepseek2-moe"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_delta(bases: dict[str, Path], tmp_path: Path, arch: str, kind: Kind) -> None:
    check([run_arch(bases[arch], tmp_path, kind, **AVX2)])


def test_a_file_opened_for_the_cpu_is_refused_for_other_memory(bases: dict[str, Path], tmp_path: Path) -> None:
    outcome = run_arch(bases["gemma3-dense"], tmp_path, DQRELO_COMPOSED="1", **AVX2)
    assert not outcome.failed  # test-archs tries it.

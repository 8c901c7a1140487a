"""The graph pass on upstream's tiny random models of every architecture: near-exact deltas, and blends of two, against merged models.

Upstream's test-llama-archs writes the base models; test-archs (tests/cpp) runs them. Every tensor of every architecture changes, and nothing may be refused.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf._pin import gguf
from tests.support import exact_delta
from tests.support.exact_delta import Kind
from tests.support.programs import need_test_program
from tests.support.upstream_models import FAULTS, MIN_ARCHS, OWN_BATCH, QUICK, check, run_arch, worst


@pytest.mark.parametrize("arch", QUICK + OWN_BATCH)
def test_architecture(bases: dict[str, Path], tmp_path: Path, arch: str) -> None:
    outcome = run_arch(bases[arch], tmp_path)
    check([outcome])
    assert outcome.carried > 10
    assert outcome.own_batch == (arch in OWN_BATCH)


def refusal(base: Path, delta: Path) -> str:
    """The line with which a delta is refused."""
    command = [need_test_program("test-archs"), base, delta, delta, base, base, "1", "1", base]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    (line,) = re.findall(r"^refused: (.*)$", done.stdout, re.MULTILINE)
    return str(line)


def test_tensor_that_the_base_lacks_is_refused_by_name(bases: dict[str, Path], tmp_path: Path) -> None:
    more, delta = tmp_path / "more.gguf", tmp_path / "a.dq.gguf"
    exact_delta.without_scales(bases["llama-dense"], tmp_path / "base.gguf")
    exact_delta.with_tensor(tmp_path / "base.gguf", more, "blk.0.planted.weight", np.ones((4, 8), np.float32))
    exact_delta.make(more, delta, tmp_path / "a.gguf")
    assert "no tensor 'blk.0.planted.weight'" in refusal(tmp_path / "base.gguf", delta)


def test_unsupported_form_is_refused_by_name(bases: dict[str, Path], tmp_path: Path) -> None:
    base, delta = tmp_path / "base.gguf", tmp_path / "a.dq.gguf"
    reader = gguf.GGUFReader(bases["mamba-dense"])
    (weight,) = [t.data for t in reader.tensors if t.name == "blk.0.ssm_conv1d.weight"]
    # A merged copy can be made of F32 only.
    exact_delta.with_tensor(bases["mamba-dense"], base, "blk.0.ssm_conv1d.weight", weight.astype(np.float16))
    exact_delta.make(base, delta, tmp_path / "a.gguf")
    assert re.search(
        r"tensor 'blk\.0\.ssm_conv1d\.weight' is read by SSM_CONV .* for F32 tensors only", refusal(base, delta)
    )


def test_a_check_is_of_the_loaded_delta(bases: dict[str, Path], tmp_path: Path) -> None:
    base, delta, other = (tmp_path / name for name in ("base.gguf", "a.dq.gguf", "b.dq.gguf"))
    conv = "blk.0.ssm_conv1d.weight"
    (weight,) = [t.data for t in gguf.GGUFReader(bases["mamba-dense"]).tensors if t.name == conv]
    exact_delta.with_tensor(bases["mamba-dense"], base, conv, weight.astype(np.float16))
    exact_delta.make(base, delta, tmp_path / "a.gguf", unchanged=[conv])
    exact_delta.make(base, other, tmp_path / "b.gguf")
    done = subprocess.run(
        [need_test_program("test-coverage"), base, delta, other],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_tensor_that_no_graph_reads_is_inert(bases: dict[str, Path], tmp_path: Path) -> None:
    outcome = run_arch(bases["dream-dense"], tmp_path)
    check([outcome])
    assert outcome.inert == ["output.bias"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [exact_delta.PLAIN, Kind(n_planes=0, code_ranks=(8,)), Kind(entries="F8"), Kind(entries="BF16", has_mask=True)],
    ids=["a plane", "no planes", "entries by lists", "entries by a mask"],
)
def test_every_architecture_carries_deltas(bases: dict[str, Path], tmp_path: Path, kind: Kind) -> None:
    outcomes = [run_arch(base, tmp_path, kind) for arch, base in bases.items() if arch not in FAULTS]
    assert len(outcomes) >= MIN_ARCHS
    for outcome in outcomes:
        print(outcome.arch, outcome.carried, f"{worst(outcome):.1e}", "own batch" * outcome.own_batch, *outcome.inert)
    check(outcomes)

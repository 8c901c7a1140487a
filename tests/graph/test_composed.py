"""Deltas as ordinary ggml ops, as devices without the operator run them: here on the CPU, in processes of their own with DQRELO_COMPOSED=1.

A CPU multiplies the signs by activations of 8 bits, a scale for 32 of them. That is an error of about 0.5 % in what a plane
adds; the operator's is a hundredth of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support import composed_runs
from tests.support.delta_kinds import KINDS
from tests.support.exact_delta import Kind
from tests.support.families import SHAPES, Family, Maker
from tests.support.tiny_llama import Shape
from tests.support.upstream_models import FAULTS, MAX_NMSE, MIN_ARCHS, OWN_BATCH, QUICK, Outcome, check, run_arch, worst

ROOT = Path(__file__).resolve().parents[2]

COMPOSED = {"DQRELO_COMPOSED": "1"}

# Of what the deltas do to the logits: 0.5 % in each of up to 6 products in a row, squared, and as much again for the second layer's inputs.
MAX_OF_EFFECT = 2 * (6 * 0.005) ** 2

# A graph that runs its layers many times over amplifies any error: with signs in F32, exact but for the order of sums, it has 5e-6 where others have 1e-8.
AMPLIFIES = {"hrm_text-dense": 1e-2}


def shrunk(outcome: Outcome, allowed: float) -> Outcome:
    """The outcome with figures for `check`, where another one is allowed."""
    return replace(outcome, nmse={case: nmse * MAX_NMSE / allowed for case, nmse in outcome.nmse.items()})


def run(family: Family, out: Path, **env: str) -> composed_runs.Rows:
    command = [sys.executable, "-m", composed_runs.__name__, str(family.base), *map(str, family.deltas), str(out)]
    subprocess.run(command, check=True, timeout=300, cwd=ROOT, env=os.environ | env)
    return composed_runs.read(out)


def compare(family: Family, tmp_path: Path, *, is_quantised: bool = False) -> dict[str, float]:
    """Squared error against the operator by row, as a share of what the delta does.

    A quantised base rounds its activations to 8 bits too: of two that differ by little, some fall on the other side. There
    the share is of all logits.
    """
    fused = run(family, tmp_path / "fused.npz", DQRELO_COMPOSED="0")
    composed = run(family, tmp_path / "composed.npz", **COMPOSED)
    assert fused.keys() == composed.keys()
    errors = {}
    for name, (logits, without) in fused.items():
        got, got_without = composed[name]
        assert np.array_equal(without, got_without), name  # The base alone gives the same.
        if name.endswith(composed_runs.NO_DELTA):
            assert np.array_equal(got, without), name
            continue
        effect = float(np.sum((logits - without) ** 2.0))
        assert effect > 0
        assert not np.array_equal(got, logits), f"{name}: the operator ran"
        errors[name] = float(np.sum((got - logits) ** 2.0)) / (float(np.sum(logits**2.0)) if is_quantised else effect)
    return errors


# Rows of 256 are signs in blocks of 128, of 576 in blocks of 32, of 72 in F16.
@pytest.mark.parametrize("base_type", ["F32", "Q8_0"])
@pytest.mark.parametrize("shape", ["256", "tied", "576", "72"])
def test_logits_are_those_of_the_operator(make_family: Maker, tmp_path: Path, shape: str, base_type: str) -> None:
    if shape == "72" and base_type == "Q8_0":
        pytest.skip("rows of 72 fill no blocks")
    errors = compare(make_family(SHAPES[shape], base_type), tmp_path, is_quantised=base_type == "Q8_0")
    assert max(errors.values()) <= MAX_OF_EFFECT, errors


@pytest.mark.parametrize("options", [("--factor-type", t) for t in ("bf16", "f32", "q8_0", "q4_0")] + [("--rank", "0")])
def test_factors_of_every_type_and_none(make_family: Maker, tmp_path: Path, options: tuple[str, str]) -> None:
    errors = compare(make_family(Shape(), "F32", 2, *options), tmp_path)
    assert max(errors.values()) <= MAX_OF_EFFECT, errors


@pytest.mark.parametrize("arch", QUICK + OWN_BATCH)
def test_architecture(bases: dict[str, Path], tmp_path: Path, arch: str) -> None:
    outcome = run_arch(bases[arch], tmp_path, **COMPOSED)
    check([outcome])
    assert outcome.own_batch == (arch in OWN_BATCH)


# A plain model with tied embeddings, experts, and matrices a head.
@pytest.mark.parametrize("arch", ["gemma3-dense", "qwen3moe-moe", "deepseek2-moe"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_kind_of_delta(bases: dict[str, Path], tmp_path: Path, arch: str, kind: Kind) -> None:
    # These changes are as large as the weights, and with factors in Q8_0 all their products have activations of 8 bits.
    outcome = run_arch(bases[arch], tmp_path, kind, **COMPOSED)
    check([shrunk(outcome, MAX_OF_EFFECT)])


@pytest.mark.parametrize("arch", ["gemma3-dense", "qwen3moe-moe", "deepseek2-moe"])
@pytest.mark.parametrize(
    "kind", ["everything", "sign factors, no planes", "sparse, F8 by lists", "sparse, F16 by a mask"]
)
def test_the_operator_has_no_such_error(bases: dict[str, Path], tmp_path: Path, arch: str, kind: str) -> None:
    check([run_arch(bases[arch], tmp_path, KINDS[kind], DQRELO_COMPOSED="0")])


@pytest.mark.slow
def test_every_architecture_carries_deltas(bases: dict[str, Path], tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    for arch, base in bases.items():
        if arch not in FAULTS:
            outcome = run_arch(base, tmp_path, **COMPOSED)
            print(outcome.arch, outcome.carried, f"{worst(outcome):.1e}", "own batch" * outcome.own_batch)
            outcomes.append(shrunk(outcome, AMPLIFIES.get(arch, MAX_NMSE)))
    assert len(outcomes) >= MIN_ARCHS
    check(outcomes)

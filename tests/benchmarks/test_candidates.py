"""bench/support/candidates.py: the models that bench_quality.py measures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.errors import InputError
from tests.support.tiny_llama import NARROW, Type, base_weights, read_weights, tuned_weights, write_model


@pytest.fixture
def candidates(bench_module):
    return bench_module("support.candidates")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and its fine-tune, in which one matrix is not changed."""
    weights = base_weights(NARROW)
    tuned = {**tuned_weights(weights, 0), "output.weight": weights["output.weight"]}
    models = {"base": weights, "tuned": tuned}
    return tuple(write_model(tmp_path / f"{name}.gguf", NARROW, w, Type.F16) for name, w in models.items())


def test_the_error_is_nothing_for_the_fine_tune_and_all_for_the_base(candidates, pair):
    base, tuned = pair
    assert candidates.error_of(base, tuned, tuned, 1) == 0
    assert candidates.error_of(base, tuned, base, 1) == 1


@pytest.mark.parametrize("method", ["best", "best-probe", "paper", "svd", "lora", "delta-come"])
def test_a_candidate_keeps_part_of_the_delta_within_its_bytes(candidates, pair, tmp_path, method):
    base, tuned = pair
    workshop = candidates.Workshop(tmp_path, 1)
    make = workshop.converted if method in candidates.CONVERTED else workshop.rival
    made = make(base, tuned, method, Fraction(1, 4))
    n_changed = candidates.n_elements(tuned) - read_weights(base)["output.weight"].size
    assert 0.85 * n_changed / 4 < made.n_bytes / 2 <= n_changed / 4
    assert 0.01 < candidates.error_of(base, tuned, made.path, 1) < 0.8
    found, ours, theirs = (read_weights(path) for path in (made.path, base, tuned))
    assert np.array_equal(found["output.weight"], ours["output.weight"])
    assert np.array_equal(found["output_norm.weight"], theirs["output_norm.weight"])


def test_models_with_other_weights_are_refused(candidates, pair, tmp_path):
    base, _ = pair
    other = write_model(tmp_path / "other.gguf", NARROW, {"output_norm.weight": np.ones(NARROW.n_embd, np.float32)})
    with pytest.raises(InputError, match="other weights"):
        candidates.Workshop(tmp_path, 1).rival(base, other, "svd", Fraction(1, 8))


def test_a_small_type_counts_the_bytes_of_the_whole_model(candidates, pair, tmp_path):
    _, tuned = pair
    made = candidates.Workshop(tmp_path, 1).small(tuned, "Q2_K", [])
    assert 0.1 < made.n_bytes / (2 * candidates.n_elements(tuned)) < 1

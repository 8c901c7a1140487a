"""sparse_forms.py: what is offered of a delta, at which bytes, with which error."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.compress.pruning import largest
from dqrelo_gguf.compress.sparse import pack, unpack
from dqrelo_gguf.compress.sparse_forms import SparseForm, sparse_forms
from dqrelo_gguf.file.layout import ENTRY_TYPES, SparseSpec, WeightSpec

F32 = npt.NDArray[np.float32]


def delta(share: float, values: Callable[[np.random.Generator, int], npt.NDArray[np.float64]], n_mat: int = 2) -> F32:
    """Some elements of matrices of 24 rows of 520, drawn at random, with these values."""
    rng = np.random.default_rng(0)
    D = np.zeros((n_mat, 24, 520), np.float32)
    at = rng.choice(D.size, int(share * D.size), replace=False)
    D.flat[at] = values(rng, len(at))
    return D


def few_bits(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    return rng.choice([-3, -2, -1, 1, 2, 3], n) * 2.0 ** rng.integers(-20, -10, n)


def any_bits(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    return rng.standard_normal(n)


def forms_of(D: F32) -> list[SparseForm]:
    with open_blocks(2) as blocks:
        forms, n_changed = sparse_forms(D, blocks)
    assert n_changed == np.count_nonzero(D)
    return forms


def all_of(D: F32) -> list[SparseForm]:
    n = np.count_nonzero(D)
    return [form for form in forms_of(D) if form.n_entries == n]


@pytest.mark.parametrize("share", [0.004, 0.08, 0.3])
@pytest.mark.parametrize("values", [few_bits, any_bits])
def test_bytes_and_errors_are_those_of_the_file(
    share: float, values: Callable[[np.random.Generator, int], npt.NDArray[np.float64]]
) -> None:
    D = delta(share, values)
    forms = forms_of(D)
    assert len(forms) >= 8
    assert [f.n_bytes for f in forms] == sorted(f.n_bytes for f in forms)
    for form in forms:
        stored_type = next(t for t, name in ENTRY_TYPES.items() if name == form.type)
        spec = WeightSpec.of_entries("w", (520, 24, 2), SparseSpec(form.n_entries, stored_type, form.has_mask))
        assert form.n_bytes == spec.n_bytes
        packed = pack(D, largest(np.abs(D), form.n_entries), form.type, form.has_mask)
        error = np.square((D - unpack(packed, 520)).astype(np.float64)).sum()
        assert form.error == pytest.approx(error, rel=1e-9)
        other = SparseSpec(form.n_entries, stored_type, not form.has_mask)
        assert form.n_bytes <= WeightSpec.of_entries("w", (520, 24, 2), other).n_bytes


def test_changes_of_few_bits_are_exact_in_f8_and_nothing_larger_is_offered() -> None:
    (whole,) = all_of(delta(0.1, few_bits))
    assert (whole.type, whole.error) == ("F8", 0.0)


@pytest.mark.parametrize(
    ("values", "exact"),
    [
        (lambda rng, n: rng.integers(9, 255, n) * 2.0**-20, "BF16"),  # eight bits
        (lambda rng, n: (2 * rng.integers(256, 1023, n) + 1) * 2.0**-20, "F16"),  # eleven bits
    ],
)
def test_the_first_type_of_16_bits_that_is_exact_is_offered(
    values: Callable[[np.random.Generator, int], npt.NDArray[np.float64]], exact: str
) -> None:
    f8, other = all_of(delta(0.1, values))
    assert f8.type == "F8"
    assert f8.error > 0
    assert (other.type, other.error) == (exact, 0.0)


@pytest.mark.parametrize(("exponent", "better"), [(0, "F16"), (-24, "BF16")])
def test_where_none_is_exact_the_better_one_is_offered(exponent: int, better: str) -> None:
    """F16 has more bits of a number of usual size, BF16 of a tiny one."""
    _, other = all_of(delta(0.1, lambda rng, n: rng.standard_normal(n) * 2.0**exponent))
    assert (other.type, other.error > 0) == (better, True)


def test_places_are_lists_where_few_elements_changed_and_where_no_block_is_full() -> None:
    assert not any(form.has_mask for form in forms_of(delta(0.05, few_bits)))
    assert all_of(delta(0.3, few_bits))[0].has_mask
    D = delta(0.01, few_bits)
    D[1, 3, 256:512] = 1
    assert all(form.has_mask for form in forms_of(D))


@pytest.mark.parametrize("share", [0, 0.5, 0.7, 1])
def test_nothing_is_offered_where_nothing_or_half_changed(share: float) -> None:
    assert forms_of(delta(share, few_bits)) == []
    assert forms_of(delta(0.49, few_bits)) != []


def test_memory_stays_under_that_of_two_and_a_half_deltas() -> None:
    rng = np.random.default_rng(0)
    D = np.where(rng.random((1, 2048, 2048), np.float32) < 0.45, rng.random((1, 2048, 2048), np.float32), 0)
    tracemalloc.start()
    try:
        assert forms_of(D)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * D.nbytes

"""sparse.py: places and values of single entries, against a literal reading of docs/format.md."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from dqrelo_gguf.compress.sparse import (
    EntryType,
    from_f8,
    lists_hold,
    pack,
    places_bytes,
    row_scales,
    to_f8,
    unpack,
)
from tests.support.entries import literal_d_hat

F32 = npt.NDArray[np.float32]
SHAPES = [(3, 8), (5, 256), (4, 264), (2, 520), (3, 4, 512)]


def delta(shape: tuple[int, ...], share: float, seed: int = 0) -> F32:
    """Some elements are small multiples of powers of two, the others 0."""
    rng = np.random.default_rng(seed)
    steps = rng.choice(np.array([-3, -2, -1, 1, 2, 3], np.float32), shape)
    values = np.ldexp(steps, rng.integers(-20, -10, shape)).astype(np.float32)
    return np.where(rng.random(shape) < share, values, 0).astype(np.float32)


@pytest.mark.parametrize("has_mask", [True, False])
@pytest.mark.parametrize("entry_type", ["F8", "BF16", "F16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_entries_are_the_delta(shape: tuple[int, ...], entry_type: EntryType, has_mask: bool) -> None:
    D = delta(shape, 0.2)
    packed = pack(D, D != 0, entry_type, has_mask)
    assert packed.start.reshape(-1)[0] == 0
    assert (packed.mask is None, packed.count is None) == (not has_mask, has_mask)
    assert np.array_equal(literal_d_hat(packed, shape[-1]), unpack(packed, shape[-1]))
    # F16 ends at 2^-24; a step of the others is at least as fine as these values are.
    assert np.array_equal(unpack(packed, shape[-1]), D)


@pytest.mark.parametrize("has_mask", [True, False])
def test_only_what_is_kept_is_packed(has_mask: bool) -> None:
    D = delta((6, 256), 0.5)
    kept = (D != 0) & (np.random.default_rng(1).random(D.shape) < 0.5)
    kept[2] = False  # A row may have no entry.
    packed = pack(D, kept, "F8", has_mask)
    assert len(packed.values) == np.count_nonzero(kept)
    assert np.array_equal(packed.row_counts, np.count_nonzero(kept, axis=1))
    assert np.array_equal(unpack(packed, 256), np.where(kept, D, 0))
    assert packed.scale is not None
    assert packed.scale[2] == 1


def test_a_full_block_needs_the_mask() -> None:
    kept = np.zeros((2, 512), bool)
    kept[1, 256:511] = True
    assert lists_hold(kept)
    kept[1, 511] = True
    assert not lists_hold(kept)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_mask", [True, False])
def test_bytes_of_places(shape: tuple[int, ...], has_mask: bool) -> None:
    D = delta(shape, 0.2)
    packed = pack(D, D != 0, "F8", has_mask)
    parts = [packed.mask, packed.count, packed.column]
    stored = sum(part.nbytes for part in parts if part is not None)
    assert places_bytes(len(packed.values), packed.start.size, shape[-1], has_mask) == stored


# --- F8 ---


def values_of_f8() -> dict[Fraction, int]:
    """Every finite F8 by its value: E5M2, read bit by bit. Of the zeros, +0."""
    found = {}
    for byte in reversed(range(256)):
        exponent, fraction = byte >> 2 & 31, byte & 3
        if exponent == 31:
            continue
        magnitude = Fraction(4 + fraction) * Fraction(2) ** (exponent - 17) if exponent else Fraction(fraction, 1 << 16)
        found[-magnitude if byte & 128 else magnitude] = byte
    return found


def test_every_f8_is_what_its_bits_say() -> None:
    for value, byte in values_of_f8().items():
        assert Fraction(float(from_f8(np.array([byte], np.uint8))[0])) == value
        assert to_f8(np.array([float(value)], np.float32)).tolist() == [byte]


def test_numbers_become_the_nearest_f8() -> None:
    values = values_of_f8()
    ascending = sorted(v for v in values if abs(v) <= 2**15)
    rng = np.random.default_rng(0)
    numbers = np.ldexp(rng.uniform(-1, 1, 300), rng.integers(-20, 16, 300)).astype(np.float32)
    middles = np.array([float((a + b) / 2) for a, b in pairwise(ascending)], np.float32)
    for number, got in zip([*numbers, *middles], to_f8(np.concatenate([numbers, middles])), strict=True):
        exact = Fraction(float(number))
        best = min(abs(v - exact) for v in ascending)
        nearest = [v for v in ascending if abs(v - exact) == best]
        chosen = next((v for v in nearest if len(nearest) == 1 or values[v] % 2 == 0), nearest[0])
        assert Fraction(float(from_f8(np.array([got]))[0])) == chosen, number


def test_scales_are_powers_of_two_that_hold_the_row() -> None:
    largest = np.array([0, 1, 1.99, 2**-20, 3e38, 1e-45], np.float32)
    scales = row_scales(largest)
    assert scales[0] == 1
    for scale, number in zip(scales[1:], largest[1:], strict=True):
        assert math.frexp(scale)[0] == 0.5
        assert number / scale <= 2**15
        assert np.isfinite(from_f8(to_f8(np.array([number / scale], np.float32)))).all()


def test_entries_of_few_bits_are_exact_over_many_binades() -> None:
    """What the form is for: changes of a few units in the last place of weights of any size."""
    D = np.zeros((1, 256), np.float32)
    D[0, :29] = np.ldexp(np.float32(7), np.arange(-38, -9))
    assert np.array_equal(unpack(pack(D, D != 0, "F8", has_mask=False), 256), D)
    D[0, 31] = np.float32(9 / 1024)  # It has four bits.
    assert not np.array_equal(unpack(pack(D, D != 0, "F8", has_mask=False), 256), D)

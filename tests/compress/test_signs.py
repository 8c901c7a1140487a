"""signs.py: the bit order and the sign of zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.compress.signs import pack_signs, unpack_signs
from dqrelo_gguf.errors import ShapeError


def test_bit_order_is_least_significant_first() -> None:
    for column in range(24):
        row = -np.ones((1, 24), np.float32)
        row[0, column] = 1
        expected = [0, 0, 0]
        expected[column // 8] = 1 << (column % 8)
        assert pack_signs(row).tolist() == [expected]


def test_example_of_the_spec() -> None:
    assert pack_signs(np.array([[1.0, -1, -1, 1, 1, -1, 1, -1]])).tolist() == [[0x59]]


def test_zero_is_negative() -> None:
    assert pack_signs(np.array([0.0, -0.0, 1e-38, -1e-38, 0, 0, 0, 0], np.float32)).tolist() == [0b100]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8])
def test_types_that_a_delta_may_have(dtype: type) -> None:
    delta: np.ndarray[Any, Any] = np.array([3, -3, 0, 1, -1, 2, -2, 0], dtype)
    assert unpack_signs(pack_signs(delta), 8).tolist() == [1, -1, -1, 1, -1, 1, -1, -1]


@pytest.mark.parametrize("shape", [(8,), (1, 8), (5, 16), (3, 7, 64), (2, 1, 4104)])
def test_round_trip(shape: tuple[int, ...]) -> None:
    for seed in range(5):
        signs = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)
        bits = pack_signs(signs)
        assert bits.shape == (*shape[:-1], shape[-1] // 8)
        assert bits.dtype == np.uint8
        unpacked = unpack_signs(bits, shape[-1])
        assert unpacked.dtype == np.int8
        assert np.array_equal(unpacked, signs)


def test_round_trip_of_every_byte() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(pack_signs(unpack_signs(every, 128)), every)


def test_strided_input() -> None:
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), (32, 16))
    assert np.array_equal(pack_signs(signs.T), pack_signs(np.ascontiguousarray(signs.T)))


def test_bits_are_not_changed_by_unpacking() -> None:
    bits = np.array([[0x59, 0xFF]], np.uint8)
    unpack_signs(bits, 16)
    assert bits.tolist() == [[0x59, 0xFF]]


def test_row_length_must_be_a_multiple_of_8() -> None:
    with pytest.raises(ShapeError, match="row length 12 is not a multiple of 8"):
        pack_signs(np.zeros((2, 12)))


def test_bits_must_fit_the_row_length() -> None:
    with pytest.raises(ShapeError, match="2 bytes a row, expected 8/8"):
        unpack_signs(np.zeros((3, 2), np.uint8), 8)

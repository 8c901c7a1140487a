"""bench/support/rivals.py: rivals keep to their bytes, and lose what their form makes them lose."""

from __future__ import annotations

from fractions import Fraction
from math import prod

import pytest
import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.errors import InputError

SHAPES = {"a": (256, 512), "b": (768, 128), "narrow": (96, 16), "norm": (256,)}
METHODS = ["svd", "lora", "delta-come"]


@pytest.fixture
def rivals(bench_module):
    return bench_module("support.rivals")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [Fraction(1, 8), Fraction(1, 32)])
def test_ranks_use_up_the_bytes_and_no_more(rivals, method, ratio):
    ranks, n_bytes = rivals.choose_ranks(method, SHAPES, ratio)
    budget = ratio * 2 * sum(map(prod, SHAPES.values()))
    spent = 4 * 256 + sum(rivals.rank_bytes(method, SHAPES[name], k) for name, r in ranks.items() for k in range(r))
    assert n_bytes == spent <= budget
    assert budget - spent < sum(rivals.rank_bytes(method, ne, 0) for ne in SHAPES.values())  # a step of rank everywhere


def test_a_lora_has_one_rank_and_shares_have_one_ratio(rivals):
    ranks, _ = rivals.choose_ranks("lora", SHAPES, Fraction(1, 8))
    assert ranks["a"] == ranks["b"]
    ranks, _ = rivals.choose_ranks("svd", SHAPES, Fraction(1, 8))
    parts = [2 * ranks[name] * sum(SHAPES[name]) / (2 * prod(SHAPES[name])) for name in ("a", "b")]
    assert parts == pytest.approx([0.125, 0.125], abs=0.01)


def test_bits_fall_from_group_to_group(rivals):
    assert [rivals.bits_of(k) for k in (0, 1, 2, 33, 34, 500)] == [8, 8, 3, 3, 2, 2]
    assert rivals.rank_bytes("delta-come", (256, 100), 40) == 64 + 4 + 25 + 2  # 2 bits, and a scale for 128 elements


def test_a_ratio_that_does_not_pay_for_the_vectors_is_refused(rivals):
    with pytest.raises(InputError, match="does not pay"):
        rivals.choose_ranks("svd", {"norm": (256,), "a": (64, 64)}, Fraction(1, 20))


def test_svd_loses_the_singular_values_that_it_leaves_out(rivals):
    D = torch.randn((96, 160), generator=torch.Generator().manual_seed(0))
    lost = D - rivals.compress("svd", D, 20, Blocks(1))
    expected = torch.linalg.svdvals(D.double())[20:].norm()
    assert float(lost.double().norm()) == pytest.approx(float(expected), rel=1e-3)  # F16 rounds a little
    assert torch.equal(rivals.compress("svd", D, 0, Blocks(1)), torch.zeros_like(D))


def test_delta_come_adds_the_rounding_of_few_bits(rivals):
    generator = torch.Generator().manual_seed(0)
    D = torch.randn((200, 4), generator=generator) @ torch.randn((4, 300), generator=generator)
    exact, few = (float((D - rivals.compress(m, D, 4, Blocks(1))).norm() / D.norm()) for m in ("svd", "delta-come"))
    assert exact < 1e-3
    assert 0.05 < few < 0.3  # two of four pairs have 3 bits a side


@pytest.mark.parametrize(("bits", "most"), [(8, 2e-4), (3, 0.045), (2, 0.135)])
def test_rounding_loses_what_the_best_uniform_rounding_of_gaussians_loses(rivals, bits, most):
    vectors = torch.randn((64, 500), generator=torch.Generator().manual_seed(0))  # the last block is shorter
    rounded = rivals.round_to_bits(vectors, bits)
    assert rounded.shape == vectors.shape
    assert float(((rounded - vectors) ** 2).mean() / (vectors**2).mean()) < most
    assert all(len(v.unique()) <= 2**bits for v in rounded[0].split(128))

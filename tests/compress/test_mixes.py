"""mixes.py and spectrum.py: the errors that are predicted, and that no other way to spend the bytes loses less."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from dqrelo_gguf.compress.best import compress
from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.compress.mixes import CODE_STEP, MAX_PLANES, PAIR_LOSS, Choice, Spectrum, choose
from dqrelo_gguf.compress.shared_scales import energies_left
from dqrelo_gguf.compress.sparse_forms import SparseForm, sparse_forms
from dqrelo_gguf.compress.spectrum import energies, leading
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.layout import WeightSpec

GENERATOR = torch.Generator().manual_seed(5)


def delta(n_out: int, n_in: int, decay: float, noise: float) -> torch.Tensor:
    rank = min(n_out, n_in) // 2
    weights = decay ** torch.arange(rank)
    left, right = torch.randn((n_out, rank), generator=GENERATOR), torch.randn((rank, n_in), generator=GENERATOR)
    return (left * weights) @ right / rank**0.5 + noise * torch.randn((n_out, n_in), generator=GENERATOR)


def spectrum_of(D: torch.Tensor, importance: float = 1.0) -> Spectrum:
    with open_blocks(1) as blocks:
        left = energies_left(D, MAX_PLANES, blocks)
        losses = (left / left[0]).tolist() if left[0] > 0 else None
        return Spectrum(D.shape[1], D.shape[0], 1, energies(D, blocks).numpy(), importance, shared_losses=losses)


def all_mixes(s: Spectrum) -> list[Choice]:
    """Every choice of planes and codes, and planes alone that share their scales."""
    mixes = [Choice(p, c) for p in range(MAX_PLANES + 1) for c in range(0, s.max_codes + 1, CODE_STEP) if p or c]
    return [*mixes, *(Choice(p, 0, scale_per_row=False) for p in range(1, MAX_PLANES + 1))]


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (48, 48)], ids=str)
def test_energies_are_the_squared_singular_values(shape: tuple[int, int]) -> None:
    D = delta(*shape, 0.8, 0.1)
    expected = torch.linalg.svdvals(D.double()).square()
    assert np.allclose(spectrum_of(D).energies, expected.numpy(), rtol=1e-5, atol=1e-6 * float(expected[0]))
    with open_blocks(1) as blocks:
        U, V = leading(D, 5, blocks)
    assert float((D - U @ V).norm()) == pytest.approx(float(expected[5:].sum().sqrt()), rel=1e-4)
    # Each factor holds the square root of the singular values.
    assert np.allclose(U.norm(dim=0).numpy(), V.norm(dim=1).numpy(), rtol=1e-3)


def test_the_best_codes_of_a_weight_are_the_best_of_all() -> None:
    """Every number of planes for each of four vectors is tried."""
    spectrum = Spectrum(16, 4, 1, np.array([9.0, 4.0, 1.0, 0.1]), 1.0)
    for n_codes in (8, 16):
        least = min(
            sum(e * PAIR_LOSS[b] for e, b in zip(spectrum.energies, planes, strict=True))
            for planes in product(range(9), repeat=4)
            if sum(planes) == n_codes
        )
        assert spectrum.error(Choice(0, n_codes)) == pytest.approx(least)
        ranks = spectrum.mix(Choice(0, n_codes)).plane_ranks
        assert sum(ranks) == n_codes
        assert list(ranks) == sorted(ranks, reverse=True)


def test_no_other_spending_loses_less() -> None:
    """Three small weights, every mix of each: the price finds the best, or one that only whole steps keep from it."""
    spectra = [spectrum_of(delta(24, 32, d, n), i) for d, n, i in ((0.6, 0.05, 1.0), (0.95, 0.3, 0.5), (0.8, 0.1, 3.0))]
    budget = 1500
    chosen = choose(spectra, Fraction(1, 8), Fraction(budget), 0)

    def loss(mixes: tuple[Choice, ...]) -> float:
        return sum(s.importance * s.error(m) for s, m in zip(spectra, mixes, strict=True))

    def cost(mixes: tuple[Choice, ...]) -> int:
        return sum(s.n_bytes(m) for s, m in zip(spectra, mixes, strict=True))

    options = [all_mixes(s) for s in spectra]
    least = min(loss(mixes) for mixes in product(*options) if cost(mixes) <= budget)
    assert cost(tuple(chosen)) <= budget
    assert loss(tuple(chosen)) <= 1.05 * least


def test_the_predicted_error_is_near_the_measured_one() -> None:
    with open_blocks(2) as blocks:
        for decay, noise in ((0.9, 0.02), (0.97, 0.1), (0.5, 0.3)):
            D = delta(192, 256, decay, noise)
            spectrum = spectrum_of(D)
            for ratio in (4, 8, 16):
                (mix,) = choose([spectrum], Fraction(1, ratio), Fraction(2 * D.numel(), ratio), 0)
                measured = compress(D, spectrum.mix(mix), blocks).error / float(D.norm())
                predicted = spectrum.relative_error(mix)
                # What factors leave has evener rows than D, so planes that share their scales lose less than is predicted.
                assert (0.85 if mix.scale_per_row else 0.8) * predicted <= measured <= 1.15 * predicted


def test_flat_spectra_take_planes_and_steep_ones_do_not() -> None:
    (flat,) = choose([spectrum_of(delta(256, 256, 0.0, 1.0))], Fraction(1, 6), Fraction(2 * 256 * 256, 6), 0)
    (steep,) = choose([spectrum_of(delta(256, 256, 0.9, 0.0))], Fraction(1, 6), Fraction(2 * 256 * 256, 6), 0)
    assert flat[0] == 2
    assert steep[0] == 0


def test_even_rows_share_their_scales_and_uneven_ones_do_not() -> None:
    D = delta(256, 256, 0.0, 1.0)
    for spread, per_row in ((0.0, False), (0.7, True)):
        rows = torch.exp(spread * torch.randn((256, 1), generator=GENERATOR))
        (choice,) = choose([spectrum_of(D * rows)], Fraction(1, 6), Fraction(2 * 256 * 256, 6), 0)
        assert choice.n_planes == 2
        assert choice.scale_per_row is per_row


@pytest.mark.parametrize("n_bytes", [*range(0, 3000, 200), 10**6])
def test_the_best_choice_within_some_bytes(n_bytes: int) -> None:
    spectrum = spectrum_of(delta(48, 64, 0.9, 0.2))
    affordable = [c for c in all_mixes(spectrum) if spectrum.n_bytes(c) <= n_bytes]
    found = spectrum.within(n_bytes)
    if not affordable:
        assert found is None
        return
    assert found is not None
    assert spectrum.n_bytes(found) <= n_bytes
    assert spectrum.error(found) == min(spectrum.error(c) for c in affordable)


def test_what_a_budget_lacks_for_equal_planes_comes_from_the_weight_that_loses_least() -> None:
    """Planes of all weights, and 16 bytes too few: the small weight pays for them, not a large one that happens to be the dearest."""
    shapes = [(512, 512)] * 4 + [(64, 512)]
    spectra = [spectrum_of(gaussian_of(*shape)) for shape in shapes]
    whole = sum(s.n_bytes(Choice(2, 0, scale_per_row=False)) for s in spectra)
    *large, small = choose(spectra, Fraction(1, 8), Fraction(whole - 16), 0)
    assert large == [Choice(2, 0, scale_per_row=False)] * 4
    assert small != large[0]


def gaussian_of(n_out: int, n_in: int) -> torch.Tensor:
    return torch.randn((n_out, n_in), generator=GENERATOR)


def test_importance_moves_bytes() -> None:
    D = delta(64, 64, 0.9, 0.05)
    twice = [spectrum_of(D, 1.0), spectrum_of(D, 100.0)]
    little, much = choose(twice, Fraction(1, 8), Fraction(2 * 2 * 64 * 64, 8), 0)
    assert twice[1].n_bytes(much) > 1.2 * twice[0].n_bytes(little)


def test_a_budget_that_pays_for_nothing_is_refused_with_the_least_that_does() -> None:
    spectra = [spectrum_of(delta(64, 64, 0.9, 0.05))]
    size = Fraction(2 * 64 * 64)
    with pytest.raises(InputError, match=r"--ratio 0.01000: .* Use a ratio of at least (0\.\d+)") as caught:
        choose(spectra, Fraction(1, 100), size / 100, 0)
    least = Fraction(str(caught.value).rsplit(" ", 1)[1])
    assert choose(spectra, least, size * least, 0) == [spectra[0].least]


@pytest.mark.parametrize("ratio", [Fraction(1, n) for n in (3, 8, 13, 20, 32)], ids=str)
def test_the_budget_is_met_from_below(ratio: Fraction) -> None:
    spectra = [spectrum_of(delta(512, n_in, 0.98, 0.02), 1.0) for n_in in (512, 768, 1024)]
    budget = ratio * 2 * sum(s.n_in * s.n_out for s in spectra)
    spent = sum(s.n_bytes(c) for s, c in zip(spectra, choose(spectra, ratio, budget, 0), strict=True))
    assert 0.99 * budget < spent <= budget


@pytest.mark.parametrize("ne", [(64, 331, 1), (72, 51, 3), (256, 256, 1)])
@pytest.mark.parametrize(("n_planes", "n_codes"), [(0, 8), (0, 48), (2, 16), (3, 0)])
@pytest.mark.parametrize("per_row", [True, False])
def test_bytes_are_those_that_the_file_has(
    ne: tuple[int, int, int], n_planes: int, n_codes: int, per_row: bool
) -> None:
    n_in, n_out, n_mat = ne
    spectrum = Spectrum(n_in, n_out, n_mat, np.geomspace(1, 1e-3, min(n_in, n_out)), 1.0)
    choice = Choice(n_planes, n_codes, scale_per_row=per_row)
    ranks = spectrum.mix(choice).plane_ranks
    has_scales = n_planes > 0 and per_row
    spec = WeightSpec("w.weight", ne, n_planes, scale_per_row=has_scales, cscale=has_scales, plane_ranks=ranks)
    assert spectrum.n_bytes(choice) == spec.n_bytes


# --- entries beside mixes


def forms_of(D: torch.Tensor) -> list[SparseForm]:
    with open_blocks(1) as blocks:
        return sparse_forms(D[None].numpy(), blocks)[0]


def sparse_spectrum(share: float, importance: float = 1.0, n_out: int = 256) -> Spectrum:
    """Of a delta of which so many elements changed, at random, by one to three units."""
    D = torch.randint(1, 4, (n_out, 1024), generator=GENERATOR) * (
        torch.rand((n_out, 1024), generator=GENERATOR) < share
    )
    signed = D.float() * (2 * torch.randint(0, 2, D.shape, generator=GENERATOR) - 1)
    return replace(spectrum_of(signed, importance), forms=forms_of(signed))


def chosen_at(spectra: list[Spectrum], ratio: Fraction) -> list[Choice]:
    size = 2 * sum(s.n_in * s.n_out for s in spectra)
    chosen = choose(spectra, ratio, ratio * size, 0)
    assert sum(s.n_bytes(c) for s, c in zip(spectra, chosen, strict=True)) <= ratio * size
    return chosen


def test_entries_are_kept_exactly_where_the_budget_pays_for_them() -> None:
    spectra = [sparse_spectrum(0.05), sparse_spectrum(0.1)]
    for spectrum, choice in zip(spectra, chosen_at(spectra, Fraction(1, 8)), strict=True):
        assert choice.form is not None
        assert spectrum.relative_error(choice) == 0


def test_a_weight_of_many_changes_takes_the_bytes_that_sparse_ones_leave() -> None:
    spectra = [sparse_spectrum(0.03), spectrum_of(delta(256, 1024, 0.9, 0.3))]
    spectra = [replace(s, importance=float(s.energies.sum()) ** -0.5) for s in spectra]
    few, many = chosen_at(spectra, Fraction(1, 8))
    assert few.form is not None
    assert many.form is None
    assert spectra[1].n_bytes(many) > 1.3 * 2 * 256 * 1024 / 8


@pytest.mark.parametrize("share", [0.05, 0.12, 0.3, 0.45])
def test_no_mix_or_form_of_the_same_bytes_loses_less(share: float) -> None:
    for ratio in (Fraction(1, 4), Fraction(1, 8), Fraction(1, 32)):
        spectrum = sparse_spectrum(share)
        (choice,) = chosen_at([spectrum], ratio)
        budget = ratio * 2 * spectrum.n_in * spectrum.n_out
        others = [*all_mixes(spectrum), *(Choice(0, 0, form) for form in spectrum.forms)]
        least = min(spectrum.error(c) for c in others if spectrum.n_bytes(c) <= budget)
        # A price finds no choice above the line through two others; what that costs is bounded by the steps of the forms.
        assert spectrum.error(choice) <= 1.5 * least + 1e-12


def test_a_weight_of_a_single_change_costs_less_than_the_fewest_codes() -> None:
    D = torch.zeros((8, 1024))
    D[3, 5] = 1
    spectrum = replace(spectrum_of(D), forms=forms_of(D))
    assert spectrum.least.form is not None
    assert spectrum.n_bytes(spectrum.least) < spectrum.n_bytes(Choice(0, CODE_STEP))

"""What each byte buys in the method `best`: from the spectra of all deltas to a mix for each weight, under one budget.

A singular vector pair of energy s^2 that is coded with b planes on both sides keeps s^2 (1 - m_b)^2 of it, where m_b is the
coder's loss, so the (b+1)-th plane of a pair, a code, buys s^2 (loss_b - loss_b+1), less from plane to plane and from vector
to vector. The codes of a weight in descending order of what they buy are therefore always a valid mix. Sign planes of the
whole matrix leave a share of everything that the factors leave, more of it where rows share their scales. So the error of
every mix follows from the spectrum, and one price for a byte, the same for all weights, decides all mixes (a Lagrangian). A
weight of which few elements changed may also be stored as single entries (sparse_forms.py), of which bytes and error are known.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.best import Mix
from dqrelo_gguf.compress.budget import too_small
from dqrelo_gguf.compress.sparse_forms import SparseForm

F64 = npt.NDArray[np.float64]

# What b planes lose of a vector's energy, b from 0: measured on Gaussian vectors of 1536 elements (tests/compress/test_codes.py).
LOSS = (1.0, 0.3634, 0.1170, 0.0367, 0.0112, 0.0034, 0.0010, 0.0003, 0.0001)
# The same of a pair of vectors that are both coded.
PAIR_LOSS = tuple(1 - (1 - loss) ** 2 for loss in LOSS)
MAX_PLANES = 3
MAX_CODES_A_SIDE = 4
CODE_STEP = 8  # a row of A is whole bytes


class Choice(NamedTuple):
    """What a weight is stored as.

    Args:
        n_planes, n_codes: of a mix.
        form: entries instead of that; None for a mix.
        scale_per_row: of a mix's planes (best.Mix).
    """

    n_planes: int
    n_codes: int
    form: SparseForm | None = None
    scale_per_row: bool = True


@dataclass
class Spectrum:
    """A weight for which a mix or a sparse form is wanted.

    Args:
        n_in, n_out, n_mat: row length, rows, matrices (experts; their mix is the same).
        energies: squared singular values, descending, added up over the matrices; (min(n_in, n_out),) float64.
        importance: what one unit of squared error of this weight counts.
        with_column_scales: planes with a scale for each row have them, too; they do without under a metric (best.py).
        shared_losses: what planes lose of the energy, by their number from 0, where all rows share their scales; None where they shall not.
        forms: the sparse ones, by ascending bytes; none where too much changed.
        n_changed: elements that are not 0.
    """

    n_in: int
    n_out: int
    n_mat: int
    energies: F64
    importance: float
    with_column_scales: bool = True
    shared_losses: Sequence[float] | None = None
    forms: Sequence[SparseForm] = ()
    n_changed: int = 0

    def __post_init__(self) -> None:
        side = len(self.energies)
        gains = np.array([a - b for a, b in pairwise(PAIR_LOSS)])
        table = self.energies[:, None] * gains  # (vector, plane)
        order = np.argsort(-table, axis=None, kind="stable")[: MAX_CODES_A_SIDE * side]
        self._plane_of_code = order % len(gains)
        self._gains: F64 = table.reshape(-1)[order]
        self._bought: F64 = np.concatenate([[0.0], np.cumsum(self._gains)])

    @property
    def step_bytes(self) -> int:
        """Bytes of CODE_STEP codes: their signs on both sides, and two BF16 scales each."""
        return self.n_mat * (self.n_in + self.n_out + 4 * CODE_STEP)

    def plane_bytes(self, n_planes: int, scale_per_row: bool) -> int:
        """Bytes of the planes of the matrix, with their scales."""
        if n_planes == 0:
            return 0
        n_scales = self.n_out if scale_per_row else 1
        column_bytes = 4 * self.n_in if scale_per_row and self.with_column_scales else 0
        return self.n_mat * (n_planes * (self.n_in * self.n_out // 8 + 4 * n_scales) + column_bytes)

    def _plane_loss(self, choice: Choice) -> float:
        """What the planes of a mix lose of the energy that its factors leave."""
        losses = LOSS if choice.scale_per_row else self.shared_losses
        assert losses is not None
        return losses[choice.n_planes]

    @property
    def max_codes(self) -> int:
        return len(self._gains) // CODE_STEP * CODE_STEP

    def mix(self, choice: Choice) -> Mix:
        """The best mix of so many planes and codes."""
        ranks = np.bincount(self._plane_of_code[: choice.n_codes], minlength=1)
        return Mix(choice.n_planes, tuple(int(r) for r in ranks) if choice.n_codes else (), choice.scale_per_row)

    def error(self, choice: Choice) -> float:
        """||D - D_hat||^2: of a mix as it is predicted."""
        if choice.form is not None:
            return choice.form.error
        left = float(self.energies.sum() - self._bought[choice.n_codes])
        return self._plane_loss(choice) * max(left, 0.0)

    def relative_error(self, choice: Choice) -> float:
        """||D - D_hat|| / ||D||, likewise."""
        total = float(self.energies.sum())
        return (self.error(choice) / total) ** 0.5 if total > 0 else 0.0

    @property
    def least(self) -> Choice:
        """The cheapest choice: a mix of the fewest codes, or something else of still fewer bytes."""
        return min([Choice(0, CODE_STEP), *self._others()], key=self.n_bytes)

    def n_bytes(self, choice: Choice) -> int:
        if choice.form is not None:
            return choice.form.n_bytes
        return self.plane_bytes(choice.n_planes, choice.scale_per_row) + choice.n_codes // CODE_STEP * self.step_bytes

    def at_price(self, price: float) -> Choice:
        """The choice where a byte costs `price`: that of least importance * error + price * bytes."""
        mixes = [Choice(p, self._codes_at(price, p)) for p in range(MAX_PLANES + 1)]
        return min([*mixes, *self._others()], key=lambda c: self.importance * self.error(c) + price * self.n_bytes(c))

    def within(self, n_bytes: int) -> Choice | None:
        """The choice of the least error that has at most so many bytes; None where there is none."""
        found = [other for other in self._others() if self.n_bytes(other) <= n_bytes]
        for p in range(MAX_PLANES + 1):
            n_steps = (n_bytes - self.n_bytes(Choice(p, 0))) // self.step_bytes
            if n_steps >= (1 if p == 0 else 0):
                found.append(Choice(p, min(n_steps * CODE_STEP, self.max_codes)))
        return min(found, key=self.error, default=None)

    def above(self, choice: Choice) -> Choice | None:
        """The next larger choice of the same kind: one step of codes more, or more entries; None where there is none."""
        if choice.form is None:
            more = choice.n_codes + CODE_STEP
            return choice._replace(n_codes=more) if choice.n_codes < self.max_codes else None
        better = (f for f in self.forms if f.n_bytes > choice.form.n_bytes and f.error < choice.form.error)
        return next((Choice(0, 0, form) for form in better), None)

    def _others(self) -> list[Choice]:
        """What stands alone: sparse forms, and planes of which all rows share their scales.

        Such planes would be cheaper beside codes, too. But there they only make planes win over codes, and answers lose by it
        (docs/method.md).
        """
        even = [] if self.shared_losses is None else range(1, MAX_PLANES + 1)
        return [*(Choice(0, 0, form) for form in self.forms), *(Choice(p, 0, scale_per_row=False) for p in even)]

    def _codes_at(self, price: float, n_planes: int) -> int:
        worth = self.importance * LOSS[n_planes] * self._gains
        n_codes = min(int(np.searchsorted(-worth, -price * self.step_bytes / CODE_STEP)), self.max_codes)
        n_codes = n_codes // CODE_STEP * CODE_STEP
        return max(n_codes, CODE_STEP) if n_planes == 0 else n_codes


def choose(spectra: list[Spectrum], ratio: Fraction, n_bytes: Fraction, n_fixed_bytes: int) -> list[Choice]:
    """What each weight is stored as, so that all together cost at most the budget.

    The price is the lowest that the budget allows, or the one just below, with what is too much taken from the one weight that
    loses least by it. What is left buys single steps, those that buy most first.

    Args:
        spectra: the weights.
        ratio: for the message.
        n_bytes: the budget.
        n_fixed_bytes: what is spent of it already.

    Raises:
        InputError: the budget does not pay for a few codes of every weight.
    """
    chosen = [s.least for s in spectra]
    budget = n_bytes - n_fixed_bytes
    if _total(spectra, chosen) > budget:
        least = ratio * (_total(spectra, chosen) + n_fixed_bytes) / n_bytes
        raise too_small(ratio, "norms, biases and the smallest factors", least)
    low, high = 1e-40, 1e40
    for _ in range(200):
        price = (low * high) ** 0.5
        at_price = [s.at_price(price) for s in spectra]
        if _total(spectra, at_price) <= budget:
            chosen, high = at_price, price
        else:
            low = price
    found = [chosen, *_cut(spectra, [s.at_price(low) for s in spectra], budget)]
    return min((_spend(spectra, c, budget - _total(spectra, c)) for c in found), key=lambda c: _loss(spectra, c))


def _total(spectra: list[Spectrum], chosen: list[Choice]) -> int:
    return sum(s.n_bytes(c) for s, c in zip(spectra, chosen, strict=True))


def _loss(spectra: list[Spectrum], chosen: list[Choice]) -> float:
    return sum(s.importance * s.error(c) for s, c in zip(spectra, chosen, strict=True))


def _cut(spectra: list[Spectrum], chosen: list[Choice], budget: Fraction) -> list[list[Choice]]:
    """The choices with one of them changed so that all together keep to the budget, the one that adds the least loss; none where none does."""
    excess = math.ceil(_total(spectra, chosen) - budget)
    cuts = []
    for i, (s, now) in enumerate(zip(spectra, chosen, strict=True)):
        less = s.within(s.n_bytes(now) - excess)
        if less is not None:
            cuts.append((s.importance * (s.error(less) - s.error(now)), i, less))
    if not cuts:
        return []
    _, i, less = min(cuts, key=lambda cut: cut[:2])
    return [[*chosen[:i], less, *chosen[i + 1 :]]]


def _spend(spectra: list[Spectrum], chosen: list[Choice], left: Fraction) -> list[Choice]:
    """Buys steps with the bytes that are left."""
    chosen = list(chosen)
    offers: list[tuple[float, int, int, Choice]] = []

    def offer(i: int) -> None:
        s, now = spectra[i], chosen[i]
        following = s.above(now)
        if following is not None:
            cost = s.n_bytes(following) - s.n_bytes(now)
            gain = s.importance * (s.error(now) - s.error(following))
            heapq.heappush(offers, (-gain / cost, i, cost, following))

    for i in range(len(spectra)):
        offer(i)
    while offers:
        _, i, cost, following = heapq.heappop(offers)
        if cost > left:
            continue
        left -= cost
        chosen[i] = following
        offer(i)
    return chosen

"""What each byte buys in the method `best`: from the spectra of all deltas to a mix for each weight, under one budget.

A singular vector pair of energy s^2 that is coded with b planes on both sides keeps s^2 (1 - m_b)^2 of it, where m_b is the
coder's loss, so the (b+1)-th plane of a pair, a code, buys s^2 (loss_b - loss_b+1), less from plane to plane and from vector
to vector. The codes of a weight in descending order of what they buy are therefore always a valid mix. Sign planes of the
whole matrix leave a share of everything that the factors leave. So the error of every mix follows from the spectrum, and one
price for a byte, the same for all weights, decides all mixes (a Lagrangian).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.best import Mix
from dqrelo_gguf.compress.budget import too_small

F64 = npt.NDArray[np.float64]

# What b planes lose of a vector's energy, b from 0: measured on Gaussian vectors of 1536 elements (tests/compress/test_codes.py).
LOSS = (1.0, 0.3634, 0.1170, 0.0367, 0.0112, 0.0034, 0.0010, 0.0003, 0.0001)
# The same of a pair of vectors that are both coded.
PAIR_LOSS = tuple(1 - (1 - loss) ** 2 for loss in LOSS)
MAX_PLANES = 3
MAX_CODES_A_SIDE = 4
CODE_STEP = 8  # a row of A is whole bytes


@dataclass
class Spectrum:
    """A weight whose mix is wanted.

    Args:
        n_in, n_out, n_mat: row length, rows, matrices (experts; their mix is the same).
        energies: squared singular values, descending, added up over the matrices; (min(n_in, n_out),) float64.
        importance: what one unit of squared error of this weight counts.
        with_column_scales: planes have them; they do without under a metric (best.py).
    """

    n_in: int
    n_out: int
    n_mat: int
    energies: F64
    importance: float
    with_column_scales: bool = True

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

    def plane_bytes(self, n_planes: int) -> int:
        """Bytes of the planes of the matrix, with their scales."""
        if n_planes == 0:
            return 0
        column_bytes = 4 * self.n_in if self.with_column_scales else 0
        return self.n_mat * (n_planes * (self.n_in * self.n_out // 8 + 4 * self.n_out) + column_bytes)

    @property
    def max_codes(self) -> int:
        return len(self._gains) // CODE_STEP * CODE_STEP

    def mix(self, n_planes: int, n_codes: int) -> Mix:
        """The best mix of so many planes and codes."""
        ranks = np.bincount(self._plane_of_code[:n_codes], minlength=1)
        return Mix(n_planes, tuple(int(r) for r in ranks) if n_codes else ())

    def error(self, n_planes: int, n_codes: int) -> float:
        """||D - D_hat||^2 that is predicted."""
        left = float(self.energies.sum() - self._bought[n_codes])
        return LOSS[n_planes] * max(left, 0.0)

    def relative_error(self, n_planes: int, n_codes: int) -> float:
        """||D - D_hat|| / ||D|| that is predicted."""
        total = float(self.energies.sum())
        return (self.error(n_planes, n_codes) / total) ** 0.5 if total > 0 else 0.0

    @property
    def least(self) -> tuple[int, int]:
        """The cheapest mix that the format can store."""
        return 0, CODE_STEP

    def n_bytes(self, n_planes: int, n_codes: int) -> int:
        return self.plane_bytes(n_planes) + n_codes // CODE_STEP * self.step_bytes

    def at_price(self, price: float) -> tuple[int, int]:
        """Planes and codes where a byte costs `price`: those of least importance * error + price * bytes."""
        choices = [(p, self._codes_at(price, p)) for p in range(MAX_PLANES + 1)]
        return min(choices, key=lambda c: self.importance * self.error(*c) + price * self.n_bytes(*c))

    def _codes_at(self, price: float, n_planes: int) -> int:
        worth = self.importance * LOSS[n_planes] * self._gains
        n_codes = min(int(np.searchsorted(-worth, -price * self.step_bytes / CODE_STEP)), self.max_codes)
        n_codes = n_codes // CODE_STEP * CODE_STEP
        return max(n_codes, self.least[1]) if n_planes == 0 else n_codes


def choose(spectra: list[Spectrum], ratio: Fraction, n_bytes: Fraction, n_fixed_bytes: int) -> list[tuple[int, int]]:
    """Planes and codes of each weight that together cost at most the budget.

    The price is the lowest that the budget allows. What is left buys single steps of codes, those that buy most first.

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
    return _spend(spectra, chosen, budget - _total(spectra, chosen))


def _total(spectra: list[Spectrum], chosen: list[tuple[int, int]]) -> int:
    return sum(s.n_bytes(*c) for s, c in zip(spectra, chosen, strict=True))


def _spend(spectra: list[Spectrum], chosen: list[tuple[int, int]], left: Fraction) -> list[tuple[int, int]]:
    """Buys steps of codes with the bytes that are left."""
    chosen = list(chosen)

    def offer(i: int) -> tuple[float, int]:
        p, c = chosen[i]
        s = spectra[i]
        gain = s.importance * (s.error(p, c) - s.error(p, c + CODE_STEP))
        return -gain / s.step_bytes, i

    offers = [offer(i) for i, s in enumerate(spectra) if chosen[i][1] < s.max_codes]
    heapq.heapify(offers)
    while offers:
        _, i = heapq.heappop(offers)
        p, c = chosen[i]
        cost = spectra[i].step_bytes
        if cost > left:
            continue
        left -= cost
        chosen[i] = p, c + CODE_STEP
        if chosen[i][1] < spectra[i].max_codes:
            heapq.heappush(offers, offer(i))
    return chosen

"""From a ratio to ranks: what a delta may weigh, and how its bytes are spread over the weights.

The ratio counts the bytes of every tensor in the file against 16 bits for each element of the weights that they
replace. Sign bits, scales and weights kept whole are paid first; what they leave buys ranks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Literal, Protocol

from dqrelo_gguf.compress.factors import block_of, row_bytes
from dqrelo_gguf.errors import InputError

VectorMode = Literal["whole", "paper"]

# It is b of the paper's Eq. 16: the bits of a full-precision weight.
FULL_BITS = 16
# A matrix with fewer elements is kept whole: it has at most 4 KiB, and up to four tensors instead of one cost about 1 KiB
# of padding, names and digests.
MIN_ELEMENTS = 1024


class Steps(Protocol):
    """A weight that is bought in steps of equal bytes: of rank, or of codes."""

    @property
    def n_elements(self) -> int: ...
    @property
    def step_bytes(self) -> int: ...
    @property
    def least_steps(self) -> int: ...
    @property
    def max_steps(self) -> int: ...


@dataclass(frozen=True)
class MatrixShape:
    """A weight that is stored with signs, factors or both: `n_mat` matrices (experts) of n_out rows of n_in elements."""

    name: str
    n_in: int
    n_out: int
    n_mat: int
    u_type: str
    v_type: str
    n_planes: int = 1

    @property
    def n_elements(self) -> int:
        return self.n_in * self.n_out * self.n_mat

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the sign bits and of one float32 scale a plane and matrix."""
        return self.n_planes * (self.n_elements // 8 + 4 * self.n_mat)

    @property
    def step(self) -> int:
        """Ranks come in multiples of this: a row of U is `rank` elements long."""
        return block_of(self.u_type)

    @property
    def step_bytes(self) -> int:
        """Bytes of one step of rank."""
        return self.n_mat * (
            self.n_out * row_bytes(self.u_type, self.step) + self.step * row_bytes(self.v_type, self.n_in)
        )

    @property
    def least_steps(self) -> int:
        """A weight without planes needs some rank, or the file would hold nothing of it."""
        return 0 if self.n_planes > 0 else 1

    @property
    def max_steps(self) -> int:
        return min(self.n_in, self.n_out) // self.step


def factor_types(n_in: int, n_out: int, factor_type: str) -> tuple[str, str]:
    """The types of U and V: the wanted one, or F16 where the rows do not fill its blocks."""
    block = block_of(factor_type)
    u_type = factor_type if min(n_in, n_out) >= block else "F16"
    return u_type, factor_type if n_in % block == 0 else "F16"


def is_matrix(ne: tuple[int, ...]) -> bool:
    """True for a weight that is stored with signs; `ne` is ggml's order, row length first."""
    while len(ne) > 1 and ne[-1] == 1:
        ne = ne[:-1]
    return len(ne) in (2, 3) and ne[0] % 8 == 0 and 1 not in ne and prod(ne) >= MIN_ELEMENTS


def parse_ratio(text: str) -> Fraction:
    """Reads "1/8" or "0.125".

    >>> parse_ratio("1/8") == parse_ratio("0.125")
    True

    Raises:
        InputError: not a number, or not between 0 and 1.
    """
    try:
        ratio = Fraction(text)
    except (ValueError, ZeroDivisionError) as e:
        raise InputError(
            f"--ratio {text}: not a ratio, expected a fraction such as 1/8 or a decimal such as 0.125"
        ) from e
    if not 0 < ratio < 1:
        raise InputError(f"--ratio {text}: must lie between 0 and 1 (1 is the size of the fine-tune in 16 bits)")
    return ratio


def ranks_for_ratio(ratio: Fraction, matrices: list[MatrixShape], n_vector_elements: int) -> list[int]:
    """The rank of each matrix under one byte budget.

    Every matrix gets bytes in proportion to its elements; what rounding down leaves goes to the matrices that were cut
    most, one step each, as long as it lasts.

    Args:
        ratio: of the whole file.
        matrices: the weights stored with signs.
        n_vector_elements: elements of the weights kept whole, in float32.

    Raises:
        InputError: the ratio does not pay for the sign bits, the vectors, and some rank where there are no signs.
    """
    steps = spread(_bytes_of_factors(ratio, matrices, n_vector_elements), matrices)
    return [n * m.step for n, m in zip(steps, matrices, strict=True)]


def _bytes_of_factors(ratio: Fraction, matrices: list[MatrixShape], n_vector_elements: int) -> Fraction:
    """What the sign bits, scales and vectors leave for factors.

    Raises:
        InputError: less than nothing.
    """
    n_elements = sum(m.n_elements for m in matrices) + n_vector_elements
    fixed = sum(m.fixed_bytes for m in matrices) + 4 * n_vector_elements
    budget = ratio * n_elements * FULL_BITS / 8
    least_factors = sum(m.least_steps * m.step_bytes for m in matrices)
    if budget < fixed + least_factors:
        what = "the vectors and factors of the lowest rank" if least_factors else "the sign bits, scales and vectors"
        raise too_small(ratio, what, Fraction(8 * (fixed + least_factors), FULL_BITS * n_elements))
    return budget - fixed


def too_small(ratio: Fraction, what: str, least: Fraction) -> InputError:
    """The error of a ratio that does not pay for what every delta of a method has."""
    return InputError(
        f"--ratio {shown_ratio(ratio)}: {what} alone cost {shown_ratio(least)}. Use a ratio of at least {ratio_up(least)}"
    )


def spread(left: Fraction, matrices: Sequence[Steps]) -> list[int]:
    """Steps for each matrix that together cost at most `left` bytes, which pay for the least ones."""
    steps = [0] * len(matrices)
    open_ = list(range(len(matrices)))
    while open_:
        n_open = sum(matrices[i].n_elements for i in open_)
        shares = {i: left * matrices[i].n_elements / n_open / matrices[i].step_bytes for i in open_}
        # A matrix that needs more than its share takes it from the others; one at full rank leaves its surplus to them.
        settled = {i: matrices[i].least_steps for i in open_ if shares[i] < matrices[i].least_steps} or {
            i: matrices[i].max_steps for i in open_ if shares[i] >= matrices[i].max_steps
        }
        if not settled:
            break
        for i, n in settled.items():
            steps[i] = n
            left -= n * matrices[i].step_bytes
        open_ = [i for i in open_ if i not in settled]
    for i in open_:
        steps[i] = int(shares[i])
        left -= steps[i] * matrices[i].step_bytes
    for i in sorted(open_, key=lambda i: (steps[i] - shares[i], i)):
        if matrices[i].step_bytes <= left:
            steps[i] += 1
            left -= matrices[i].step_bytes
    return steps


def ranks_of_paper(ratio: Fraction, matrices: list[MatrixShape], n_vector_elements: int) -> list[int]:
    """r = floor(gamma n m / (n + m)) with gamma = ratio - 1/16, Eqs. 12 and 16; rounded down to the factors' blocks.

    1/16 is what the one plane takes; without planes gamma is the ratio.

    The equations count neither scales nor vectors, and a factor's number as 16 bits: gamma is lowered by what those cost, so that the
    file keeps to the ratio.

    Raises:
        InputError: the ratio does not pay for the sign bits, the scales and the vectors.
    """
    left = _bytes_of_factors(ratio, matrices, n_vector_elements)
    per_gamma = [Fraction(m.n_out * m.n_in, m.n_out + m.n_in) for m in matrices]  # ranks
    cost = sum(ranks * m.step_bytes / m.step for ranks, m in zip(per_gamma, matrices, strict=True))
    n_planes = max((m.n_planes for m in matrices), default=0)
    gamma = min(ratio - Fraction(n_planes, FULL_BITS), left / cost) if cost else Fraction(0)
    found = [int(gamma * ranks) // m.step * m.step for ranks, m in zip(per_gamma, matrices, strict=True)]
    bad = next((m for m, rank in zip(matrices, found, strict=True) if rank < m.least_steps), None)
    if bad is not None:
        raise InputError(
            f"--ratio {shown_ratio(ratio)}: the rank equation gives {bad.name} no rank. Use a larger ratio"
        )
    return found


def ranks_fixed(rank: int, matrices: list[MatrixShape]) -> list[int]:
    """`rank` everywhere, or the full rank of a smaller matrix.

    Raises:
        InputError: the factors' type has blocks that the rank does not fill, or a matrix would have nothing.
    """
    if rank == 0 and any(m.least_steps > 0 for m in matrices):
        raise InputError("--rank 0: leaves nothing where there are no sign planes, expected at least 1")
    bad = next((m for m in matrices if rank % m.step != 0), None)
    if bad is not None:
        raise InputError(f"--rank {rank}: {bad.u_type} factors need a multiple of {bad.step}")
    return [min(rank, m.max_steps * m.step) for m in matrices]


def rank_within(n_bytes: int, matrices: list[MatrixShape]) -> int:
    """The largest rank that all matrices can have, each up to its own full rank, within so many bytes; 0 where none fits."""
    step = max((m.step for m in matrices), default=1)
    most = max((m.max_steps * m.step for m in matrices), default=0)

    def cost(rank: int) -> int:
        ranks = ranks_fixed(rank, matrices)
        return sum(r // m.step * m.step_bytes for r, m in zip(ranks, matrices, strict=True))

    return step * bisect_right(range(step, most + 1, step), n_bytes, key=cost)


def shown_ratio(ratio: Fraction) -> str:
    """A ratio for people: a short fraction, or a decimal."""
    return str(ratio) if ratio.denominator <= 64 else f"{float(ratio):.5f}"


def ratio_up(ratio: Fraction) -> str:
    """A decimal with five digits that is not smaller."""
    return f"{-(-ratio * 100000 // 1) / 100000:.5f}"

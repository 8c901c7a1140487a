"""One weight in stages: sign planes with one scale each and a truncated SVD, each of what the stages before leave.

("sign", "svd") is the paper's method, arXiv:2604.16940 section 3.3; ("sign",) is BitDelta's form, arXiv:2402.10193; the other
orders are those of the paper's Table 3. Pure maths on float32 matrices of shape (n_out, n_in).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks, row_slices
from dqrelo_gguf.compress.factors import store_factor, stored_values
from dqrelo_gguf.compress.lowrank import SvdMethod, truncated_svd
from dqrelo_gguf.compress.paper import mean_abs, norm, subtract_signs
from dqrelo_gguf.errors import NonFiniteError


@dataclass(frozen=True)
class LowRankOptions:
    """What decides the numbers of the low-rank part, beside the matrix and the rank."""

    u_type: str = "F16"
    v_type: str = "F16"
    svd: SvdMethod = "randomised"
    seed: int = 0


@dataclass
class CompressedMatrix:
    """One compressed matrix.

    Args:
        planes: (sign bits (n_out, n_in // 8), alpha) of each sign plane.
        u: (n_out, rank) as stored, so (n_out, row bytes) uint8 for quantised types; None without a low-rank part.
        v: (rank, n_in) as stored.
        error: ||D - D_hat||_F with the stored factors.
    """

    planes: list[tuple[npt.NDArray[np.uint8], np.float32]] = field(default_factory=list)
    u: npt.NDArray[np.generic] | None = None
    v: npt.NDArray[np.generic] | None = None
    error: float = 0.0


def compress(
    D: torch.Tensor, stages: Sequence[str], rank: int, options: LowRankOptions, blocks: Blocks
) -> CompressedMatrix:
    """Compresses one delta; with the paper's stages these are its Eqs. 6 to 15.

    Args:
        D: (n_out, n_in) float32, n_in a multiple of 8. Destroyed: holds the error D - D_hat afterwards.
        stages: "sign" and "svd" in any order, "svd" at most once.
        rank: of the low-rank part; 0 for none.
        options: of the low-rank part.
        blocks: the threads to work with.

    Raises:
        NonFiniteError: a factor does not fit its type.

    >>> from dqrelo_gguf.compress.blocks import Blocks
    >>> out = compress(torch.full((2, 8), 0.5), ("sign",), 0, LowRankOptions(), Blocks(1))
    >>> float(out.planes[0][1]), out.error
    (0.5, 0.0)
    """
    out = CompressedMatrix()
    for stage in stages:
        if stage == "sign":
            alpha = mean_abs(D, blocks)
            out.planes.append((subtract_signs(D, alpha, blocks), alpha))
        elif rank > 0:
            out.u, out.v = _subtract_low_rank(D, rank, options, blocks)
    out.error = norm(D, blocks)
    return out


def _subtract_low_rank(
    R: torch.Tensor, rank: int, options: LowRankOptions, blocks: Blocks
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """Turns R into R - U V in place, Eqs. 11 to 14. Returns U and V as stored."""
    U, V = truncated_svd(R, rank, blocks, seed=options.seed, method=options.svd)
    u, v = store_factor(U, options.u_type), store_factor(V, options.v_type)
    # What is left is against what the runtime will multiply with.
    U, V = stored_values(u, options.u_type).to(R.device), stored_values(v, options.v_type).to(R.device)
    if not (bool(torch.isfinite(U).all()) and bool(torch.isfinite(V).all())):
        raise NonFiniteError(f"a factor does not fit {options.u_type}/{options.v_type}. Use --factor-type bf16")
    blocks.run(lambda s: R[s].addmm_(U[s], V, alpha=-1), row_slices(*R.shape))
    return u, v

"""What the entries of a sparse weight mean, read literally from docs/format.md."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.sparse import Sparse


def literal_d_hat(sparse: Sparse, n_in: int) -> npt.NDArray[np.float32]:
    """D_hat, entry by entry; ([n_expert,] n_out, n_in)."""
    n_rows = sparse.start.size
    D_hat = np.zeros((n_rows, n_in), np.float32)
    for i, at in enumerate(sparse.start.reshape(-1).tolist()):
        scale = 1.0 if sparse.scale is None else float(sparse.scale.reshape(-1)[i])
        for k, j in enumerate(_columns(sparse, i, at, n_in)):
            D_hat[i, j] = scale * _value(sparse, at + k)
    return D_hat.reshape(*sparse.start.shape, n_in)


def _columns(sparse: Sparse, row: int, at: int, n_in: int) -> list[int]:
    """The columns of a row's entries, of which the first is entry `at`."""
    n_rows = sparse.start.size
    if sparse.mask is not None:
        bits = sparse.mask.reshape(n_rows, -1)[row]
        return [j for j in range(n_in) if bits[j // 8] >> (j % 8) & 1]
    assert sparse.count is not None
    assert sparse.column is not None
    columns: list[int] = []
    for b, n in enumerate(sparse.count.reshape(n_rows, -1)[row].tolist()):
        columns += [256 * b + c for c in sparse.column[at : at + n].tolist()]
        at += n
    return columns


def _value(sparse: Sparse, k: int) -> float:
    """An entry's value without its scale."""
    if sparse.scale is None:
        return float(sparse.values[k])
    return float(np.array([int(sparse.values[k]) << 8], np.uint16).view(np.float16)[0])

"""How far one model's next-token probabilities are from another's, row by row of logits; computed in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

# Logits that are in float64 at once: a few such arrays lie in a core's cache.
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Compared:
    """A model against a reference, for each row.

    Args:
        kl: KL(reference || model) in nats.
        nll: -log of the model's probability of the token that follows.
        same_top: whether both find the same token most probable.
    """

    kl: F32
    nll: F32
    same_top: npt.NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: list[Compared]) -> Compared:
        """One after the other."""
        return cls(
            np.concatenate([p.kl for p in parts]),
            np.concatenate([p.nll for p in parts]),
            np.concatenate([p.same_top for p in parts]),
        )


def compare(p_logits: F32, models: list[F32], targets: npt.NDArray[np.int32]) -> tuple[F32, list[Compared]]:
    """A reference against several models.

    Args:
        p_logits: the reference's, [n_rows, n_vocab].
        models: each [n_rows, n_vocab]. A model's vocabulary may have more rows of padding than the reference's, or fewer:
            the reference's padding is then left out.
        targets: the token that follows each row, [n_rows].

    Returns:
        -log P(target) of the reference, [n_rows], and the comparison of each model.
    """
    nll, compared = [], [list[Compared]() for _ in models]
    for rows in _row_blocks(*p_logits.shape):
        references: dict[int, _Reference] = {}  # by the number of tokens that they have
        for i, q in enumerate(models):
            n_vocab = min(q.shape[1], p_logits.shape[1])
            if n_vocab not in references:
                references[n_vocab] = _Reference(p_logits[rows, :n_vocab], targets[rows])
            compared[i].append(references[n_vocab].against(q[rows]))
        whole = references.get(p_logits.shape[1]) or _Reference(p_logits[rows], targets[rows])
        nll.append(whole.nll)
    return np.concatenate(nll), [Compared.joined(parts) for parts in compared]


def divergence(p_logits: F32, q_logits: F32) -> F64:
    """KL(p || q) of each row in nats, from logits."""
    out = []
    for rows in _row_blocks(*p_logits.shape):
        reference = _Reference(p_logits[rows], np.zeros(rows.stop - rows.start, np.int32))
        out.append(reference.divergence(_wide(q_logits[rows])).numpy())
    return np.concatenate(out)


@dataclass(frozen=True)
class Candidates:
    """The most probable tokens of each row, best first.

    Args:
        ids: int32 [n_rows, k].
        p: their probabilities, [n_rows, k].
    """

    ids: npt.NDArray[np.int32]
    p: F32


def candidates(logits: F32, k: int) -> Candidates:
    """The k most probable tokens of each row of logits, [n_rows, n_vocab]; all of a vocabulary that has fewer."""
    k = min(k, logits.shape[1])
    ids, p = [np.empty((0, k), np.int32)], [np.empty((0, k), np.float32)]
    for rows in _row_blocks(*logits.shape):
        wide = _wide(logits[rows])
        top = wide.topk(k, dim=1)
        ids.append(top.indices.numpy().astype(np.int32))
        p.append(torch.exp(top.values - torch.logsumexp(wide, 1, keepdim=True)).numpy().astype(np.float32))
    return Candidates(np.concatenate(ids), np.concatenate(p))


class _Reference:
    """A block of the reference's rows."""

    def __init__(self, logits: F32, targets: npt.NDArray[np.int32]) -> None:
        self._logits = _wide(logits)
        self._targets = torch.from_numpy(targets.astype(np.int64))[:, None]
        self._log_sum = torch.logsumexp(self._logits, 1)
        self._odds = torch.exp(self._logits - self._log_sum[:, None])
        self._top = self._logits.argmax(1)

    @property
    def nll(self) -> F32:
        return _nll(self._logits, self._log_sum, self._targets)

    def divergence(self, logits: torch.Tensor) -> torch.Tensor:
        apart = self._logits - logits[:, : self._logits.shape[1]]
        apart *= self._odds
        # Rounding may leave a hair below 0 where both are the same.
        return (apart.sum(1) - self._log_sum + torch.logsumexp(logits, 1)).clamp_(min=0)

    def against(self, model_logits: F32) -> Compared:
        logits = _wide(model_logits)
        return Compared(
            self.divergence(logits).numpy().astype(np.float32),
            _nll(logits, torch.logsumexp(logits, 1), self._targets),
            (logits.argmax(1) == self._top).numpy(),
        )


def _wide(logits: F32) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(logits)).double()


def _nll(logits: torch.Tensor, log_sum: torch.Tensor, targets: torch.Tensor) -> F32:
    out: F32 = (log_sum - logits.gather(1, targets)[:, 0]).numpy().astype(np.float32)
    return out


def _row_blocks(n_rows: int, n_vocab: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // (8 * n_vocab))
    for first in range(0, n_rows, step):
        yield slice(first, min(first + step, n_rows))

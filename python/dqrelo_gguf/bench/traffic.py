"""Bytes of weights that a generated token reads: what bounds decoding where memory is the limit."""

from __future__ import annotations

from collections.abc import Collection

from dqrelo_gguf.file.model_file import ModelFile
from dqrelo_gguf.file.reader import DeltaReader

# Tables of which a token reads one row. The first is the output matrix too where there is no other.
_EMBEDDING = "token_embd.weight"
_TABLES = frozenset({_EMBEDDING, "position_embd.weight", "token_types.weight", "per_layer_token_embd.weight"})
_OUTPUT = "output.weight"


class Traffic:
    """Counts the bytes that a step reads.

    Args:
        base: the base.
        unread: weights that no graph reads.
    """

    def __init__(self, base: ModelFile, unread: Collection[str] = ()) -> None:
        self._base = base
        self._unread = frozenset(unread)
        self._is_tied = _OUTPUT not in base.tensors

    def of_base(self, n_streams: int = 1) -> int:
        """Bytes of the base in a step of `n_streams` tokens."""
        return round(sum(t.n_bytes * self._share(t.name, n_streams) for t in self._base.tensors.values()))

    def of_delta(self, delta: DeltaReader, n_streams: int = 1) -> int:
        """Bytes of a delta in a step that has `n_streams` tokens of it."""
        return round(sum(w.n_bytes * self._share(w.name, n_streams) for w in delta.weights))

    def _share(self, name: str, n_streams: int) -> float:
        """How much of a weight a step reads; of stacked experts, as many as it can choose at most."""
        if name in self._unread or (name in _TABLES and not (name == _EMBEDDING and self._is_tied)):
            return 0.0
        if "exps." in name:
            n_experts, n_used = (self._count(key) for key in ("expert_count", "expert_used_count"))
            return min(1.0, n_streams * n_used / n_experts) if n_experts and n_used else 1.0
        return 1.0

    def _count(self, key: str) -> int:
        value = self._base.value(f"{self._base.architecture}.{key}", 0)
        return value if isinstance(value, int) else 0

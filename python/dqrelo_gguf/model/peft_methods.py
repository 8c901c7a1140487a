"""PEFT's methods that change a weight by products of small matrices: LoRA, DoRA, LoHa, LoKr and VeRA.

Every change is written as pairs (A, B), A (rank, n_in) and B (n_out, rank), because these are what llama.cpp's conversion can permute
and rename: the element-wise product of all B A of a weight is added to it. A Kronecker product is one of two such products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Final

import torch

Pair = tuple[torch.Tensor, torch.Tensor]
Parts = Mapping[str, torch.Tensor]

MAGNITUDE: Final = "lora_magnitude_vector"
# Tensors whose first side is the rank.
RANKED: Final = frozenset(
    {"lora_A", "lora_embedding_A", "hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2_b", "vera_lambda_d"}
)
_VECTORS: Final = frozenset({MAGNITUDE, "vera_lambda_b", "vera_lambda_d"})


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        title: what people call it.
        parts: the sets of tensors that a module may have, with those that all modules share.
        pairs: what they stand for, without a scale.
        is_stored: the one pair is what a delta file can hold, so it is stored as it is; the others are computed over the base's weight.
        is_cut: A is as wide as the widest weight of all, and a narrower weight has its first columns.
        why_missing: where a tensor is missing, what may be the cause.
    """

    title: str
    parts: tuple[frozenset[str], ...]
    pairs: Callable[[Parts], list[Pair]]
    is_stored: bool = False
    is_cut: bool = False
    why_missing: str = "Incomplete download?"

    def problem(self, found: Parts) -> str | None:
        """What is wrong with a module's tensors by their names; None if nothing."""
        names = set(found)
        nearest = min(self.parts, key=lambda part: (len(part ^ names), sorted(part)))
        if names - nearest:
            return f"has {min(names - nearest)}, which is no part of a {self.title}. Another adapter's configuration?"
        return f"has no {min(nearest - names)}. {self.why_missing}" if nearest - names else None


def _lora(parts: Parts) -> list[Pair]:
    return [(parts["lora_A"], parts["lora_B"])]


def _plain_lora(parts: Parts) -> list[Pair]:
    # The rows of an embedding's weight are the columns of B A.
    return _lora(parts) if "lora_A" in parts else [(parts["lora_embedding_B"].T, parts["lora_embedding_A"].T)]


def _loha(parts: Parts) -> list[Pair]:
    return [(parts[f"hada_{w}_b"], parts[f"hada_{w}_a"]) for w in ("w1", "w2")]


def _lokr(parts: Parts) -> list[Pair]:
    """kron(w1, w2)[i, j] = w1[i // b, j // d] * w2[i % b, j % d], where w2 is (b, d)."""
    w1, w2 = (
        parts[f"lokr_{w}"] if f"lokr_{w}" in parts else parts[f"lokr_{w}_a"] @ parts[f"lokr_{w}_b"]
        for w in ("w1", "w2")
    )
    (a, c), (b, d) = w1.shape, w2.shape
    left, right = _sides(w1)
    spread = (right.repeat_interleave(d, dim=1), left.repeat_interleave(b, dim=0))
    left, right = _sides(w2)
    return [spread, (right.repeat(1, c), left.repeat(a, 1))]


def _sides(w: torch.Tensor) -> Pair:
    """w as a product of two matrices, of which one is the identity: the rank is its smaller side."""
    n_out, n_in = w.shape
    return (torch.eye(n_out), w) if n_out <= n_in else (w, torch.eye(n_in))


def _vera(parts: Parts) -> list[Pair]:
    d, b = parts["vera_lambda_d"], parts["vera_lambda_b"]
    return [(d[:, None] * parts["vera_A"], b[:, None] * parts["vera_B"][: b.numel()])]


def _sets(*names: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(each.split()) for each in names)


METHODS: Final = MappingProxyType(
    {
        "LORA": Method(
            "LoRA", _sets("lora_A lora_B", "lora_embedding_A lora_embedding_B"), _plain_lora, is_stored=True
        ),
        "DORA": Method("DoRA", _sets(f"lora_A lora_B {MAGNITUDE}"), _lora),
        "LOHA": Method("LoHa", _sets("hada_w1_a hada_w1_b hada_w2_a hada_w2_b"), _loha),
        "LOKR": Method(
            "LoKr",
            _sets(
                "lokr_w1 lokr_w2",
                "lokr_w1 lokr_w2_a lokr_w2_b",
                "lokr_w1_a lokr_w1_b lokr_w2",
                "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b",
            ),
            _lokr,
        ),
        "VERA": Method(
            "VeRA",
            _sets("vera_A vera_B vera_lambda_b vera_lambda_d"),
            _vera,
            is_cut=True,
            why_missing="Was it saved with save_projection=False?",
        ),
    }
)


def kron_sides(parts: Parts) -> tuple[int, int]:
    """Rows and columns of a Kronecker product of matrices, which are more than its factors have; (0, 0) for other methods."""
    if not any(name.startswith("lokr") for name in parts):
        return 0, 0
    left = [parts[name].shape[0] for name in ("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a") if name in parts]
    right = [parts[name].shape[1] for name in ("lokr_w1", "lokr_w1_b", "lokr_w2", "lokr_w2_b") if name in parts]
    return prod(left), prod(right)


def shapes_fit(parts: Parts) -> bool:
    """Whether every tensor is a matrix or a vector as its name says."""
    return all(t.dim() == (1 if name in _VECTORS else 2) for name, t in parts.items())


def pairs_fit(pairs: list[Pair]) -> bool:
    """Whether every pair has a product, all of one shape."""
    shapes = {(b.shape[0], a.shape[1]) for a, b in pairs if a.dim() == b.dim() == 2 and a.shape[0] == b.shape[1]}
    return len(shapes) == 1 and all(a.shape[0] == b.shape[1] for a, b in pairs)


def magnitude_pair(length: torch.Tensor, n_in: int) -> Pair:
    """DoRA's lengths of rows as a weight whose rows are constant, so that the conversion gives them the order of rows."""
    return torch.ones(1, n_in), length[:, None]

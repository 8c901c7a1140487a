"""LoRA adapters as fine-tunes: what they hold, by the base's names, and the model that base and adapter are together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.errors import InputError, printable
from dqrelo_gguf.file.container import GGUFValue
from dqrelo_gguf.model.base import EndTokens, GgufModel

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to a weight: the product u v, its scale included.

    Args:
        u: ([n_expert,] n_out, rank).
        v: ([n_expert,] rank, n_in).
    """

    u: F32
    v: F32

    @property
    def ne(self) -> tuple[int, ...]:
        """The weight's shape in ggml's order."""
        return (self.v.shape[-1], *reversed(self.u.shape[:-1]))

    @property
    def rank(self) -> int:
        return int(self.u.shape[-1])

    def rows(self, numbers: npt.NDArray[np.intp]) -> F32:
        """Some rows of u v, counted over all its matrices: (len(numbers), n_in)."""
        n_out, rank = self.u.shape[-2:]
        v = self.v.reshape(-1, *self.v.shape[-2:])
        u = self.u.reshape(-1, rank)
        return np.stack([u[i] @ v[i // n_out] for i in numbers])

    def product(self) -> F32:
        """u v, a new array."""
        return self.u @ self.v

    def within_sides(self) -> Factors:
        """The same product with a rank of at most the weight's smaller side, which is what a delta file can hold."""
        n_out, n_in = self.u.shape[-2], self.v.shape[-1]
        if self.rank <= min(n_out, n_in):
            return self
        experts = self.u.shape[:-2]
        identity = np.broadcast_to(np.eye(min(n_out, n_in), dtype=np.float32), (*experts, *[min(n_out, n_in)] * 2))
        return Factors(identity, self.product()) if n_out <= n_in else Factors(self.product(), identity)


@dataclass(frozen=True)
class Computed:
    """How an adapter that is no plain LoRA makes a weight of the base's.

    Args:
        products: what is added is the element-wise product of these, the scale included.
        magnitude: the lengths that rows have then ([n_expert,] n_out), of DoRA; None where they stay as they are.
    """

    products: tuple[Factors, ...]
    magnitude: F32 | None = None

    @property
    def ne(self) -> tuple[int, ...]:
        """The weight's shape in ggml's order."""
        return self.products[0].ne

    def apply_to(self, weight: F32) -> F32:
        """Changes a weight, ([n_expert,] n_out, n_in), in place; returns it. A row of zeros that is to have a length becomes NaN."""
        change = self.products[0].product()
        for factors in self.products[1:]:
            change *= factors.product()
        weight += change.reshape(weight.shape)
        if self.magnitude is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                scale = self.magnitude.reshape(weight.shape[:-1]) / np.linalg.norm(weight, axis=-1)
                weight *= scale[..., None]
        return weight

    def is_finite(self) -> bool:
        parts = [part for f in self.products for part in (f.u, f.v)] + (
            [] if self.magnitude is None else [self.magnitude]
        )
        return all(bool(np.isfinite(part).all()) for part in parts)


@dataclass
class Adapter:
    """What an adapter's files hold, by the names that the base has.

    Args:
        label: messages call it so.
        name: its own.
        factors: of the weights that it adds a product to.
        whole: the weights that it replaces (modules_to_save, biases), in numpy shapes.
        fields: metadata that describes it.
        notes: what of its files is left out.
        computed: of the weights that are computed from the base's; an adapter has factors or these.
    """

    label: str
    name: str
    factors: dict[str, Factors]
    whole: dict[str, F32] = field(default_factory=dict)
    fields: dict[str, GGUFValue] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    computed: dict[str, Computed] = field(default_factory=dict)

    @property
    def ranks(self) -> list[int]:
        """Lowest and highest rank of its factors; empty where it has none."""
        ranks = [f.rank for f in self.factors.values()]
        return sorted({min(ranks), max(ranks)}) if ranks else []


class AdaptedModel:
    """The weights of a base that an adapter changes, as they are with the adapter.

    Args:
        base: what the adapter is for, in the numbers that it is added to.
        adapter: its factors and weights.

    Raises:
        InputError: it changes nothing, or has values that are no numbers.
    """

    def __init__(self, base: GgufModel, adapter: Adapter) -> None:
        self.label, self.architecture = adapter.label, base.architecture
        self.adapter = adapter
        self._base = base
        if not adapter.factors and not adapter.whole and not adapter.computed:
            raise InputError(f"{adapter.label}: has no weights, expected a LoRA adapter")
        made = {name: Computed((factors,)) for name, factors in adapter.factors.items()}
        self._made = {**made, **adapter.computed}
        for name, computed in self._made.items():
            if not computed.is_finite():
                raise InputError(f"{adapter.label}: {printable(name)}: the adapter holds NaN or infinity")

    @property
    def notes(self) -> list[str]:
        return self.adapter.notes

    @property
    def end_tokens(self) -> EndTokens | None:
        return None

    @property
    def name(self) -> str:
        return self.adapter.name

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the weights that the adapter changes."""
        whole = {name: tuple(reversed(w.shape)) for name, w in self.adapter.whole.items()}
        return {name: computed.ne for name, computed in self._made.items()} | whole

    def field(self, key: str) -> GGUFValue | None:
        return self.adapter.fields.get(key)

    def field_names(self) -> list[str]:
        return list(self.adapter.fields)

    def load(self, name: str, blocks: Blocks) -> F32:
        """A weight with the adapter; a new array."""
        whole = self.adapter.whole.get(name)
        if whole is not None:
            return whole.copy()
        return self._made[name].apply_to(self._base.load(name, blocks))

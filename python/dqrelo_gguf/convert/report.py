"""What a delta costs and loses, by kind of tensor and by layer. Used by dqrelo-inspect and by the converter."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dqrelo_gguf.errors import printable
from dqrelo_gguf.file.layout import ENTRY_TYPES, WeightSpec
from dqrelo_gguf.sizes import bytes_text

if TYPE_CHECKING:
    from rich.table import Table

_LAYER = re.compile(r"\.(\d+)\.")
# This line stands below the tables.
LEGEND = "D error: |D - D_hat| / |D|. W error: |W_ft - W_hat| / |W_ft|."


class Measured(Protocol):
    """A weight with its cost and its errors: one in a file (validate.WeightInfo) or a finished one (result.WeightResult)."""

    @property
    def name(self) -> str: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def n_elements(self) -> int: ...
    @property
    def n_planes(self) -> int: ...
    @property
    def n_vectors(self) -> int: ...
    @property
    def error_delta(self) -> float: ...
    @property
    def error_weight(self) -> float: ...


class Plan(Protocol):
    """A weight that is to be compressed: plan.Planned."""

    @property
    def spec(self) -> WeightSpec: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def n_kept(self) -> int | None: ...
    @property
    def predicted_error(self) -> float | None: ...


@dataclass(frozen=True)
class Group:
    """Weights summed up.

    Args:
        label: the kind, or the layer.
        n_weights: how many.
        n_bytes: of their tensors' data, without padding.
        n_elements: of the base tensors that they change.
        planes: fewest and most sign planes of a weight.
        vectors: fewest and most singular vectors of a weight's factors.
        error_delta, error_weight: root mean squares over the weights, each counted with its number of elements.
    """

    label: str
    n_weights: int
    n_bytes: int
    n_elements: int
    planes: tuple[int, int]
    vectors: tuple[int, int]
    error_delta: float
    error_weight: float

    @property
    def ratio(self) -> float:
        """Bytes over the 16-bit size."""
        return self.n_bytes / (2 * self.n_elements)


def kind(name: str) -> str:
    """A tensor's name without its layer number: `blk.*.attn_q.weight`."""
    return _LAYER.sub(".*.", name, count=1)


def layer(name: str) -> int | None:
    """A tensor's layer number, None outside the layers."""
    found = _LAYER.search(name)
    return None if found is None else int(found[1])


def by_kind(weights: Iterable[Measured]) -> list[Group]:
    """A group a kind, in order of first appearance."""
    return _grouped(weights, lambda w: kind(w.name))


def by_layer(weights: Iterable[Measured]) -> list[Group]:
    """A group a layer, in order, then one with what is in no layer."""
    groups = _grouped(weights, lambda w: "other" if layer(w.name) is None else str(layer(w.name)))
    return sorted(groups, key=lambda g: (g.label == "other", int(g.label) if g.label != "other" else 0))


def total(weights: Sequence[Measured], label: str = "all") -> Group:
    """All weights in one group."""
    n_elements = sum(w.n_elements for w in weights)
    planes, vectors = [w.n_planes for w in weights], [w.n_vectors for w in weights]

    def rms(errors: Iterable[float]) -> float:
        return math.sqrt(sum(e * e * w.n_elements for e, w in zip(errors, weights, strict=True)) / n_elements)

    return Group(
        label,
        len(weights),
        sum(w.n_bytes for w in weights),
        n_elements,
        (min(planes), max(planes)),
        (min(vectors), max(vectors)),
        rms(w.error_delta for w in weights),
        rms(w.error_weight for w in weights),
    )


def table(groups: Sequence[Group], first_column: str) -> Table:
    """The groups as a rich table that fits 80 columns. LEGEND explains its headings."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    out.add_column(first_column, overflow="fold")
    for heading in ("count", "size", "ratio", "planes", "rank", "D error", "W error"):
        out.add_column(heading, justify="right", no_wrap=True)
    for g in groups:
        planes, vectors = (str(low) if low == high else f"{low}-{high}" for low, high in (g.planes, g.vectors))
        errors = (f"{e:.4f}" if e == 0 or e >= 0.001 else f"{e:.1e}" for e in (g.error_delta, g.error_weight))
        out.add_row(
            Text(_shown(g.label)),
            str(g.n_weights),
            bytes_text(g.n_bytes),
            f"{g.ratio:.4f}",
            planes,
            vectors,
            *errors,
        )
    return out


def plan_table(planned: Sequence[Plan]) -> Table:
    """What each weight is stored as: its planes, how many singular vectors have a first plane, a second, ..., or its entries; its
    bytes, and the error that its spectrum predicts.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    out.add_column("weight", overflow="fold")
    for heading in ("planes", "vectors by planes", "size", "ratio", "D error"):
        out.add_column(heading, justify="right", no_wrap=True)
    for p in planned:
        spec, error = p.spec, p.predicted_error
        if p.n_kept is not None:
            what = f"{p.n_kept} kept"
        elif spec.dense_type is not None:
            what = "whole"
        elif spec.sparse is not None:
            what = f"{spec.sparse.n_entries} entries in {ENTRY_TYPES[spec.sparse.type]}"
        elif spec.plane_ranks:
            what = " ".join(map(str, spec.plane_ranks))
        else:
            what = f"rank {spec.rank}"
        out.add_row(
            Text(_shown(spec.name)),
            str(spec.n_planes),
            what,
            bytes_text(p.n_bytes),
            f"{p.n_bytes / (2 * spec.n_elements):.4f}",
            "-" if error is None else f"{error:.4f}",
        )
    return out


def _shown(name: str) -> str:
    """A name, or a kind, for a narrow column."""
    return printable(name).removesuffix(".weight")


def adapter_text(ranks: Sequence[int], n_weights: int) -> str:
    """What an adapter is: `LoRA adapter, rank 16, 224 weights`. The ranks are sorted."""
    rank = str(ranks[0]) if ranks[0] == ranks[-1] else f"{ranks[0]} to {ranks[-1]}"
    return f"LoRA adapter, rank {rank}, {n_weights} weights"


def _grouped(weights: Iterable[Measured], label_of: Callable[[Measured], str]) -> list[Group]:
    groups: dict[str, list[Measured]] = {}
    for w in weights:
        groups.setdefault(label_of(w), []).append(w)
    return [total(members, label) for label, members in groups.items()]

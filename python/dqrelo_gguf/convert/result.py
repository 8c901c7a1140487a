"""What a conversion did, or would do: as lines for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from dqrelo_gguf.convert.estimate import Estimate
from dqrelo_gguf.convert.plan import Planned
from dqrelo_gguf.convert.report import bytes_text
from dqrelo_gguf.file.layout import WeightSpec, type_name
from dqrelo_gguf.file.weight_data import WeightData

# Names shown of a longer list; the JSON report has them all.
_SHOWN = 4


@dataclass(frozen=True)
class WeightResult:
    """One weight of the finished delta."""

    name: str
    ne: tuple[int, ...]
    rank: int
    n_planes: int
    n_bytes: int
    cosine: float  # of the fine-tune with the base
    error_delta: float
    error_weight: float

    @property
    def n_elements(self) -> int:
        return prod(self.ne)

    @classmethod
    def of(cls, spec: WeightSpec, data: WeightData, cosine: float) -> WeightResult:
        """The result of a weight that was written."""
        return cls(
            name=spec.name,
            ne=spec.ne,
            rank=spec.rank,
            n_planes=spec.n_planes,
            n_bytes=spec.n_bytes,
            cosine=cosine,
            error_delta=data.error_delta,
            error_weight=data.error_weight,
        )


@dataclass
class ConvertResult:
    """The outcome of a conversion.

    Args:
        outfile: the delta file.
        name: of the fine-tune.
        base_name: of the base.
        planned: every weight of the delta.
        ratio: bytes of all tensors to the 16-bit size of the weights that they replace.
        n_bytes: of all tensors, without padding and metadata.
        n_file_bytes: of the file.
        excluded: weights left out on request.
        identical: weights that the fine-tune did not change.
        notes: differences between base and fine-tune that a delta does not carry.
        weights: with their errors; empty after a dry run.
        estimate: of a dry run.
        seconds: that it took.
    """

    outfile: Path
    name: str
    base_name: str
    planned: list[Planned]
    ratio: float
    n_bytes: int
    n_file_bytes: int
    excluded: list[str]
    identical: list[str]
    notes: list[str]
    weights: list[WeightResult] = field(default_factory=list)
    estimate: Estimate | None = None
    seconds: float = 0.0

    def summary(self) -> list[str]:
        """The lines above the table."""
        n_tensors = sum(len(p.spec.tensors()) for p in self.planned)
        ranks = sorted({p.spec.rank for p in self.planned if p.spec.dense_type is None}) or [0]
        n_dense = sum(p.spec.dense_type is not None for p in self.planned)
        verb = "would be written" if self.estimate is not None else "written"
        n_signs = len(self.planned) - n_dense
        lines = [
            f"{self.outfile}: {self.name}, a delta over {self.base_name}, {verb}",
            f"weights   {n_signs} with signs, rank {ranks[0]} to {ranks[-1]}; {n_dense} dense; {n_tensors} tensors",
            f"size      {self.n_bytes} bytes of tensors, {bytes_text(self.n_file_bytes)} with metadata and padding",
            f"ratio     {self.ratio:.5f} (1/{1 / self.ratio:.2f}) of the 16-bit weights",
        ]
        if self.estimate is None:
            lines.append(f"time      {self.seconds:.1f} s")
        else:
            lines.append(
                f"time      about {self.estimate.seconds:.0f} s after the check, which took {self.seconds:.1f} s"
            )
            lines.append(f"memory    about {bytes_text(self.estimate.memory_bytes)} beside the interpreter")
        if self.identical:
            lines.append(f"left out  {len(self.identical)} weights equal to the base's: {_some(self.identical)}")
        if self.excluded:
            lines.append(f"excluded  {len(self.excluded)} weights stay the base's: {_some(self.excluded)}")
        lines += [f"note      {note}" for note in self.notes]
        return lines

    def as_json(self) -> dict[str, Any]:
        """Everything, with every weight."""
        document: dict[str, Any] = {
            "outfile": str(self.outfile),
            "name": self.name,
            "base_name": self.base_name,
            "dry_run": self.estimate is not None,
            "ratio": self.ratio,
            "n_bytes": self.n_bytes,
            "n_file_bytes": self.n_file_bytes,
            "seconds": self.seconds,
            "identical": self.identical,
            "excluded": self.excluded,
            "notes": self.notes,
        }
        if self.estimate is not None:
            document["estimate"] = asdict(self.estimate)
        measured = {w.name: w for w in self.weights}
        document["weights"] = [_weight_json(p, measured.get(p.spec.name)) for p in self.planned]
        return document


def _weight_json(planned: Planned, measured: WeightResult | None) -> dict[str, Any]:
    spec = planned.spec
    entry: dict[str, Any] = {
        "name": spec.name,
        "ne": list(spec.ne),
        "n_planes": spec.n_planes,
        "rank": spec.rank,
        "n_bytes": spec.n_bytes,
    }
    if spec.dense_type is not None:
        entry["dense_type"] = type_name(spec.dense_type)
    elif spec.rank:
        entry |= {"u_type": type_name(spec.u_type), "v_type": type_name(spec.v_type)}
    if measured is not None:
        entry |= {"cosine": measured.cosine, "error_delta": measured.error_delta, "error_weight": measured.error_weight}
    return entry


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

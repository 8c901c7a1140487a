"""What a conversion did, or would do: as lines for people and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from dqrelo_gguf.convert.estimate import Estimate
from dqrelo_gguf.convert.plan import Planned
from dqrelo_gguf.convert.report import adapter_text
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.journal import Finished
from dqrelo_gguf.file.layout import ENTRY_TYPES, WeightSpec, type_name
from dqrelo_gguf.file.weight_data import Pack
from dqrelo_gguf.sizes import bytes_text

PLANE_TYPES = (fmt.DQ_SIGN, fmt.DQ_SCALE, fmt.DQ_CSCALE)
# Percent of the bytes in planes from which a fine-tune's spectra are called flat.
_FLAT_SHARE = 50
# Names shown of a longer list; the JSON report has them all.
_SHOWN = 4


@dataclass(frozen=True)
class WeightResult:
    """One weight of the finished delta."""

    name: str
    ne: tuple[int, ...]
    n_vectors: int
    n_planes: int
    n_bytes: int
    cosine: float  # cosine of the fine-tune with the base
    error_delta: float
    error_weight: float
    error_outputs: float | None = None  # of a calibration; see WeightData

    @property
    def n_elements(self) -> int:
        return prod(self.ne)

    @classmethod
    def of(cls, planned: Planned, data: Pack | Finished, cosine: float) -> WeightResult:
        """The result of a weight that was written."""
        spec = planned.spec
        return cls(
            name=spec.name,
            ne=spec.ne,
            n_vectors=spec.n_vectors,
            n_planes=spec.n_planes,
            n_bytes=planned.n_bytes,
            cosine=cosine,
            error_delta=data.error_delta,
            error_weight=data.error_weight,
            error_outputs=data.error_outputs,
        )


@dataclass
class ConvertResult:
    """The outcome of a conversion.

    Args:
        outfile: the delta file, or the merged model.
        name: of the fine-tune.
        base_name: of the base.
        planned: every weight of the delta.
        ratio: bytes of all tensors to the 16-bit size of the weights that changed, both without those that are not compressed.
        n_bytes: that the delta is charged: of all tensors, without padding and metadata, or of what pruning keeps.
        n_file_bytes: of the file; after a dry run of a merged model without its metadata.
        excluded: weights left out on request.
        identical: weights that the fine-tune did not change.
        not_carried: weights that it changed, and that the method leaves as they are in the base.
        notes: differences between base and fine-tune that a delta does not carry.
        is_merged: the file is a merged model and no delta.
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
    not_carried: list[str]
    notes: list[str]
    is_merged: bool = False
    weights: list[WeightResult] = field(default_factory=list)
    estimate: Estimate | None = None
    seconds: float = 0.0

    def summary(self) -> list[str]:
        """The lines above the table."""
        verb = "would be written" if self.estimate is not None else "written"
        what = f"{self.base_name} and its pruned delta, merged" if self.is_merged else f"a delta over {self.base_name}"
        lines = [
            f"{self.outfile}: {self.name}, {what}, {verb}",
            *(self._pruned_lines() if self.is_merged else self._delta_lines()),
            f"ratio     {self.ratio:.5f} (1/{1 / self.ratio:.2f}) of the 16-bit weights",
        ]
        outputs = [(w.error_outputs, w.n_elements) for w in self.weights if w.error_outputs is not None]
        if outputs:
            mean = (sum(e * e * n for e, n in outputs) / sum(n for _, n in outputs)) ** 0.5
            lines.append(
                f"outputs   {mean:.4f} of what the delta adds to a weight's outputs is lost on the calibration's text"
            )
        if self.estimate is None:
            lines.append(f"time      {self.seconds:.1f} s")
        else:
            lines.append(
                f"time      about {self.estimate.seconds:.0f} s after the check, which took {self.seconds:.1f} s"
            )
            lines.append(f"memory    about {bytes_text(self.estimate.memory_bytes)} beside the interpreter")
        if self.identical:
            lines.append(f"left out  {len(self.identical)} weights equal to the base's: {_some(self.identical)}")
        exact = [p for p in self.planned if p.is_exact]
        if exact:
            size = bytes_text(sum(p.n_bytes for p in exact))
            lines.append(f"exact     {len(exact)} weights are not compressed, and their {size} not counted")
        if self.not_carried:
            lines.append(
                f"left out  {len(self.not_carried)} weights stay the base's by the method: {_some(self.not_carried)}"
            )
        if self.excluded:
            lines.append(f"excluded  {len(self.excluded)} weights stay the base's: {_some(self.excluded)}")
        lines += [f"note      {note}" for note in self.notes]
        return lines

    def _delta_lines(self) -> list[str]:
        """What the delta file holds."""
        n_tensors = sum(len(p.spec.tensors()) for p in self.planned)
        specs = [p.spec for p in self.planned]
        n_dense, n_sparse = sum(s.dense_type is not None for s in specs), sum(s.sparse is not None for s in specs)
        of_sparse = f"; {n_sparse} sparse" if n_sparse else ""
        mixed = [p.spec for p in self.planned if p.factors is None]
        return [
            *_adapter_lines([p for p in self.planned if p.factors is not None]),
            f"weights   {len(specs) - n_dense - n_sparse} compressed{of_sparse}; {n_dense} dense; {n_tensors} tensors",
            *_sparse_lines([p for p in self.planned if p.n_changed is not None]),
            *_mix_lines([s for s in mixed if s.dense_type is None and s.sparse is None]),
            f"size      {self.n_bytes} bytes of tensors, {bytes_text(self.n_file_bytes)} with metadata and padding",
        ]

    def _pruned_lines(self) -> list[str]:
        """What was kept, and what it would take to store that."""
        pruned = [p for p in self.planned if p.n_kept is not None]
        n_kept = sum((p.n_kept or 0) * prod(p.spec.ne[2:]) for p in pruned)
        share = n_kept / max(sum(p.spec.n_elements for p in pruned), 1)
        n_whole = len(self.planned) - len(pruned)
        size = bytes_text(self.n_file_bytes)
        return [
            f"weights   {len(pruned)} pruned, {share:.4f} of their entries kept; {n_whole} whole",
            f"size      {self.n_bytes} bytes are charged for values and places; the merged model has {size}",
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything, with every weight."""
        document: dict[str, Any] = {
            "outfile": str(self.outfile),
            "name": self.name,
            "base_name": self.base_name,
            "is_merged": self.is_merged,
            "dry_run": self.estimate is not None,
            "ratio": self.ratio,
            "n_bytes": self.n_bytes,
            "n_file_bytes": self.n_file_bytes,
            "seconds": self.seconds,
            "identical": self.identical,
            "not_carried": self.not_carried,
            "excluded": self.excluded,
            "notes": self.notes,
        }
        if self.estimate is not None:
            document["estimate"] = asdict(self.estimate)
        measured = {w.name: w for w in self.weights}
        document["weights"] = [_weight_json(p, measured.get(p.spec.name)) for p in self.planned]
        return document


def _adapter_lines(planned: list[Planned]) -> list[str]:
    """What of it are an adapter's own factors."""
    ranks = sorted(p.factors.rank for p in planned if p.factors is not None)
    return [f"adapter   {adapter_text(ranks, len(planned))}"] if planned else []


def _sparse_lines(counted: list[Planned]) -> list[str]:
    """How much of the matrices changed, and how many are kept exactly; nothing where all are compressed."""
    sparse = [p for p in counted if p.spec.sparse is not None]
    if not sparse:
        return []
    share = sum(p.n_changed or 0 for p in counted) / sum(p.spec.n_elements for p in counted)
    n_exact = sum(p.predicted_error == 0 for p in sparse)
    others = f", {len(sparse) - n_exact} by their largest entries or rounded" if n_exact < len(sparse) else ""
    return [
        f"changed   {100 * share:.1f} % of the matrices' elements; {n_exact} of {len(counted)} matrices are kept exactly{others}"
    ]


def _mix_lines(specs: list[WeightSpec]) -> list[str]:
    """What the compressed weights are made of, and what that says of the fine-tune."""
    if not specs:
        return []
    vectors = [s.n_vectors for s in specs]
    with_planes = [s for s in specs if s.n_planes > 0]
    of_planes = sum(t.n_bytes for s in with_planes for t in s.tensors() if t.declared in PLANE_TYPES)
    share = 100 * of_planes / sum(s.n_bytes for s in specs)
    lines = [f"mix       {min(vectors)} to {max(vectors)} singular vectors a weight{_bits_a_number(specs)}"]
    if with_planes:
        lines.append(
            f"          sign planes of the whole matrix in {len(with_planes)} weights, {share:.0f} % of their bytes"
            f"{' (flat spectra)' if share > _FLAT_SHARE else ''}"
        )
    return lines


def _bits_a_number(specs: list[WeightSpec]) -> str:
    n_numbers = sum(s.plane_ranks[0] * (s.ne[0] + s.ne[1]) for s in specs if s.plane_ranks)
    n_bits = sum(s.n_codes * (s.ne[0] + s.ne[1]) for s in specs)
    return f", {n_bits / n_numbers:.1f} bits a number" if n_numbers else ""


def _weight_json(planned: Planned, measured: WeightResult | None) -> dict[str, Any]:
    spec = planned.spec
    entry: dict[str, Any] = {
        "name": spec.name,
        "ne": list(spec.ne),
        "n_planes": spec.n_planes,
        "rank": spec.rank,
        "plane_ranks": list(spec.plane_ranks),
        "n_bytes": planned.n_bytes,
    }
    if planned.is_exact:
        entry["is_exact"] = True
    if planned.n_kept is not None:
        entry["n_kept"] = planned.n_kept
    if planned.n_changed is not None:
        entry["n_changed"] = planned.n_changed
    if spec.sparse is not None:
        entry |= {"n_entries": spec.sparse.n_entries, "entry_type": ENTRY_TYPES[spec.sparse.type].lower()}
    if spec.dense_type is not None:
        entry["dense_type"] = type_name(spec.dense_type)
    elif spec.rank:
        entry |= {"u_type": type_name(spec.u_type), "v_type": type_name(spec.v_type)}
    if planned.predicted_error is not None:
        entry["predicted_error"] = planned.predicted_error
    if measured is not None:
        if measured.error_outputs is not None:
            entry["error_outputs"] = measured.error_outputs
        entry |= {"cosine": measured.cosine, "error_delta": measured.error_delta, "error_weight": measured.error_weight}
    return entry


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

"""Base and fine-tune in, delta file out: the steps of a conversion in order."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from dqrelo_gguf import __version__
from dqrelo_gguf import format as fmt
from dqrelo_gguf.base import GgufModel, Model
from dqrelo_gguf.blocks import Blocks, open_blocks
from dqrelo_gguf.checkpoint import open_checkpoint
from dqrelo_gguf.container import GGUFValue
from dqrelo_gguf.encode import encode_weight
from dqrelo_gguf.errors import BaseMismatchError, ShapeError
from dqrelo_gguf.estimate import Estimate, estimate
from dqrelo_gguf.fingerprint import Match, base_identity, compare
from dqrelo_gguf.output import check_target
from dqrelo_gguf.pairing import Pairing, pair_weights
from dqrelo_gguf.plan import Options, Planned, plan
from dqrelo_gguf.progress import Phases, Silent
from dqrelo_gguf.selfcheck import check_weight
from dqrelo_gguf.writer import DeltaMeta, DeltaWriter, delta_ratio

# `general.*` keys that describe the fine-tune's file, not the fine-tune.
_NOT_CARRIED = frozenset({
    fmt.KEY_GENERAL_TYPE, fmt.KEY_ARCHITECTURE, fmt.KEY_ALIGNMENT, fmt.KEY_NAME,
    "general.file_type", "general.quantization_version", "general.quantized_by",
})


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


@dataclass
class ConvertResult:
    """What a conversion did, or would do.

    `weights` is empty after a dry run; `estimate` then says what the rest would take.
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


@dataclass(frozen=True)
class Job:
    """What to convert.

    Args:
        base: the base GGUF that the delta will run on.
        tuned: a Hugging Face directory or a GGUF.
        outfile: the delta file.
        reference: an unquantised GGUF of the base that the delta is against, instead of `base`.
        name: of the fine-tune; its own if None.
        force: replace an existing file.
        dry_run: check and plan, write nothing.
        n_threads: None for all cores. Does not change the result.
    """

    base: str | os.PathLike[str]
    tuned: str | os.PathLike[str]
    outfile: str | os.PathLike[str]
    reference: str | os.PathLike[str] | None = None
    name: str | None = None
    force: bool = False
    dry_run: bool = False
    n_threads: int | None = None


def convert(job: Job, options: Options | None = None, phases: Phases = Silent) -> ConvertResult:
    """Writes the delta of a fine-tune over its base.

    Args:
        job: files.
        options: method.
        phases: shows the progress.

    Raises:
        DqreloError: the input cannot be converted; nothing is left behind.

    >>> convert(Job("base.gguf", "ft/", "ft.dq.gguf")).ratio      # doctest: +SKIP
    0.12499
    """
    options = options or Options()
    begun = time.monotonic()
    outfile = Path(job.outfile)
    check_target(outfile, job.force)  # at once, not after the work
    base = GgufModel(job.base)
    reference = base if job.reference is None else _open_reference(job.reference, base)
    tuned = open_checkpoint(job.tuned, base)
    with open_blocks(job.n_threads) as blocks:
        pairing = pair_weights(base, tuned, options.selection, blocks)
        cosines, identical = _check_all(pairing, reference, tuned, options, blocks, phases)
        planned = plan([p for p in pairing.pairs if p.name not in identical], options)
        meta = _meta(job, base, tuned, options)
        writer = DeltaWriter(outfile, meta, [p.spec for p in planned], job.force)
        result = _result(writer, meta, planned, pairing, identical)
        if job.dry_run:
            result.estimate = estimate(planned, blocks)
        else:
            result.weights = _write_all(writer, planned, cosines, reference, tuned, options, blocks, phases)
    result.seconds = time.monotonic() - begun
    return result


def _open_reference(path: str | os.PathLike[str], base: GgufModel) -> GgufModel:
    reference = GgufModel(path)
    if dict(reference.shapes) != dict(base.shapes):
        name = min(set(reference.shapes.items()) ^ set(base.shapes.items()))[0]
        raise ShapeError(f"--reference {reference.label}: weight '{name}' is not the same as in base {base.label}")
    comparison = compare(base_identity(reference.file), base.file)
    if comparison.match == Match.OTHER_MODEL:
        raise BaseMismatchError(f"--reference {reference.label}: is not the model that base {base.label} was quantised from "
                                f"(correlation {comparison.correlation:.2f}, expected at least {fmt.SAME_MODEL_CORRELATION})")
    return reference


def _check_all(pairing: Pairing, reference: GgufModel, tuned: Model, options: Options, blocks: Blocks,
               phases: Phases) -> tuple[dict[str, float], set[str]]:
    """Checks every weight before the first one is encoded.

    Returns:
        The cosine of each weight with its base, and the names of those that did not change.
    """
    cosines: dict[str, float] = {}
    identical: set[str] = set()
    with phases("checking", sum(prod(p.ne) for p in pairing.pairs)) as progress:
        for pair in pairing.pairs:
            checked = check_weight(pair, reference, tuned, blocks, options.min_cosine)
            cosines[pair.name] = checked.cosine
            if checked.identical:
                identical.add(pair.name)
            progress.step(prod(pair.ne), pair.name)
    return cosines, identical


def _write_all(writer: DeltaWriter, planned: list[Planned], cosines: dict[str, float], reference: GgufModel, tuned: Model,
               options: Options, blocks: Blocks, phases: Phases) -> list[WeightResult]:
    results = []
    with writer, phases("converting", sum(prod(p.pair.ne) for p in planned)) as progress:
        for p in planned:
            data = encode_weight(p, reference, tuned, options, blocks)
            writer.write(data)
            spec = p.spec
            results.append(WeightResult(spec.name, spec.ne, spec.rank, spec.n_planes, spec.n_bytes, cosines[spec.name],
                                        data.error_delta, data.error_weight))
            progress.step(prod(p.pair.ne), spec.name)
    return results


def _result(writer: DeltaWriter, meta: DeltaMeta, planned: list[Planned], pairing: Pairing, identical: set[str]) -> ConvertResult:
    specs = [p.spec for p in planned]
    return ConvertResult(
        outfile=writer.path, name=meta.name, base_name=meta.base_name, planned=planned,
        ratio=delta_ratio(specs), n_bytes=sum(s.n_bytes for s in specs), n_file_bytes=writer.n_file_bytes,
        excluded=pairing.excluded, identical=[p.name for p in pairing.pairs if p.name in identical], notes=pairing.notes,
    )


def _meta(job: Job, base: GgufModel, tuned: Model, options: Options) -> DeltaMeta:
    def value(key: str) -> GGUFValue | None:
        return tuned.field(key)

    template, add_bos, add_eos = (value(k) for k in (fmt.KEY_CHAT_TEMPLATE, fmt.KEY_ADD_BOS, fmt.KEY_ADD_EOS))
    general = {k: value(k) for k in tuned.keys() if k.startswith("general.") and k not in _NOT_CARRIED}
    return DeltaMeta(
        architecture=base.architecture,
        name=job.name or tuned.name,
        method=fmt.METHOD_PAPER,
        converter=f"dqrelo-convert {__version__}",
        options=options.as_metadata(),
        base_name=base.name,
        base=base_identity(base.file),
        reference=fmt.REFERENCE_BASE if job.reference is None else Path(job.reference).name,
        chat_template=None if template is None else str(template.value),
        token_ids={k: int(v.value) for k in fmt.TOKEN_ID_KEYS if (v := value(k)) is not None},
        add_bos=None if add_bos is None else bool(add_bos.value),
        add_eos=None if add_eos is None else bool(add_eos.value),
        general={k: v for k, v in general.items() if v is not None},
    )

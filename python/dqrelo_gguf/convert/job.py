"""Base and fine-tune in, delta file out: the steps of a conversion in order."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.address.stream import RemoteDirectory, streamed
from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.compress.budget import is_matrix
from dqrelo_gguf.compress.mixes import Spectrum
from dqrelo_gguf.convert.adapter import (
    check_options,
    is_adapter,
    open_adapter,
    plan_factors,
    plan_vector,
    recorded,
    unused_options,
)
from dqrelo_gguf.convert.device import as_metadata, device_of, within_memory
from dqrelo_gguf.convert.encode import Inputs, Means, encode_weight, measure_weight
from dqrelo_gguf.convert.estimate import estimate
from dqrelo_gguf.convert.facts import facts
from dqrelo_gguf.convert.imatrix import Imatrix
from dqrelo_gguf.convert.lanes import in_lanes
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.merged_model import Blend, MergedModel
from dqrelo_gguf.convert.metadata import delta_meta
from dqrelo_gguf.convert.methods import ADAPTER, CALIBRATION, IMATRIX
from dqrelo_gguf.convert.moments import SELF, Moments
from dqrelo_gguf.convert.plain_model import plain_data_bytes
from dqrelo_gguf.convert.plan import Options, Planned, check_takes, plan_best, plan_exact, weighed, without_forms
from dqrelo_gguf.convert.planners import PLANNERS
from dqrelo_gguf.convert.result import ConvertResult, WeightResult
from dqrelo_gguf.convert.work import Calibrate, Weigh, Work
from dqrelo_gguf.errors import BaseMismatchError, InputError, ShapeError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.fingerprint import Match, base_identity, compare
from dqrelo_gguf.file.journal import Journal
from dqrelo_gguf.file.layout import Type
from dqrelo_gguf.file.metadata import DeltaMeta
from dqrelo_gguf.file.model_file import files_of
from dqrelo_gguf.file.open_file import require_file
from dqrelo_gguf.file.weight_data import WeightData
from dqrelo_gguf.file.writer import DeltaWriter
from dqrelo_gguf.model.adapter import AdaptedModel, Adapter, Factors
from dqrelo_gguf.model.base import GgufModel, Model
from dqrelo_gguf.model.checkpoint import open_checkpoint
from dqrelo_gguf.model.mmproj import check_tower
from dqrelo_gguf.model.pairing import Pair, pair_adapted, pair_weights
from dqrelo_gguf.model.parts import block_of
from dqrelo_gguf.model.selfcheck import Checked, check_factors, check_weight
from dqrelo_gguf.model.vocabulary import fit_vocabulary
from dqrelo_gguf.output import check_outputs, check_target
from dqrelo_gguf.progress import Phases, Silent

# The matrices of a merged model: 16 bits, so that the method is measured and no quantisation.
MERGED_TYPE = Type.F16


@dataclass(frozen=True)
class Job:
    """What to convert. Every input may be an address (docs/addresses.md).

    Args:
        base: the base GGUF that the delta will run on.
        tuned: a Hugging Face directory or a GGUF; or a LoRA adapter, PEFT's directory or a GGUF; or deltas of the base, each with a scale,
            which become one.
        outfile: the delta file; by a method that prunes, a merged model in F16.
        reference: an unquantised GGUF of the base that the delta is against, instead of `base`.
        base_config: config.json of the base, or a directory that has it, for an adapter of PEFT's; None for what the GGUF says.
        base_mmproj: the base's mmproj GGUF: a fine-tune whose vision or audio tower differs is refused; None for no comparison.
        name: of the fine-tune; its own if None.
        force: replace an existing file.
        dry_run: check and plan, write nothing.
        calibrate: "self" or a text file: errors count by what weights multiply while the fine-tune reads text (probe/calibrate.py);
            None for plain errors.
        calibration: the same from a file that `save_calibration` has left.
        imatrix: a file of llama-imatrix, for the method `wanda`.
        save_calibration: where the moments are kept.
        n_threads: None for all cores. Does not change the result.
        resume: go on with what an interrupted conversion to `outfile` has finished, and keep what this one has if it ends early.
        device: what compresses: `cpu`, `cuda` or `cuda:N`. Another one than the CPU may give other bytes.
        stream: of a fine-tune elsewhere only small files are downloaded; its weights are read where they lie, one at a time.
    """

    base: str | os.PathLike[str]
    tuned: str | os.PathLike[str] | Blend
    outfile: str | os.PathLike[str]
    reference: str | os.PathLike[str] | None = None
    base_config: str | os.PathLike[str] | None = None
    base_mmproj: str | os.PathLike[str] | None = None
    name: str | None = None
    force: bool = False
    dry_run: bool = False
    calibrate: str | None = None
    calibration: str | os.PathLike[str] | None = None
    imatrix: str | os.PathLike[str] | None = None
    save_calibration: str | os.PathLike[str] | None = None
    n_threads: int | None = None
    resume: bool = False
    device: str = "cpu"
    stream: bool = False

    def input_files(self) -> list[Path]:
        """Every file that may be read."""
        deltas = self.tuned.deltas if isinstance(self.tuned, Blend) else ()
        models = (self.base, None if isinstance(self.tuned, Blend) else self.tuned, self.reference)
        texts = [] if self.calibrate in (None, SELF) else [self.calibrate]
        paths = [file for path in models if path is not None for file in files_of(path)]
        return [*paths, *deltas] + [
            Path(path)
            for path in (*texts, self.base_config, self.base_mmproj, self.calibration, self.imatrix)
            if path is not None
        ]

    def fetched(self) -> Job:
        """The same with paths in the place of addresses."""

        def path_of(path: str | os.PathLike[str] | None, kind: Kind) -> Path | None:
            return None if path is None else local(path, kind)

        text = self.calibrate in (None, SELF)
        return replace(
            self,
            base=local(self.base, Kind.MODEL),
            tuned=self._fetched_tuned(),
            reference=path_of(self.reference, Kind.MODEL),
            base_config=path_of(self.base_config, Kind.FILE),
            base_mmproj=path_of(self.base_mmproj, Kind.FILE),
            calibrate=self.calibrate if text else str(path_of(self.calibrate, Kind.FILE)),
            calibration=path_of(self.calibration, Kind.FILE),
            imatrix=path_of(self.imatrix, Kind.FILE),
        )

    def _fetched_tuned(self) -> Path | RemoteDirectory | Blend:
        if isinstance(self.tuned, Blend):
            return self.tuned
        return streamed(self.tuned) if self.stream else local(self.tuned, Kind.TUNED)

    def output_files(self) -> list[Path]:
        """Every file that will be written."""
        return [Path(path) for path in (self.outfile, self.save_calibration) if path is not None]


def convert(
    job: Job,
    options: Options | None = None,
    phases: Phases = Silent,
    weigh: Weigh | None = None,
    calibrate: Calibrate | None = None,
) -> ConvertResult:
    """Writes the delta of a fine-tune over its base, or, by a method that prunes, what base and delta are together.

    Args:
        job: files.
        options: method.
        phases: shows the progress.
        weigh: the probe (probe.weigh.measured_importance), which needs the runtime; None where none is asked for.
        calibrate: the calibration (probe.calibrate.measure_moments), likewise.

    Raises:
        DqreloError: the input cannot be converted; nothing is left behind.

    >>> convert(Job("base.gguf", "ft/", "ft.dq.gguf")).ratio      # doctest: +SKIP
    0.12499
    """
    options = options or Options()
    begun = time.monotonic()
    outfile = Path(job.outfile)
    _check_outfile(outfile, options)
    check_outputs(job.output_files(), [], job.force)  # It fails at once, not after the work.
    job = job.fetched()
    check_outputs(job.output_files(), job.input_files(), job.force)
    _check_calibration(job, options, calibrate)
    device = device_of(job.device)
    given = _given_inputs(job)
    journal = _journal(job, options)
    base = GgufModel(job.base)
    reference = None if job.reference is None else _open_reference(job.reference, base)
    source = _open_tuned(job, base, reference, options)
    adapter = source.adapter if isinstance(source, AdaptedModel) and not source.adapter.computed else None
    factors = adapter.factors if adapter is not None else {}
    tuned = fit_vocabulary(base, source)
    with open_blocks(job.n_threads, device) as blocks, ExitStack() as resources:
        is_adapted = isinstance(source, AdaptedModel)
        pairing = (
            pair_adapted(base, tuned, options.selection)
            if is_adapted
            else pair_weights(base, tuned, options.selection, blocks)
        )
        if adapter is not None:
            pairing.notes += unused_options(options, adapter)
        pairing.notes += check_tower(source, job.base_mmproj, blocks)
        work = Work(base, reference or base, tuned, pairing.pairs, blocks, phases, outfile.resolve().parent)
        meta = delta_meta(base, tuned, options, name=job.name, reference=reference, note=pairing.notes.append)
        meta = _with_means(meta, options, adapter, device)
        checked = _check(work, options, factors)
        changed = [p for p in pairing.pairs if not checked[p.name].identical]
        inputs = given or resources.enter_context(_measured_moments(job, work, changed, calibrate))
        if isinstance(inputs, Moments):
            meta = replace(meta, options={**meta.options, "calibration": inputs.digest})
        passes = _Passes(work, options, weigh, inputs, adapter)
        planned = passes.plan(changed)
        pairing.notes += _uncovered(planned, inputs, options)
        delta = resources.enter_context(_delta_file(outfile, work, options))
        writer = DeltaWriter(delta, meta, [p.spec for p in planned], job.force, journal)
        n_exact = sum(prod(p.pair.ne) for p in planned if p.is_exact)
        n_bytes = sum(p.n_bytes for p in planned if not p.is_exact)
        result = ConvertResult(
            outfile=outfile,
            name=meta.name,
            base_name=meta.base_name,
            planned=planned,
            ratio=n_bytes / (2 * (sum(prod(p.ne) for p in changed) - n_exact)),
            n_bytes=n_bytes,
            n_file_bytes=writer.n_file_bytes if delta == outfile else plain_data_bytes(base, MERGED_TYPE),
            is_merged=delta != outfile,
            excluded=pairing.excluded,
            identical=[name for name, c in checked.items() if c.identical],
            not_carried=sorted({p.name for p in changed} - {p.pair.name for p in planned}),
            notes=pairing.notes,
        )
        if result.is_merged:
            check_target(outfile, job.force, writer.n_file_bytes + result.n_file_bytes)
        if job.dry_run:
            result.estimate = estimate(planned, blocks)
        else:
            result.weights = passes.write(writer, planned, checked)
            if result.is_merged:
                merging = MergeOptions(MERGED_TYPE.name.lower(), verify=False, force=job.force, n_threads=job.n_threads)
                result.n_file_bytes = merge(base.path, delta, outfile, merging, phases).n_file_bytes
    result.seconds = time.monotonic() - begun
    return result


def _with_means(meta: DeltaMeta, options: Options, adapter: Adapter | None, device: torch.device) -> DeltaMeta:
    """The metadata with what else decides the bytes: an adapter's own factors, and what computes."""
    if adapter is not None:
        meta = replace(meta, method=ADAPTER, options=recorded(options, adapter))
    return replace(meta, options={**meta.options, **as_metadata(device)})


def _journal(job: Job, options: Options) -> Journal | None:
    """Of a conversion that writes a delta; what an earlier one left is looked at before the work.

    Raises:
        OutputExistsError, InputError: it left something that this one does not go on with.
    """
    if options.row.keeps is not None and job.resume:
        raise InputError(f"--resume: is for a delta, and --method {options.method_name} writes a merged model")
    if options.row.keeps is not None or job.dry_run or isinstance(job.tuned, Blend):
        return None
    named = {
        "base": job.base,
        "fine-tune": job.tuned,
        "--reference": job.reference,
        "--base-config": job.base_config,
        "--calibration": job.calibration,
        "--calibrate": None if job.calibrate in (None, SELF) else job.calibrate,
        "--imatrix": job.imatrix,
    }
    remote = job.tuned if isinstance(job.tuned, RemoteDirectory) else None
    files = {name: files_of(path) for name, path in named.items() if path is not None and path is not remote}
    texts = {
        **({} if remote is None else {"fine-tune": remote.identity}),
        "--name": job.name,
        "--device": job.device,
        "calibration of --calibrate": job.calibrate if job.calibrate == SELF else None,
    }
    journal = Journal(Path(job.outfile), facts(files, texts, options), job.resume)
    journal.check(job.force)
    return journal


def _check_outfile(outfile: Path, options: Options) -> None:
    """A merged model has another name than a delta, or it would be taken for one."""
    is_delta = outfile.name.endswith(fmt.SUFFIX)
    if options.row.keeps is not None and (is_delta or not outfile.name.endswith(".gguf")):
        raise InputError(
            f"{outfile}: --method {options.method_name} writes a merged model and no delta. "
            f"Give it a name that ends in .gguf, and not in {fmt.SUFFIX}"
        )


def _given_inputs(job: Job) -> Inputs | None:
    """What weights multiply, from a file of an earlier measurement; None where none is given."""
    if job.imatrix is not None:
        return Imatrix(job.imatrix)
    return None if job.calibration is None else Moments(job.calibration)


def _uncovered(planned: list[Planned], inputs: Inputs | None, options: Options) -> list[str]:
    """Says which matrices are pruned by magnitude, because nothing is known of what they multiply."""
    if inputs is None or options.row.keeps != "active":
        return []
    bare = [p.spec.name for p in planned if p.n_kept is not None and not inputs.covers(p.spec.name)]
    return [f"no inputs are known of {', '.join(bare)}: each row keeps its largest entries"] if bare else []


@contextmanager
def _delta_file(outfile: Path, work: Work, options: Options) -> Iterator[Path]:
    """Where the delta is written: the output, or for a method that prunes a file that is merged and thrown away."""
    if options.row.keeps is None:
        yield outfile
        return
    with tempfile.TemporaryDirectory(prefix=".dqrelo-pruned-", dir=work.folder) as folder:
        yield Path(folder) / f"pruned{fmt.SUFFIX}"


def _open_tuned(job: Job, base: GgufModel, reference: GgufModel | None, options: Options) -> Model:
    """The fine-tune: a model of its own, or the base with an adapter or with deltas."""
    if isinstance(job.tuned, Blend):
        return MergedModel(base, job.tuned)
    if not is_adapter(Path(job.tuned)):
        if job.base_config is not None:
            raise InputError("--base-config: is for a LoRA adapter, and the fine-tune is a model")
        return open_checkpoint(job.tuned, base)
    config = None if job.base_config is None else Path(job.base_config)
    model = open_adapter(Path(job.tuned), base, config, reference)
    check_options(options, model.adapter)
    return model


def _open_reference(path: str | os.PathLike[str], base: GgufModel) -> GgufModel:
    reference = GgufModel(path)
    if dict(reference.shapes) != dict(base.shapes):
        name = min(set(reference.shapes.items()) ^ set(base.shapes.items()))[0]
        raise ShapeError(f"--reference {reference.label}: weight '{name}' is not the same as in base {base.label}")
    comparison = compare(base_identity(reference.file), base.file)
    if comparison.match == Match.OTHER_MODEL:
        raise BaseMismatchError(
            f"--reference {reference.label}: is not the model that base {base.label} was quantised from "
            f"(correlation {comparison.correlation:.2f}, expected at least {fmt.SAME_MODEL_CORRELATION})"
        )
    return reference


def _check_calibration(job: Job, options: Options, calibrate: Calibrate | None) -> None:
    """Refuses options that do not go together."""
    if job.calibrate is None and job.save_calibration is not None:
        raise InputError("--save-calibration: needs --calibrate, which makes what it saves")
    sources = {"--calibrate": job.calibrate, "--calibration": job.calibration, IMATRIX: job.imatrix}
    given = [option for option, value in sources.items() if value is not None]
    if not given and options.row.keeps == "active":
        raise InputError(
            f"--method {options.method_name}: needs what the weights multiply. Give one of {', '.join(sources)}"
        )
    for option in given:
        check_takes(options.method_name, IMATRIX if option == IMATRIX else CALIBRATION)
    if len(given) > 1:
        raise InputError(f"{', '.join(given)}: give one of them")
    if job.calibrate is not None and job.calibrate != SELF:
        require_file(job.calibrate, "--calibrate")
    if job.calibrate is not None and calibrate is None:
        raise InputError("--calibrate: needs the runtime, and none was given")


@contextmanager
def _measured_moments(
    job: Job, work: Work, changed: list[Pair], calibrate: Calibrate | None
) -> Iterator[Moments | None]:
    """What the weights multiply, measured as the job says; None where it says nothing."""
    matrices = [p for p in changed if is_matrix(p.ne)]
    if job.calibrate is None or calibrate is None or not matrices:
        yield None
    else:
        with tempfile.TemporaryDirectory(prefix=".dqrelo-moments-", dir=work.folder) as folder:
            path = Path(job.save_calibration or Path(folder) / "moments.safetensors")
            calibrate(work, matrices, job.calibrate, path)
            yield Moments(path)


def _check(work: Work, options: Options, factors: Mapping[str, Factors]) -> dict[str, Checked]:
    """Checks every weight before the first one is encoded."""

    def check(pair: Pair, blocks: Blocks) -> Checked:
        if pair.name in factors:
            return check_factors(pair, work.reference, factors[pair.name], options.min_cosine)
        return check_weight(pair, work.reference, work.tuned, blocks, options.min_cosine)

    checked = {}
    with work.phases("checking", sum(prod(p.ne) for p in work.pairs)) as progress:
        for pair, found in in_lanes(work.pairs, lambda pair: prod(pair.ne), check, work.blocks):
            checked[pair.name] = found
            progress.step(prod(pair.ne), pair.name)
    return checked


@dataclass(frozen=True)
class _Passes:
    """The passes over all weights."""

    work: Work
    options: Options
    weigh: Weigh | None
    inputs: Inputs | None
    adapter: Adapter | None = None

    def plan(self, pairs: list[Pair]) -> list[Planned]:
        """How each weight that changed is stored, in order; those that the method does not carry are left out."""
        if not pairs:
            raise InputError("nothing to convert: no weight of the fine-tune differs from the base")
        if self.adapter is not None:
            return self._with_adapter(pairs, self.adapter)
        n_blocks = 1 + max((block_of(name) or 0 for name in self.work.base.shapes), default=0)
        chosen = [p for p in pairs if self.options.selection.compresses(p.name, n_blocks)]
        if not chosen:
            raise InputError(
                f"--layers, --modules: no weight that changed is one of these. The base has the blocks 0 to {n_blocks - 1}"
            )
        only_vectors = len(chosen) < len(pairs) and not any(is_matrix(p.ne) for p in chosen)
        if only_vectors and self.options.vectors != "paper":
            raise InputError(
                "--layers, --modules: choose norms and other vectors only, which are kept whole. Use --vectors paper"
            )
        compressed = {p.pair.name: p for p in self._compressed(chosen)}
        exact = {p.name: plan_exact(p) for p in pairs if p not in chosen}
        found = compressed | exact
        return [found[p.name] for p in pairs if p.name in found]

    def _with_adapter(self, pairs: list[Pair], adapter: Adapter) -> list[Planned]:
        """Factors and vectors as they are; matrices that the adapter replaces are compressed, within a ratio of their own."""
        matrices = [p for p in pairs if p.name not in adapter.factors and is_matrix(p.ne)]
        planned = {p.pair.name: p for p in self._compressed(matrices)} if matrices else {}
        for p in pairs:
            if p.name in adapter.factors:
                planned[p.name] = plan_factors(p, adapter.factors[p.name])
            elif not is_matrix(p.ne):
                planned[p.name] = plan_vector(p)
        return [planned[p.name] for p in pairs if p.name in planned]

    def _compressed(self, pairs: list[Pair]) -> list[Planned]:
        if self.options.row.kind in PLANNERS:
            return PLANNERS[self.options.row.kind](pairs, self.options)
        spectra = self._measure([p for p in pairs if is_matrix(p.ne)])
        if self.options.importance == "norm":
            return plan_best(pairs, self.options, spectra)
        if self.weigh is None:
            raise InputError("--importance probe: needs the runtime, and none was given")
        probed = plan_best(pairs, self.options, without_forms(spectra))
        return plan_best(pairs, self.options, weighed(spectra, self.weigh(self.work, probed)))

    def _measure(self, pairs: list[Pair]) -> dict[str, Spectrum]:
        spectra, w = {}, self.work
        moments = self.inputs if isinstance(self.inputs, Moments) else None

        def measure(pair: Pair, blocks: Blocks) -> Spectrum:
            with within_memory(pair.name, blocks.device):
                return measure_weight(pair, w.reference, w.tuned, blocks, moments)

        with w.phases("measuring", sum(prod(p.ne) for p in pairs)) as progress:
            for pair, spectrum in in_lanes(pairs, lambda pair: prod(pair.ne), measure, w.blocks):
                spectra[pair.name] = spectrum
                progress.step(prod(pair.ne), pair.name)
        return spectra

    def write(self, writer: DeltaWriter, planned: list[Planned], checked: dict[str, Checked]) -> list[WeightResult]:
        """Encodes and writes one weight after the other."""
        results, w = [], self.work

        def encode(p: Planned, blocks: Blocks) -> WeightData:
            with within_memory(p.spec.name, blocks.device):
                return encode_weight(p, w.reference, w.tuned, Means(self.options, blocks, self.inputs))

        with writer, w.phases("converting", sum(prod(p.pair.ne) for p in planned)) as progress:
            n_finished = len(writer.finished)
            for p, finished in zip(planned, writer.finished, strict=False):
                results.append(WeightResult.of(p, finished, checked[p.spec.name].cosine))
                progress.step(prod(p.pair.ne), p.spec.name)
            for p, data in in_lanes(planned[n_finished:], lambda p: prod(p.pair.ne), encode, w.blocks):
                writer.write(data)
                results.append(WeightResult.of(p, data, checked[p.spec.name].cosine))
                progress.step(prod(p.pair.ne), p.spec.name)
        return results

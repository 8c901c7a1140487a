"""Base and fine-tune in, delta file out: the steps of a conversion in order."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path

import torch

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.address.stream import RemoteDirectory
from dqrelo_gguf.compress.allocator import bound_freed_memory
from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.compress.budget import is_matrix
from dqrelo_gguf.convert.adapter import (
    recorded,
    unused_options,
)
from dqrelo_gguf.convert.device import as_metadata, device_of
from dqrelo_gguf.convert.encode import Inputs
from dqrelo_gguf.convert.estimate import estimate
from dqrelo_gguf.convert.facts import facts
from dqrelo_gguf.convert.lanes import OpenLanes, local_lanes
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.merged_model import Blend
from dqrelo_gguf.convert.metadata import delta_meta
from dqrelo_gguf.convert.methods import ADAPTER, CALIBRATION, IMATRIX
from dqrelo_gguf.convert.moments import SELF, Moments
from dqrelo_gguf.convert.passes import Passes
from dqrelo_gguf.convert.plain_model import plain_data_bytes
from dqrelo_gguf.convert.plan import Options, Planned, check_takes
from dqrelo_gguf.convert.result import ConvertResult
from dqrelo_gguf.convert.sources import Sources, open_models
from dqrelo_gguf.convert.work import Calibrate, Packs, Weigh, Work
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.journal import Journal
from dqrelo_gguf.file.layout import Type
from dqrelo_gguf.file.metadata import DeltaMeta
from dqrelo_gguf.file.model_file import files_of
from dqrelo_gguf.file.open_file import require_file
from dqrelo_gguf.file.writer import DeltaWriter
from dqrelo_gguf.model.adapter import AdaptedModel, Adapter
from dqrelo_gguf.model.mmproj import check_tower
from dqrelo_gguf.model.pairing import Pair, pair_adapted, pair_weights
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

    def sources(self) -> Sources:
        """The inputs that weights are made from."""
        given = (self.base, self.tuned, self.reference, self.base_config, self.calibration, self.imatrix)
        return Sources(*given, stream=self.stream)

    def fetched(self) -> Job:
        """The same with paths in the place of addresses."""
        found = self.sources().fetched()
        text = self.calibrate in (None, SELF)
        return replace(
            self,
            **{field.name: getattr(found, field.name) for field in fields(found)},
            base_mmproj=None if self.base_mmproj is None else local(self.base_mmproj, Kind.MODEL),
            calibrate=self.calibrate if text else str(local(str(self.calibrate), Kind.FILE)),
        )

    def output_files(self) -> list[Path]:
        """Every file that will be written."""
        return [Path(path) for path in (self.outfile, self.save_calibration) if path is not None]


def convert(
    job: Job,
    options: Options | None = None,
    phases: Phases = Silent,
    weigh: Weigh | None = None,
    calibrate: Calibrate | None = None,
    *,
    open_lanes: OpenLanes = local_lanes,
) -> ConvertResult:
    """Writes the delta of a fine-tune over its base, or, by a method that prunes, what base and delta are together.

    Args:
        job: files.
        options: method.
        phases: shows the progress.
        weigh: the probe (probe.weigh.measured_importance), which needs the runtime; None where none is asked for.
        calibrate: the calibration (probe.in_sequence.CALIBRATE), likewise; with `calibration` too.
        open_lanes: where weights are worked on: the threads of this process, or a cluster (cluster.lanes.on_ray).

    Raises:
        DqreloError: the input cannot be converted; nothing is left behind.

    >>> convert(Job("base.gguf", "ft/", "ft.dq.gguf")).ratio      # doctest: +SKIP
    0.12499
    """
    bound_freed_memory()  # Before any thread is there, those of a download too: a heap that one has is kept.
    options = options or Options()
    begun = time.monotonic()
    outfile = Path(job.outfile)
    _check_outfile(outfile, options)
    check_outputs(job.output_files(), [], job.force)  # It fails at once, not after the work.
    job = job.fetched()
    check_outputs(job.output_files(), job.input_files(), job.force)
    _check_calibration(job, options, calibrate)
    device = device_of(job.device)
    journal = _journal(job, options)
    models = open_models(job.sources(), options)
    base, source, tuned, adapter = models.base, models.source, models.tuned, models.adapter
    with open_blocks(job.n_threads, device) as blocks, ExitStack() as resources:
        pairing = (
            pair_adapted(base, tuned, options.selection)
            if isinstance(source, AdaptedModel)
            else pair_weights(base, tuned, options.selection, blocks)
        )
        if adapter is not None:
            pairing.notes += unused_options(options, adapter)
        pairing.notes += check_tower(source, job.base_mmproj, blocks)
        work = Work(base, models.reference, tuned, pairing.pairs, blocks, phases, outfile.resolve().parent)
        meta = delta_meta(
            base, tuned, options, name=job.name, reference=models.given_reference, note=pairing.notes.append
        )
        meta = _with_means(meta, options, adapter, device)
        lanes = resources.enter_context(open_lanes(job.sources(), models, options, blocks))
        passes = Passes(work, lanes, options, weigh, adapter)
        checked = passes.check()
        changed = [p for p in pairing.pairs if not checked[p.name].identical]
        inputs = models.inputs or resources.enter_context(_measured_moments(job, work, changed, calibrate))
        if inputs is not None:
            lanes.use(inputs)
        if isinstance(inputs, Moments):
            meta = replace(meta, options={**meta.options, "calibration": inputs.digest})
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
            result.estimate = estimate(planned, blocks, lanes.n_threads)
        else:
            packs = _in_sequence(work, options, planned, inputs, calibrate)
            result.weights = passes.write(writer, planned, checked, resources.enter_context(packs))
            if result.is_merged:
                merging = MergeOptions(MERGED_TYPE.name.lower(), verify=False, force=job.force, n_threads=job.n_threads)
                result.n_file_bytes = merge(base.path, delta, outfile, merging, phases).n_file_bytes
        result.notes += lanes.notes
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
    files = job.sources().files()
    if job.calibrate not in (None, SELF):
        files["--calibrate"] = files_of(str(job.calibrate))
    remote = job.tuned if isinstance(job.tuned, RemoteDirectory) else None
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
def _in_sequence(
    work: Work, options: Options, planned: list[Planned], inputs: Inputs | None, calibrate: Calibrate | None
) -> Iterator[Packs | None]:
    """The weights as a calibration compresses them; None where there is none, or its file is without the text."""
    if calibrate is None or not isinstance(inputs, Moments) or options.row.kind != "best" or not inputs.texts:
        yield None
    else:
        with calibrate.encode(work, options, planned, inputs) as packs:
            yield packs


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
            calibrate.measure(work, matrices, job.calibrate, path)
            yield Moments(path)

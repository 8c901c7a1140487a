"""An evaluation from its files to its figures: the steps in order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dqrelo_gguf.errors import DiskFullError, InputError
from dqrelo_gguf.evaluate import provenance
from dqrelo_gguf.evaluate.answers import Task, TaskResult, answer_problems
from dqrelo_gguf.evaluate.details import SAMPLE_TOKENS, Details, sample_pieces
from dqrelo_gguf.evaluate.measure import measure_text
from dqrelo_gguf.evaluate.problems import ProblemFile, prompts_of, read_problems
from dqrelo_gguf.evaluate.pruned import check_prunings
from dqrelo_gguf.evaluate.report import BASE, TUNED, Evaluation
from dqrelo_gguf.evaluate.rivals import Maker, Rival, check_types
from dqrelo_gguf.evaluate.room import SEQUENTIAL_FILE_BYTES, WORK_BYTES, Room, Rounds, Shape, answer_rooms
from dqrelo_gguf.evaluate.sides import Files, Sides
from dqrelo_gguf.evaluate.spectra import choose, measure_spectra
from dqrelo_gguf.evaluate.stamp import quality_records
from dqrelo_gguf.evaluate.text import SELF, SELF_TOKENS, Text, file_text, self_text
from dqrelo_gguf.evaluate.tuned import check_pair, end_token, runnable
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.model_file import files_of
from dqrelo_gguf.file.open_file import require_file
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.file.rewrite import stamp_quality
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.output import check_target
from dqrelo_gguf.progress import Phases

IMATRIX_SEED = 1 << 20  # added to the seed for the text of importance matrices: it is not the text that is compared on


@dataclass(frozen=True)
class Job:
    """What to evaluate.

    Args:
        base: the base GGUF.
        tuned: the fine-tune, a Hugging Face directory or a GGUF.
        deltas: of the base.
        text: a file, "self", or None for no text.
        problems: files of them.
        n_ctx: tokens of a window.
        n_tokens: of the text; None for all, and for SELF_TOKENS of "self".
        compare: of problems that do not say how.
        limit: problems of each file; None for all.
        max_tokens: of an answer.
        seed: of everything that is drawn.
        n_threads: None for all cores.
        n_gpu_layers: -1 for all.
        allow_other_base: take deltas of another quantisation of the base.
        is_sequential: keep one model in memory at a time.
        stamp: the deltas will be stamped; it is checked first whether they can be.
        models: whole models that are compared beside the deltas, GGUFs.
        rivals: types of llama-quantize's in which the fine-tune itself is compared.
        prunings: METHOD or METHOD:RATIO, methods that prune a delta; each is merged with the base and compared.
        imatrix: an importance matrix for both, None for one on text that the fine-tune writes.
        with_details: measure what a page shows beside the report.
    """

    base: Path
    tuned: Path
    deltas: tuple[Path, ...]
    text: str | None
    problems: tuple[Path, ...]
    n_ctx: int = 512
    n_tokens: int | None = None
    compare: str = "exact"
    limit: int | None = None
    max_tokens: int = 256
    seed: int = 1
    n_threads: int | None = None
    n_gpu_layers: int = -1
    allow_other_base: bool = False
    is_sequential: bool = False
    stamp: bool = False
    models: tuple[Path, ...] = ()
    rivals: tuple[str, ...] = ()
    prunings: tuple[str, ...] = ()
    imatrix: Path | None = None
    with_details: bool = False

    def input_files(self) -> list[Path]:
        """Every file that may be read."""
        texts = [] if self.text is None or self.text == SELF else [Path(self.text)]
        models = [file for path in (self.base, self.tuned, *self.models) for file in files_of(path)]
        return [*models, *self.deltas, *texts, *self.problems, *([self.imatrix] if self.imatrix else [])]


def evaluate(job: Job, command: str, phases: Callable[[str], Phases], say: Callable[[str], None]) -> Evaluation:
    """Measures what the deltas keep. An interrupt ends it early: what was measured until then is in the result.

    Args:
        job: what to do.
        command: for the report.
        phases: shows the progress; it is given what is counted.
        say: tells what takes time or disk.

    Raises:
        DqreloError: an input cannot be used; nothing is left behind.
    """
    files = [read_problems(path, job.compare, job.limit) for path in job.problems]
    if job.text is not None and job.text != SELF:
        require_file(job.text)
    types, prunings = check_types(job.rivals), check_prunings(job.prunings)
    if job.imatrix is not None:
        require_file(job.imatrix, "--imatrix")
    if job.stamp:
        _check_targets(job)
    base = GgufModel(job.base)
    readers = _open_deltas(job, base)
    folder = Path(tempfile.gettempdir())
    with runnable(job.tuned, base, folder, say) as path:
        tuned = GgufModel(path)
        check_pair(base, tuned)
        given = [Rival(path.stem, GgufModel(path)) for path in job.models]
        for rival in given:
            check_pair(base, rival.model)
        maker = Maker(base, tuned, folder, job.n_threads, job.seed + IMATRIX_SEED, job.imatrix, say, phases("tokens"))
        with maker.made(types, prunings) as made:
            rivals = [*given, *made]
            steps = _Steps(job, base, tuned, rivals, _model_files(job, path, rivals, folder), phases)
            say(steps.check_room())
            evaluation = Evaluation(
                facts=steps.facts(command, readers), names=_names(readers, rivals), seed=job.seed, n_ctx=job.n_ctx
            )
            if job.with_details:
                evaluation.details = Details([reader.weights for reader in readers])
                evaluation.text_result.n_sample = SAMPLE_TOKENS
            try:
                steps.run(evaluation, files)
                if evaluation.details is not None:
                    steps.measure_spectra(evaluation.details, readers)
            except KeyboardInterrupt:
                evaluation.is_interrupted = True
    return evaluation


def stamp(job: Job, evaluation: Evaluation) -> None:
    """Writes what was measured into the deltas.

    Raises:
        DqreloError: a delta cannot be replaced, or is another one by now.
        InputError: nothing was measured that a record could hold.
    """
    facts = evaluation.facts
    records = quality_records(evaluation, facts["tuned_sha256"], facts["base_digest"])
    for path, delta, record in zip(job.deltas, facts["files"]["deltas"], records, strict=True):
        if record is None:
            raise InputError(f"{path}: not stamped: the fine-tune has no gain on the problems, and no text was read")
        stamp_quality(path, record, delta["content_hash"])


def _open_deltas(job: Job, base: GgufModel) -> list[DeltaReader]:
    readers = [DeltaReader(path) for path in job.deltas]
    for reader in readers:
        reader.check_base(base.file, allow_other_bytes=job.allow_other_base)
    return readers


def _check_targets(job: Job) -> None:
    """Before the work: can the deltas be replaced?"""
    for path in job.deltas:
        target = path.resolve()
        check_target(target, force=True, n_bytes=target.stat().st_size if target.is_file() else 0)


def _names(readers: list[DeltaReader], rivals: list[Rival]) -> list[str]:
    """The base, the deltas and the rivals; those of a name that is taken go by their file's."""
    others = [*((r.name, r.path.name) for r in readers), *((r.name, r.path.name) for r in rivals)]
    taken = [BASE, TUNED, *(name for name, _ in others)]
    return [BASE, *(name if taken.count(name) == 1 else file for name, file in others)]


def _model_files(job: Job, tuned: Path, rivals: list[Rival], folder: Path) -> Files:
    return Files(
        job.base,
        tuned,
        job.deltas,
        tuple(rival.path for rival in rivals),
        job.n_threads,
        job.n_gpu_layers,
        job.allow_other_base,
        job.is_sequential,
        folder,
    )


@dataclass(frozen=True)
class _Steps:
    """The steps that need the models."""

    job: Job
    base: GgufModel
    tuned: GgufModel
    rivals: list[Rival]
    files: Files
    phases: Callable[[str], Phases]

    @cached_property
    def shapes(self) -> list[Shape]:
        """Of the base, the fine-tune and each rival."""
        return [Shape.of(model) for model in (self.base, self.tuned, *(r.model for r in self.rivals))]

    @property
    def n_models(self) -> int:
        """Models that are compared with the fine-tune."""
        return 1 + len(self.job.deltas) + len(self.rivals)

    def check_room(self) -> str:
        """Before anything is loaded: is there memory, and disk? Returns what is needed, for people."""
        need = "runs on a GPU" if self._is_on_gpu() else self.files.check_memory(WORK_BYTES)
        free = shutil.disk_usage(self.files.folder).free
        if self.job.is_sequential and free < SEQUENTIAL_FILE_BYTES:
            raise DiskFullError(
                f"{self.files.folder}: --sequential keeps up to {SEQUENTIAL_FILE_BYTES} bytes of logits there, "
                f"{free} are free. Set TMPDIR"
            )
        return need

    def _is_on_gpu(self) -> bool:
        return bool(provenance.hardware()["gpu_info"]) and self.job.n_gpu_layers != 0

    def facts(self, command: str, readers: list[DeltaReader]) -> dict[str, Any]:
        """What the report begins with. The models are read whole for their digests."""
        job, count = self.job, self.phases("bytes")
        base, tuned = (provenance.hashed(provenance.model_files(p), count) for p in (job.base, job.tuned))
        return {
            **provenance.software(),
            "command": command,
            "machine": provenance.hardware(),
            "threads": job.n_threads or os.cpu_count(),
            "files": {
                "base": [asdict(f) for f in base],
                "tuned": [asdict(f) for f in tuned],
                "deltas": [
                    {
                        "path": str(r.path),
                        "name": r.name,
                        "content_hash": r.content_hash,
                        "ratio": r.ratio,
                        "n_bytes": r.n_bytes,
                    }
                    for r in readers
                ],
                "rivals": [
                    {
                        "path": str(r.path),
                        "name": r.name,
                        "made": r.made,
                        "n_bytes": r.n_bytes,
                        "files": [asdict(f) for f in provenance.hashed(provenance.model_files(r.path), count)],
                    }
                    for r in self.rivals
                ],
            },
            "base_digest": base_identity(self.base.file).digest,
            "tuned_sha256": provenance.joint_sha256([f.sha256 for f in tuned]),
        }

    def run(self, evaluation: Evaluation, files: list[ProblemFile]) -> None:
        """Reads the text, answers the problems."""
        import torch

        if self.job.n_threads is not None:
            torch.set_num_threads(self.job.n_threads)
        evaluation.text, tasks = self._prepare(files)
        for task in tasks:
            self._answer_rooms(task)  # What does not fit fails at once, not after the text was read.
        if evaluation.text is not None:
            self._measure(evaluation, evaluation.text)
        for task in tasks:
            evaluation.tasks.append(TaskResult(task))
        for result in evaluation.tasks:
            self._answer(result)

    def measure_spectra(self, details: Details, readers: list[DeltaReader]) -> None:
        """Of a bounded number of weights."""
        same = {name: ne for name, ne in self.base.shapes.items() if self.tuned.shapes.get(name) == ne}
        choice = choose(same, len(readers))
        details.kinds_left_out = choice.kinds_left_out
        spectra = measure_spectra(
            self.base, self.tuned, readers, choice, phases=self.phases("params"), n_threads=self.job.n_threads
        )
        details.spectra.extend(spectra)

    def _prepare(self, files: list[ProblemFile]) -> tuple[Text | None, list[Task]]:
        """What the models read, by the fine-tune: its vocabulary, its template, its own text."""
        job, end = self.job, end_token(self.tuned)
        with self.files.open(self.files.tuned, Room.for_answers(self.shapes[1], job.n_ctx)) as rt:
            text = None
            if job.text == SELF:
                n_tokens = job.n_tokens or SELF_TOKENS
                with self.phases("tokens")("writing", n_tokens) as progress:
                    text = self_text(rt, job.n_ctx, n_tokens, seed=job.seed, end=end, progress=progress)
            elif job.text is not None:
                text = file_text(Path(job.text), rt, job.n_ctx, job.n_tokens, end)
            return text, [Task(file, prompts_of(file.problems, rt, end)) for file in files]

    def _measure(self, evaluation: Evaluation, text: Text) -> None:
        rounds = Rounds.plan(text.windows, self.shapes, self.n_models)
        longest = max(len(w.tokens) for w in text.windows)
        rooms = [Room.for_windows(shape, longest, len(self.shapes)) for shape in self.shapes]
        with (
            Sides(self.files, rooms) as sides,
            self.phases("tokens")("reading", text.n_scored * (self.n_models + 1)) as progress,
        ):
            measure_text(sides, text, rounds, progress, evaluation.text_result)
            if evaluation.details is not None:
                with sides.tuned() as rt:
                    evaluation.details.pieces = sample_pieces(rt, text, evaluation.text_result)

    def _answer_rooms(self, task: Task) -> list[Room]:
        return answer_rooms(self.shapes, max(map(len, task.prompts)) + self.job.max_tokens)

    def _answer(self, result: TaskResult) -> None:
        with (
            Sides(self.files, self._answer_rooms(result.task)) as sides,
            self.phases("answers")("answering", len(result.task.prompts) * (self.n_models + 1)) as progress,
        ):
            answer_problems(sides, result, self.job.max_tokens, progress, self.job.is_sequential)

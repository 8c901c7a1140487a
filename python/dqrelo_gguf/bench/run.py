"""Runs a plan: a context after the other, the rows of a test in turns, so that what slows the machine hits all alike."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from statistics import fmean, median, stdev
from typing import Protocol

from dqrelo_gguf.bench.plan import Plan, Settings, Workload, rows_of
from dqrelo_gguf.bench.traffic import Traffic
from dqrelo_gguf.file.model_file import ModelFile
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.native import core
from dqrelo_gguf.runtime.deltas import Delta


class Timer(Protocol):
    """The part of a session that measures."""

    def time_streams(
        self, blends: Sequence[Sequence[tuple[Delta, float]]], n_prompt: int, n_gen: int, n_threads: int, seed: int
    ) -> int: ...


@dataclass(frozen=True)
class Row:
    """What one line of the table measured.

    Args:
        test: the test.
        settings: with the number of threads that was used.
        model_type, model_size, model_n_params: of the base, as llama.cpp gives them.
        deltas: what the streams run on, each delta or blend once, by name; none: the base alone.
        files, content_hashes: of all deltas in them.
        base_bytes: of the base that a generated step reads.
        delta_bytes: of the deltas that it reads.
        test_time: when the test began, UTC, RFC 3339.
        samples_ns: nanoseconds of each repetition.
        base_ns: of the base alone in the same repetitions; None where this row is it.
    """

    test: Workload
    settings: Settings
    model_type: str
    model_size: int
    model_n_params: int
    deltas: tuple[str, ...]
    files: tuple[str, ...]
    content_hashes: tuple[str, ...]
    base_bytes: int
    delta_bytes: int
    test_time: str
    samples_ns: tuple[int, ...]
    base_ns: tuple[int, ...] | None

    @cached_property
    def samples_ts(self) -> list[float]:
        """Tokens a second of each repetition."""
        return [1e9 * self.test.n_tokens / max(ns, 1) for ns in self.samples_ns]

    @property
    def avg_ns(self) -> int:
        return round(fmean(self.samples_ns))

    @property
    def stddev_ns(self) -> int:
        return round(stdev(self.samples_ns)) if len(self.samples_ns) > 1 else 0

    @property
    def avg_ts(self) -> float:
        return fmean(self.samples_ts)

    @property
    def stddev_ts(self) -> float:
        return stdev(self.samples_ts) if len(self.samples_ts) > 1 else 0.0

    @property
    def median_ts(self) -> float:
        return median(self.samples_ts)

    @property
    def ratio_to_base(self) -> float | None:
        """Median over the repetitions of this row's tokens a second against the base's in the same repetition."""
        if self.base_ns is None:
            return None
        return median(base / max(own, 1) for base, own in zip(self.base_ns, self.samples_ns, strict=True))

    @property
    def limit(self) -> float | None:
        """The ratio at which the delta would cost what reading its bytes costs; only generating is bound by that."""
        if self.base_ns is None or self.test.n_prompt > 0:
            return None
        return self.base_bytes / (self.base_bytes + self.delta_bytes)

    @property
    def ratio_to_limit(self) -> float | None:
        ratio, limit = self.ratio_to_base, self.limit
        return None if ratio is None or limit is None else ratio / limit


def run_plan(plan: Plan, note: Callable[[str], None] = lambda _: None) -> Iterator[Row]:
    """Measures everything, and yields the rows of a test as soon as it is done.

    Args:
        plan: what to measure.
        note: is told what is being measured.

    Raises:
        InputError: a file cannot be used, a delta is not of this base, or llama.cpp refuses a setting.
    """
    model = ModelFile(plan.base)
    readers = [DeltaReader(file.path) for file in plan.deltas]
    for settings, n_streams, threads in plan.contexts():
        tests = [test for test in plan.tests if test.n_streams == n_streams]
        with _session(plan, settings, n_streams, max(test.n_prompt + test.n_gen for test in tests)) as session:
            deltas = [session.load_delta(file.path, plan.allow_other_base, False) for file in plan.deltas]
            unread = {name for delta in deltas for name in delta.inert}
            counted = _Counted(plan, deltas, readers, Traffic(model, unread))
            for n_threads in threads:
                used = replace(settings, n_threads=n_threads or session.n_threads)
                for test in tests:
                    yield from _run_test(session, test, used, counted, note)


@dataclass(frozen=True)
class _Counted:
    """The deltas of a session, and what they cost in bytes."""

    plan: Plan
    deltas: list[Delta]
    readers: list[DeltaReader]
    traffic: Traffic

    def delta_bytes(self, streams: Sequence[int | None]) -> int:
        """Of a step in which each stream runs on the subject of that number."""
        used = Counter(i for stream in streams for i in self.parts(stream))
        return sum(self.traffic.of_delta(self.readers[i], n_streams) for i, n_streams in used.items())

    def parts(self, stream: int | None) -> dict[int, float]:
        """The deltas of a subject, by number, with their scales; none of the base."""
        return {} if stream is None else dict(self.plan.subjects[stream].parts)

    def blend(self, stream: int | None) -> list[tuple[Delta, float]]:
        """The same as the session takes it."""
        return [(self.deltas[i], scale) for i, scale in self.parts(stream).items()]


@contextmanager
def _session(plan: Plan, settings: Settings, n_streams: int, n_tokens: int) -> Iterator[core.Session]:
    """A model with a context of `n_streams` sequences, each with a memory of its own for `n_tokens` tokens."""
    params = core.SessionParams()
    params.n_ctx = n_streams * n_tokens
    params.n_seq_max = n_streams
    params.kv_unified = False
    for name in ("n_batch", "n_ubatch", "type_k", "type_v", "n_gpu_layers", "flash_attn", "use_mmap", "repack"):
        setattr(params, name, getattr(settings, name))
    session = core.Session(plan.base, params)
    try:
        yield session
    finally:
        session.close()


def _run_test(
    session: core.Session, test: Workload, settings: Settings, counted: _Counted, note: Callable[[str], None]
) -> Iterator[Row]:
    plan = counted.plan
    rows = rows_of(test, len(plan.subjects))
    begun = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    row_blends = [[counted.blend(i) for i in streams] for streams in rows]
    assert settings.n_threads is not None
    samples = measure(
        session,
        test,
        row_blends,
        n_threads=settings.n_threads,
        n_repetitions=plan.n_repetitions,
        warm_up=plan.warm_up,
        note=note,
    )
    for streams, row_ns in zip(rows, samples, strict=True):
        subjects = dict.fromkeys(plan.subjects[i] for i in streams if i is not None)
        used = list(dict.fromkeys(i for subject in subjects for i, _ in subject.parts))
        yield Row(
            test=test,
            settings=settings,
            model_type=session.description,
            model_size=session.n_bytes,
            model_n_params=session.n_params,
            deltas=tuple(subject.name for subject in subjects),
            files=tuple(plan.deltas[i].path for i in used),
            content_hashes=tuple(counted.deltas[i].content_hash for i in used),
            base_bytes=counted.traffic.of_base(test.n_streams),
            delta_bytes=counted.delta_bytes(streams),
            test_time=begun,
            samples_ns=tuple(row_ns),
            base_ns=tuple(samples[0]) if used else None,
        )


def measure(
    timer: Timer,
    test: Workload,
    rows: Sequence[Sequence[Sequence[tuple[Delta, float]]]],
    *,
    n_threads: int,
    n_repetitions: int,
    warm_up: bool,
    note: Callable[[str], None] = lambda _: None,
) -> list[list[int]]:
    """Times the rows of a test in turns: repetition 1 of every row, then repetition 2 of every row, and so on.

    The tokens of a repetition are the same in all rows. The warm-up is llama-bench's: a whole prompt, one step.

    Returns:
        Nanoseconds [row][repetition].
    """
    if warm_up:
        note(f"{test.name}: warm-up")
        for blends in rows:
            timer.time_streams(blends, test.n_prompt, min(test.n_gen, 1), n_threads, 0)
    samples: list[list[int]] = [[] for _ in rows]
    for k in range(n_repetitions):
        note(f"{test.name}: repetition {k + 1} of {n_repetitions}, {len(rows)} rows")
        for blends, row_ns in zip(rows, samples, strict=True):
            row_ns.append(timer.time_streams(blends, test.n_prompt, test.n_gen, n_threads, k))
    return samples


def machine() -> core.Machine:
    """What the process runs on."""
    return core.machine()


def note_to_stderr(text: str) -> None:
    """For `--progress`."""
    print(f"dqrelo-bench: {text}", file=sys.stderr, flush=True)

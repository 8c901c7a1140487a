"""A conversion of a part of a model, measured; and from one of each kind of tensor the whole model."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self
from unittest import mock

from dqrelo_gguf._pin import conversion_module, gguf
from dqrelo_gguf.address.remote import Reader
from dqrelo_gguf.address.stream import streamed
from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.convert import lanes
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.model.pairing import Selection
from dqrelo_gguf.model.streamed_weights import read_elsewhere
from dqrelo_gguf.progress import Silent
from support.large_shapes import Kind, LargeShape

RATIO = Fraction(1, 8)
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Measured:
    """A conversion that was measured, in a process of its own.

    Args:
        seconds: of the passes over the weights. Of weights side by side it is what all lanes worked, divided by their number: at the
            end of a few weights some lanes have none, at the end of a whole model's many that is nothing.
        processor_seconds: of the passes.
        reading_seconds: that their threads waited for bytes of the fine-tune, added up.
        n_read: bytes of the fine-tune that were read.
        peak_bytes: of the process.
        start_bytes: of the process before it, every library loaded.
        n_delta_bytes: of the delta's tensors.
        n_weights: that were converted.
    """

    seconds: float
    processor_seconds: float
    reading_seconds: float
    n_read: int
    peak_bytes: int
    start_bytes: int
    n_delta_bytes: int
    n_weights: int

    @classmethod
    def of(cls, line: str) -> Measured:
        """What `as_line` has written."""
        return cls(**json.loads(line))

    def as_line(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Part:
    """What is converted of a model.

    Args:
        ratio: of it.
        pattern: a regular expression of names; None for all.
        side_by_side: give each weight one thread, as beside a larger one, which is not converted here.
    """

    ratio: str = str(RATIO)
    pattern: str | None = None
    side_by_side: bool = False

    @classmethod
    def of(cls, kind: Kind, every: Iterable[Kind], n_threads: int, ratio: Fraction = RATIO) -> Part:
        """What stands for a kind: one weight where a whole model's conversion gives it all threads, else those of all blocks."""
        side_by_side = lanes.is_small(kind.n_elements, max(other.n_elements for other in every), n_threads)
        return cls(str(ratio), kind.pattern(only_one=not side_by_side), side_by_side)


@dataclass(frozen=True)
class Projected:
    """A whole model.

    Args:
        seconds: of all passes.
        processor_seconds: of them.
        n_read: bytes of the fine-tune that are read.
        peak_bytes: of the process.
        n_delta_bytes: of the delta's tensors.
    """

    seconds: float
    processor_seconds: float
    n_read: int
    peak_bytes: int
    n_delta_bytes: int


def project(shape: LargeShape, found: Mapping[Kind, Measured]) -> Projected:
    """The whole model from some matrices of each kind, which were converted by as many threads as the whole has."""
    share = {kind: kind.count(shape) / m.n_weights for kind, m in found.items()}
    return Projected(
        seconds=sum(m.seconds * share[kind] for kind, m in found.items()),
        processor_seconds=sum(m.processor_seconds * share[kind] for kind, m in found.items()),
        n_read=round(sum(m.n_read * share[kind] for kind, m in found.items())),
        peak_bytes=max(m.peak_bytes for m in found.values()),
        n_delta_bytes=round(sum(m.n_delta_bytes * share[kind] for kind, m in found.items())),
    )


class _Clock:
    """Adds up the time of all phases, the processor's, what lanes work, and what a Reader reads in them."""

    def __init__(self) -> None:
        self.seconds = self.processor_seconds = self.reading_seconds = self.working_seconds = 0.0
        self.n_read = 0
        self._is_running = False

    def phases(self, title: str, n_all: int, *, unit: str = "params") -> Silent:
        """A phase that is timed."""
        clock = self

        class Timed(Silent):
            def __enter__(self) -> Self:
                self._begun = time.perf_counter(), _processor_seconds()
                clock._is_running = True
                return self

            def __exit__(
                self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
            ) -> None:
                clock._is_running = False
                clock.seconds += time.perf_counter() - self._begun[0]
                clock.processor_seconds += _processor_seconds() - self._begun[1]

        return Timed(title, n_all, unit=unit)

    @contextmanager
    def readings(self) -> Iterator[None]:
        """Counts what is read in the phases inside."""
        read, clock = Reader.read, self

        def counting(reader: Reader, span: Any) -> Any:
            begun = time.perf_counter()
            found = read(reader, span)
            if clock._is_running:
                clock.reading_seconds += time.perf_counter() - begun
                clock.n_read += span.n_bytes
            return found

        with mock.patch.object(Reader, "read", counting):
            yield

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        """Gives each weight inside one thread, and counts what the threads work."""
        clock, in_lanes, lock = self, lanes.in_lanes, Lock()

        def timed(weights: Any, n_elements: Any, work: Callable[[Any, Blocks], Any], blocks: Blocks) -> Any:
            def timed_work(weight: Any, blocks: Blocks) -> Any:
                begun = time.perf_counter()
                try:
                    return work(weight, blocks)
                finally:
                    with lock:
                        clock.working_seconds += time.perf_counter() - begun

            return in_lanes(weights, n_elements, timed_work, blocks)

        with mock.patch.object(lanes, "is_small", return_value=True), mock.patch.object(lanes, "in_lanes", timed):
            yield


def measure(base: Path, tuned: str, method: str, part: Part, n_threads: int) -> Measured:
    """Converts, once, in this process.

    Args:
        base: GGUF.
        tuned: address of the fine-tune.
        method: of compression.
        part: of the model.
        n_threads: to work with.
    """
    out = base.with_name(f"measured-{method}.dq.gguf")
    clock = _Clock()
    start = _status_bytes("VmRSS:")
    with clock.readings(), clock.side_by_side() if part.side_by_side else nullcontext():
        job = Job(base, tuned, out, force=True, stream=True, n_threads=n_threads)
        result = convert(
            job,
            Options(ratio=Fraction(part.ratio), method=method, selection=Selection.of(part.pattern, None)),
            clock.phases,
        )
    out.unlink()
    return Measured(
        seconds=clock.working_seconds / n_threads if part.side_by_side else clock.seconds,
        processor_seconds=clock.processor_seconds,
        reading_seconds=clock.reading_seconds,
        n_read=clock.n_read,
        peak_bytes=_status_bytes("VmHWM:"),
        start_bytes=start,
        n_delta_bytes=result.n_bytes,
        n_weights=len(result.planned),
    )


def write_base(address: str, target: Path) -> None:
    """Writes a checkpoint elsewhere as a GGUF in F16: llama.cpp's own conversion, which reads it by ranges."""
    directory = streamed(address)
    read_elsewhere(directory)  # type: ignore[arg-type]
    conversion = conversion_module()
    hparams = conversion.ModelBase.load_hparams(Path(directory), False)
    architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    import torch

    with torch.inference_mode():
        conversion.get_model_class(architecture)(Path(directory), gguf.LlamaFileType.MOSTLY_F16, target).write()


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _status_bytes(key: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

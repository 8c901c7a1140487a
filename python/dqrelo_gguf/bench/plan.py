"""What is measured: the tests, the settings they run with, and which streams a row of the table has."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.parse import is_address
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.runtime.deltas import MAX_PARTS

_MOST = 2**31 - 1
_PART = re.compile(
    r"(.+)\*(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+))"
)  # It matches DELTA*SCALE; no exponent, whose sign would part.
_NAMED = re.compile(r"([^/\\=]*)=(.*)")  # It matches NAME=FILE; an = after a separator belongs to the path.


@dataclass(frozen=True)
class Workload:
    """Random tokens that are decoded: n_prompt of each stream, then n_gen steps of one token a stream."""

    n_prompt: int
    n_gen: int
    n_streams: int = 1

    @property
    def name(self) -> str:
        """As llama-bench writes it, with the number of streams where they are several: `tg128 x4`."""
        parts = [f"{kind}{n}" for kind, n in (("pp", self.n_prompt), ("tg", self.n_gen)) if n]
        return "+".join(parts) + (f" x{self.n_streams}" if self.n_streams > 1 else "")

    @property
    def n_tokens(self) -> int:
        """Of all streams."""
        return (self.n_prompt + self.n_gen) * self.n_streams


@dataclass(frozen=True)
class Settings:
    """What llama.cpp is told, in llama-bench's words. n_threads None: all."""

    n_batch: int = 2048
    n_ubatch: int = 512
    type_k: str = "f16"
    type_v: str = "f16"
    n_gpu_layers: int = -1
    flash_attn: str = "auto"
    use_mmap: int = 1
    repack: int = 1
    n_threads: int | None = None


@dataclass(frozen=True)
class DeltaFile:
    """A delta and the name that its rows have."""

    name: str
    path: str


@dataclass(frozen=True)
class Subject:
    """What a stream can run on: a delta alone, or a blend.

    Args:
        name: that its rows have.
        parts: numbers of deltas, each with its scale.
    """

    name: str
    parts: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Plan:
    """Everything that a run does."""

    base: str
    deltas: tuple[DeltaFile, ...]
    tests: tuple[Workload, ...]
    settings: tuple[Settings, ...]
    n_repetitions: int = 5
    warm_up: bool = True
    allow_other_base: bool = False
    blends: tuple[Subject, ...] = ()

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Each delta by itself, then the blends."""
        return tuple(Subject(file.name, ((i, 1.0),)) for i, file in enumerate(self.deltas)) + self.blends

    def contexts(self) -> Iterator[tuple[Settings, int, list[int | None]]]:
        """The contexts to be made, each with its number of sequences and the numbers of threads to measure with."""
        n_streams = sorted({test.n_streams for test in self.tests})
        threads: dict[Settings, list[int | None]] = {}
        for settings in self.settings:
            threads.setdefault(replace(settings, n_threads=None), []).append(settings.n_threads)
        for settings, n in itertools.product(threads, n_streams):
            yield settings, n, threads[settings]


def rows_of(test: Workload, n_subjects: int) -> list[tuple[int | None, ...]]:
    """The rows of a test: for each of its streams the number of its subject, None for the base.

    The base alone comes first. A test of one stream then has a row for each subject. One of several streams has a single
    row more, in which the subjects take turns.
    """
    base: tuple[int | None, ...] = (None,) * test.n_streams
    if test.n_streams == 1:
        return [base, *((i,) for i in range(n_subjects))]
    return [base, tuple(i % n_subjects for i in range(test.n_streams))] if n_subjects else [base]


def make_tests(
    n_prompt: Sequence[int], n_gen: Sequence[int], pairs: Sequence[tuple[int, int]], n_streams: Sequence[int]
) -> tuple[Workload, ...]:
    """All prompts, all generations, all pairs of both, then the generations in each number of streams above one.

    Raises:
        InputError: nothing is left to be measured.
    """
    tests = [Workload(n, 0) for n in n_prompt] + [Workload(0, n) for n in n_gen] + [Workload(*pair) for pair in pairs]
    tests += [Workload(0, n, streams) for streams in n_streams if streams > 1 for n in n_gen]
    wanted = tuple(dict.fromkeys(test for test in tests if test.n_tokens > 0))
    if not wanted:
        raise InputError("nothing to measure: -p and -n are 0 and there is no -pg, expected a number above 0")
    return wanted


def delta_files(texts: Sequence[str]) -> tuple[DeltaFile, ...]:
    """Reads `[NAME=]FILE`, and fetches what is an address; without a name it is the file's, up to `.dq.gguf`.

    Raises:
        InputError: an empty name or path, or a name that is there twice.
    """
    files: dict[str, DeltaFile] = {}
    for text in texts:
        named = _NAMED.fullmatch(text)
        given = named[2] if named else text
        path = str(local(given, Kind.DELTA)) if is_address(given) else given
        name = named[1] if named else Path(path).name.removesuffix(".gguf").removesuffix(".dq")
        if not name or not path:
            raise InputError(f"--delta '{text}': expected [NAME=]FILE")
        if name in files:
            raise InputError(
                f"--delta '{path}': the name '{name}' is taken by '{files[name].path}'. "
                "Give it another one: --delta NAME=FILE"
            )
        files[name] = DeltaFile(name, path)
    return tuple(files.values())


def blends(texts: Sequence[str], deltas: Sequence[DeltaFile]) -> tuple[Subject, ...]:
    """Reads `NAME=DELTA*SCALE+DELTA*SCALE`, as the server's `--blend` has it.

    Args:
        texts: one for each blend.
        deltas: those that it can name.

    Raises:
        InputError: another form, a delta that is not given or is there twice, too many parts, or a name that is taken.
    """
    numbers_of = {file.name: i for i, file in enumerate(deltas)}
    found: dict[str, Subject] = {}
    for text in texts:
        name, equals, spec = text.partition("=")
        parts = [_PART.fullmatch(part) for part in spec.split("+")]
        if not name or not equals or not all(parts):
            raise InputError(f"--blend '{text}': expected NAME=DELTA*SCALE+DELTA*SCALE, such as mix=math*0.6+words*0.4")
        if name in numbers_of or name in found:
            raise InputError(f"--blend '{text}': the name '{name}' is taken. Give it another one")
        scales: dict[int, float] = {}
        for part in filter(None, parts):
            i = numbers_of.get(part[1])
            if i is None:
                raise InputError(f"--blend '{text}': there is no delta '{part[1]}', expected one of --delta")
            if i in scales:
                raise InputError(
                    f"--blend '{text}': '{part[1]}' is there twice. Give it once, with the sum of the scales"
                )
            scales[i] = float(part[2])
        if len(scales) > MAX_PARTS:
            raise InputError(f"--blend '{text}': {len(scales)} deltas, expected at most {MAX_PARTS}")
        found[name] = Subject(name, tuple(scales.items()))
    return tuple(found.values())


def number(option: str, text: str, least: int) -> int:
    """A whole number.

    Raises:
        InputError: it is none, or smaller than `least`.
    """
    if not re.fullmatch(r"-?[0-9]{1,10}", text) or not least <= int(text) <= _MOST:
        raise InputError(f"{option} '{text}': expected a whole number from {least} to {_MOST}")
    return int(text)


def numbers(option: str, texts: Sequence[str], least: int) -> list[int]:
    """Whole numbers from comma lists.

    Raises:
        InputError: one of them is none, or smaller than `least`.
    """
    return [number(option, item, least) for item in names(texts)]


def pairs(option: str, texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of whole numbers, `pp,tg` each.

    Raises:
        InputError: one of them is no such pair.
    """
    found = []
    for text in texts:
        items = text.split(",")
        if len(items) != 2:
            raise InputError(f"{option} '{text}': expected two numbers, prompt and generated tokens, as in 512,128")
        found.append((number(option, items[0], 0), number(option, items[1], 0)))
    return found


def names(texts: Sequence[str]) -> list[str]:
    """The items of comma lists."""
    return [item for text in texts for item in text.split(",")]

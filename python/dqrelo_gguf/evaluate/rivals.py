"""Rivals of the deltas: whole models that a user could keep instead, such as the fine-tune itself in few bits."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import DiskFullError, InputError, printable
from dqrelo_gguf.evaluate.pruned import Pruning
from dqrelo_gguf.evaluate.room import Room, Shape
from dqrelo_gguf.evaluate.text import self_text
from dqrelo_gguf.evaluate.tuned import end_token
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.progress import Phases
from dqrelo_gguf.runtime.programs import program
from dqrelo_gguf.runtime.session import Runtime
from dqrelo_gguf.sizes import bytes_text

IMATRIX_TOKENS = 8192  # of text that the fine-tune writes for an importance matrix
_IMATRIX_CTX = 128
_HEADER_BYTES = 16 << 20  # metadata and vocabulary of a model, at most
_LAST_LINES = 3  # of a failed program's log that are told


@dataclass(frozen=True)
class Rival:
    """A whole model that is compared with the fine-tune.

    Args:
        name: in reports.
        model: its GGUF.
        made: how it was made, "" for a file that was given.
        n_charged: bytes of what it stands for, a delta that is merged into it; None for its own.
    """

    name: str
    model: GgufModel
    made: str = ""
    n_charged: int | None = None

    @property
    def path(self) -> Path:
        """Of its file."""
        return self.model.path

    @property
    def n_bytes(self) -> int:
        """Of its weights, or of the delta that it stands for."""
        return (
            self.n_charged if self.n_charged is not None else sum(info.n_bytes for _, info in self.model.infos.values())
        )


@dataclass(frozen=True)
class Maker:
    """Makes rivals from the fine-tune.

    Args:
        base: its base's GGUF.
        tuned: its GGUF.
        folder: where they may lie.
        n_threads: None for all cores.
        seed: of the text that an importance matrix is measured on; it is not the text that models are compared on.
        imatrix: an importance matrix, None for one on text that the fine-tune writes.
        say: tells what takes time or disk.
        phases: shows the progress.
    """

    base: GgufModel
    tuned: GgufModel
    folder: Path
    n_threads: int | None
    seed: int
    imatrix: Path | None
    say: Callable[[str], None]
    phases: Phases

    @contextmanager
    def made(self, types: tuple[str, ...], prunings: tuple[Pruning, ...] = ()) -> Iterator[list[Rival]]:
        """The fine-tune in each of the types, by llama-quantize, and the base with each pruned delta; the files are gone afterwards.

        Raises:
            DiskFullError: there is no room for them.
            InputError: one cannot be made.
        """
        if not types and not prunings:
            yield []
            return
        self._check_disk([*types, *(p.name for p in prunings)])
        with TemporaryDirectory(prefix=".dqrelo-rivals-", dir=self.folder) as name:
            imatrix = self.imatrix
            if imatrix is None and (types or any(p.needs_inputs for p in prunings)):
                imatrix = self._measured(Path(name))
            yield [
                *(self._quantised(t, imatrix, Path(name)) for t in types),
                *(self._pruned(p, imatrix, Path(name)) for p in prunings),
            ]

    @property
    def _source(self) -> str:
        return "given" if self.imatrix else "on text that the fine-tune writes"

    def _check_disk(self, types: list[str]) -> None:
        """None takes more than 16 bits a weight: types that do are no rivals."""
        needed = len(types) * (2 * sum(map(prod, self.tuned.shapes.values())) + _HEADER_BYTES)
        free = shutil.disk_usage(self.folder).free
        self.say(
            f"making {', '.join(types)} in {self.folder}: take up to {bytes_text(needed)} of {bytes_text(free)} free"
        )
        if needed > free:
            raise DiskFullError(f"{self.folder}: needs {needed} bytes for the rivals, has {free} free. Set TMPDIR")

    def _measured(self, folder: Path) -> Path:
        """An importance matrix on text that the fine-tune writes."""
        path, out = folder / "text.txt", folder / "imatrix.gguf"
        room = Room.for_answers(Shape.of(self.tuned), 2 * _IMATRIX_CTX)
        files = self.tuned.path
        with (
            Runtime(files, n_ctx=room.n_ctx, n_seq_max=room.n_seq, n_threads=self.n_threads) as rt,
            self.phases("writing", IMATRIX_TOKENS) as progress,
        ):
            text = self_text(
                rt,
                2 * _IMATRIX_CTX,
                IMATRIX_TOKENS,
                seed=self.seed,
                end=end_token(self.tuned),
                progress=progress,
            )
            path.write_text("\n".join(rt.detokenize(w.tokens) for w in text.windows), encoding="utf-8")
        self.say("measuring an importance matrix on text that the fine-tune writes")
        self._run(
            "llama-imatrix", "-m", files, "-f", path, "-o", out, "-c", _IMATRIX_CTX, "--no-ppl", *self._threads("-t")
        )
        return out

    def _quantised(self, type_name: str, imatrix: Path | None, folder: Path) -> Rival:
        assert imatrix is not None
        out = folder / f"{self.tuned.path.stem}-{type_name}.gguf"
        self.say(f"making {type_name}")
        files = [self.tuned.path, out, type_name]
        self._run("llama-quantize", "--allow-requantize", "--imatrix", imatrix, *files, *self._threads())
        return Rival(type_name, GgufModel(out), f"llama-quantize, importance matrix {self._source}")

    def _pruned(self, pruning: Pruning, imatrix: Path | None, folder: Path) -> Rival:
        self.say(f"making {pruning.name}")
        out, n_charged = pruning.write(self.base.path, self.tuned.path, folder, imatrix, self.n_threads)
        inputs = f", importance matrix {self._source}" if pruning.needs_inputs else ""
        made = f"the base in F16 with a delta pruned by {pruning.method} to {pruning.ratio}{inputs}"
        return Rival(pruning.name, GgufModel(out), made, n_charged)

    def _threads(self, *option: str) -> list[object]:
        return [] if self.n_threads is None else [*option, self.n_threads]

    def _run(self, name: str, *arguments: object) -> None:
        command = [str(program(name)), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise InputError(f"{name} {arguments[-1]}: failed: {printable(' | '.join(lines[-_LAST_LINES:]))}")


def check_types(types: tuple[str, ...]) -> tuple[str, ...]:
    """The names of types in capitals, each once.

    Raises:
        InputError: llama.cpp has no such type of models, or it is not smaller than the fine-tune.
    """
    known = {re.sub(r"^(MOSTLY|ALL)_", "", t.name) for t in gguf.LlamaFileType} - {"F32", "F16", "BF16", "GUESSED"}
    chosen = tuple(dict.fromkeys(t.upper() for t in types))
    for name in chosen:
        if name not in known:
            raise InputError(
                f"--rival {printable(name)}: is no type of llama-quantize, expected one of {', '.join(sorted(known))}"
            )
    return chosen

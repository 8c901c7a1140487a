"""What happens to one tiny architecture: two fine-tunes converted, run over an F32 and a Q8_0 base, compared with merged models."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dqrelo_gguf._pin import conversion_module
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.model.pairing import Selection
from dqrelo_gguf.runtime.deltas import Blend, Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.logits import Floats, Tokens, nmse
from tests.support.models import N_VOCAB, convert_hf, read_gguf, rewrite_gguf
from tests.support.tiny_architectures import ARCHITECTURES, Architecture, share_weights, write_base, write_tuned

BASE_TYPES = {"F32": "ALL_F32", "Q8_0": "MOSTLY_Q8_0"}
# Every matrix has its full rank, in F32: what is lost is float32's rounding.
EXACT: dict[str, Any] = {"ratio": None, "rank": 1 << 20, "factor_type": "f32"}
EIGHTH: dict[str, Any] = {}
LEFTOVERS: dict[str, Any] = {
    "ratio": None,
    "rank": 16,
}  # So much is refused there that 1/8 does not pay for the vectors.

BLEND = (0.6, 0.4)  # the scales of both deltas on one sequence

_REFUSED = re.compile(r"tensor '([^']+)' (.+?)\. Convert the fine-tune without it")


@dataclass(frozen=True)
class Prompts:
    """What is run: sequences for one delta and sequences for another one."""

    first: list[Tokens]
    second: list[Tokens]
    error: Callable[[Floats, Floats], float]

    @classmethod
    def whole(cls) -> Prompts:
        """One sequence each, longer than the models' windows."""
        rng = np.random.default_rng(0)
        first, second = (rng.integers(8, N_VOCAB, n).astype(np.int32) for n in (24, 11))
        return cls([first], [second], nmse)

    @classmethod
    def cut(cls) -> Prompts:
        """The same tokens as sequences of two, for models with a router over a rounded base.

        Rounding sends some token to another expert, which changes all that follow it. So most sequences count, not all.
        """
        whole = cls.whole()
        first, second = (np.split(part[0], range(2, len(part[0]), 2)) for part in (whole.first, whole.second))
        return cls(
            first,
            second,
            lambda got, expected: float(np.median([nmse(g, e) for g, e in zip(got, expected, strict=True)])),
        )

    def logits(self, model: Path, part: list[Tokens]) -> Floats:
        """Of a plain model, one row a token."""
        with Runtime(model, n_threads=1, n_seq_max=64) as rt:
            return np.concatenate(rt.logits(part))

    def together(self, rt: Runtime, parts: list[list[Tokens]], deltas: Sequence[Delta | Blend | None]) -> list[Floats]:
        """The rows of each part, all run in one batch."""
        row_deltas = [delta for part, delta in zip(parts, deltas, strict=True) for _ in part]
        rows = np.concatenate(rt.logits([tokens for part in parts for tokens in part], row_deltas))
        return np.split(rows, np.cumsum([sum(map(len, part)) for part in parts])[:-1])


@dataclass
class Figures:
    """NMSE of logits over one base type."""

    merged: float = 0.0  # NMSE of a delta of 1/8 against dqrelo-merge's model
    tuned: float = 0.0  # NMSE of a near-exact delta against the fine-tune
    mixed: float = 0.0  # the worse of both in a batch with a row that has no delta
    blended: float = (
        0.0  # NMSE of both deltas on one sequence, in a batch with others, against a model into which both are merged
    )
    rounding: float = 0.0  # NMSE that the base's own quantisation costs without any delta
    # NMSE between base and merged model, which a delta that does nothing would show: the least of all that were compared.
    effect: float = 0.0
    is_base_kept: bool = False  # The row without a delta is the base's, bit for bit.


@dataclass
class Outcome:
    """A row of the table."""

    name: str
    n_carried: int = 0
    refused: dict[str, str] = field(default_factory=dict)  # It maps a kind of tensor to the reason.
    inert: set[str] = field(default_factory=set)
    figures: dict[str, Figures] = field(default_factory=dict)  # It has figures by base type.


def hparams_of(checkpoint: Path) -> dict[str, Any]:
    """A configuration as the conversion reads it."""
    found: dict[str, Any] = conversion_module().ModelBase.load_hparams(checkpoint, False)
    return found


def kind(tensor: str) -> str:
    """blk.0.attn_q.weight and blk.1.attn_q.weight are one kind."""
    return re.sub(r"\.\d+\.", ".*.", tensor)


def pattern(kinds: dict[str, str]) -> str | None:
    """--exclude for kinds of tensors."""
    return "|".join("^" + re.escape(k).replace(r"\.\*\.", r"\.\d+\.") + "$" for k in sorted(kinds)) or None


class Run:
    """The files of one architecture in a folder, and what is done with them."""

    def __init__(self, name: str, arch: Architecture, folder: Path) -> None:
        logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
        self.arch, self.folder = arch, folder
        self.outcome = Outcome(name)
        self.checkpoint = write_base(arch, folder / "base")
        start = self.checkpoint
        if arch.over:
            self.checkpoint = write_base(ARCHITECTURES[arch.over], folder / "text")
            share_weights(self.checkpoint, start)
        self.tuned = [write_tuned(start, folder / f"tuned-{i}", i) for i in (1, 2)]

    def everything(self) -> Outcome:
        fault = self.arch.fault
        if fault is not None and fault.hparams is None:
            return self.outcome
        for base_type in BASE_TYPES:
            self.outcome.figures[base_type] = self._over(base_type)
        return self.outcome

    def gguf(self, checkpoint: Path, base_type: str) -> Path:
        """A directory as upstream's script converts it."""
        out = self.folder / f"{checkpoint.name}-{base_type}.gguf"
        if out.exists():
            return out
        fault = self.arch.fault
        options = {} if fault is None else {"hparams": hparams_of(checkpoint) | (fault.hparams or {})}
        return convert_hf(checkpoint, out, BASE_TYPES[base_type], **options)

    def source(self, checkpoint: Path) -> Path:
        """What dqrelo-convert is given: the directory, unless the conversion is at fault with it."""
        return checkpoint if self.arch.fault is None else self.gguf(checkpoint, "F32")

    def _over(self, base_type: str) -> Figures:
        base = self.gguf(self.checkpoint, base_type)
        with Runtime(base, n_threads=1, n_seq_max=64) as rt:
            eighth, exact = self._load(rt, base)
            merged, tuned = self._references(base, eighth, self.tuned[1])
            is_cut = self.arch.routed and (base_type != "F32" or self.arch.is_deep)
            return self._compare(rt, (eighth, exact), (merged, tuned), Prompts.cut() if is_cut else Prompts.whole())

    def _load(self, rt: Runtime, base: Path) -> tuple[Delta, Delta]:
        """A delta of 1/8 of the first fine-tune and a near-exact one of the second, without what the runtime refuses."""
        while True:
            selection = Selection.of(None, pattern(self.outcome.refused))
            loaded = []
            try:
                small = LEFTOVERS if self.outcome.refused else EIGHTH
                for tuned, options in zip(self.tuned, (small, EXACT), strict=True):
                    out = self.folder / f"{base.stem}-{tuned.name}-{len(self.outcome.refused)}.dq.gguf"
                    convert(Job(base, self.source(tuned), out), Options(selection=selection, **options))
                    loaded.append(rt.load_delta(out))
            except InputError as error:
                refused = _REFUSED.search(str(error))
                if refused is None or "\n" in str(error):
                    raise
                self.outcome.refused[kind(refused[1])] = refused[2]
            else:
                eighth, exact = loaded
                self.outcome.n_carried = exact.n_weights - len(exact.inert)
                self.outcome.inert |= {kind(name) for name in exact.inert}
                return eighth, exact

    def _references(self, base: Path, delta: Delta, tuned: Path) -> tuple[Path, Path]:
        """The first delta merged, and the second fine-tune as upstream converts it, both F32 models."""
        merged = base.with_suffix(".merged.gguf")
        merge(base, delta.path, merged, MergeOptions(out_type="f32"))
        plain = self.gguf(tuned, "F32")
        if self.outcome.refused:
            kept = {name: values for name, values in read_gguf(base).items() if kind(name) in self.outcome.refused}
            plain = rewrite_gguf(plain, base.with_suffix(".kept.gguf"), kept)
        return merged, plain

    def _blended(self, base: Path, deltas: tuple[Delta, Delta]) -> Path:
        """Both deltas merged with their scales, an F32 model."""
        out = base.with_suffix(".blended.gguf")
        merge(base, tuple(delta.path for delta in deltas), out, MergeOptions(out_type="f32", scales=BLEND))
        return out

    def _compare(
        self, rt: Runtime, deltas: tuple[Delta, Delta], references: tuple[Path, Path], prompts: Prompts
    ) -> Figures:
        parts = [prompts.first, prompts.second, prompts.first]
        expected = [prompts.logits(path, part) for path, part in zip(references, parts, strict=False)]
        plain = rewrite_gguf(Path(rt.path), Path(rt.path).with_suffix(".plain.gguf"), types={"": "F32"})
        base = prompts.together(rt, parts, [None] * 3)
        mixed = prompts.together(rt, parts, [*deltas, None])
        blend = prompts.logits(self._blended(Path(rt.path), deltas), prompts.first)
        blended = prompts.together(rt, parts, [list(zip(deltas, BLEND, strict=True)), deltas[1], None])[0]
        return Figures(
            merged=prompts.error(np.concatenate(rt.logits(prompts.first, deltas[0])), expected[0]),
            tuned=prompts.error(np.concatenate(rt.logits(prompts.second, deltas[1])), expected[1]),
            mixed=max(prompts.error(mixed[i], expected[i]) for i in range(2)),
            blended=prompts.error(blended, blend),
            rounding=max(prompts.error(base[i], prompts.logits(plain, parts[i])) for i in range(2)),
            effect=min(
                prompts.error(base[i], wanted) for i, wanted in ((0, expected[0]), (1, expected[1]), (0, blend))
            ),
            is_base_kept=np.array_equal(mixed[2], base[2]),
        )

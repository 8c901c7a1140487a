"""A base, a fine-tune and deltas that belong together, and text that their vocabulary has words for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dqrelo_gguf.cli import convert
from tests.support.tiny_llama import NARROW, Type, base_weights, tuned_weights, write_model

TEXT = "the dog sees a cat. two and three makes five? the cat sees 3 + 4 = 7. "


@dataclass(frozen=True)
class Trio:
    """The files."""

    base: Path
    tuned: Path
    deltas: tuple[Path, Path]


def make_trio(base: Path, folder: Path) -> Trio:
    """Of a base of the shape NARROW: its fine-tune, and the deltas "fine" and "coarse"."""
    tuned = write_model(folder / "tuned.gguf", NARROW, tuned_weights(base_weights(NARROW), 1, 0.5), Type.F16, "words")
    deltas = folder / "fine.dq.gguf", folder / "coarse.dq.gguf"
    for path, size in zip(deltas, (("--ratio", "1/2"), ("--rank", "2")), strict=True):
        name = path.name.removesuffix(".dq.gguf")
        assert convert.main([str(base), str(tuned), "-o", str(path), *size, "--name", name]) == 0
    return Trio(base, tuned, deltas)

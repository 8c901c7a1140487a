"""Families of models: a base, fine-tunes of it, their deltas, and the plain models that those stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dqrelo_gguf.cli import convert, merge
from tests.support.logits import Floats, Tokens, open_model
from tests.support.tiny_llama import Shape, Type, base_weights, quantize, tuned_weights, write_model

# Rows of 256 can hold signs in blocks of 128 weights, rows of 576 in blocks of 32, rows of 72 in none.
SHAPES = {
    "256": Shape(),
    "tied": Shape(is_tied=True),
    "576": Shape(n_embd=576, n_head=9, n_head_kv=3, n_ff=832, is_tied=True),
    "72": Shape(n_embd=72, n_head=3, n_head_kv=3, n_ff=104),
    "one head": Shape(n_embd=64, n_head=1, n_head_kv=1, n_ff=96),
}


@dataclass
class Family:
    """A base, fine-tunes of it, their deltas, and the plain models that those stand for."""

    shape: Shape
    base: Path
    deltas: list[Path]
    merged: list[Path]

    def merged_logits(self, i: int, tokens: Tokens) -> Floats:
        with open_model(self.merged[i]) as rt:
            return rt.logits(tokens)


Maker = Callable[..., Family]

# Types that gguf writes; llama-quantize makes the others from an F32 model.
WRITTEN = frozenset({"F32", "F16", "BF16", "MXFP4"})


def write_family(folder: Path, shape: Shape, base_type: str, n_tuned: int, options: tuple[str, ...]) -> Family:
    """Writes all files of a family; `options` are dqrelo-convert's."""
    weights = base_weights(shape)
    plain = Type[base_type] if base_type in WRITTEN else Type.F32
    base = write_model(folder / "plain.gguf", shape, weights, plain)
    if base_type != plain.name:
        base = quantize(base, folder / "base.gguf", base_type)
    family = Family(shape, base, [], [])
    for i in range(n_tuned):
        tuned = write_model(folder / f"tuned-{i}.gguf", shape, tuned_weights(weights, i), Type.F32, f"tuned-{i}")
        delta, merged = folder / f"tuned-{i}.dq.gguf", folder / f"merged-{i}.gguf"
        assert convert.main([str(base), str(tuned), "-o", str(delta), *options]) == 0
        assert merge.main([str(base), str(delta), "-o", str(merged), "--outtype", "f32"]) == 0
        tuned.unlink()
        family.deltas.append(delta)
        family.merged.append(merged)
    return family

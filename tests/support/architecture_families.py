"""A tiny model of an architecture as transformers makes it, deltas of fine-tunes of it, and merged models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from tests.support.models import convert_hf
from tests.support.tiny_architectures import ARCHITECTURES, write_base, write_tuned
from tests.support.tiny_tokenizers import known_to_the_conversion


@dataclass
class ArchitectureFamily:
    """A base, two deltas of it, and, where they were asked for, the plain models that those stand for."""

    base: Path
    deltas: list[Path] = field(default_factory=list)
    merged: list[Path] = field(default_factory=list)


def write_architecture_family(
    folder: Path, arch: str, file_type: str = "ALL_F32", *, is_merged: bool = False, **sizes: int
) -> ArchitectureFamily:
    """Writes a family of an architecture of ARCHITECTURES; `sizes` are changes of its configuration."""
    with known_to_the_conversion():
        checkpoint = write_base(ARCHITECTURES[arch], folder / "base", **sizes)
        family = ArchitectureFamily(convert_hf(checkpoint, folder / "base.gguf", file_type))
        for i in (1, 2):
            delta, merged = folder / f"{i}.dq.gguf", folder / f"{i}.gguf"
            convert(Job(family.base, write_tuned(checkpoint, folder / f"tuned-{i}", i), delta))
            family.deltas.append(delta)
            if is_merged:
                merge(family.base, delta, merged, MergeOptions(out_type="f32"))
                family.merged.append(merged)
    return family

"""What the passes of a conversion share: the models, the pairs, the threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.convert.encode import delta_of
from dqrelo_gguf.convert.moments import Moments
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.file.weight_data import Pack
from dqrelo_gguf.model.base import GgufModel, Model
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.progress import Phases

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Work:
    """The inputs of a conversion.

    Args:
        base: the base that the delta will run on.
        reference: what the delta is against.
        tuned: the fine-tune.
        pairs: the weights that are converted, those that did not change included.
        blocks: the threads to work with.
        phases: shows the progress.
        folder: where large temporary files may lie.
    """

    base: GgufModel
    reference: GgufModel
    tuned: Model
    pairs: list[Pair]
    blocks: Blocks
    phases: Phases
    folder: Path

    def delta(self, pair: Pair) -> F32:
        """D of a weight in its numpy shape; a new array."""
        return delta_of(pair, self.reference, self.tuned, self.blocks)

    def tuned_values(self, name: str) -> F32:
        """What the fine-tune has in place of the base's tensor of this name: its own weight, or the base's where that stays."""
        own = next((p.tuned_name for p in self.pairs if p.name == name), None)
        return self.base.load(name, self.blocks) if own is None else self.tuned.load(own, self.blocks)


# Measures what a unit of squared error of each planned matrix does; raises InputError where it cannot.
Weigh = Callable[[Work, list[Planned]], Mapping[str, float]]

# The packs of some weights, in their sequence.
Packs = Callable[[Sequence[Planned]], Iterator[tuple[Planned, Pack]]]


@dataclass(frozen=True)
class Calibrate:
    """A calibration, which needs the runtime.

    Args:
        measure: writes the moments of what weights multiply (moments.py), while text of this source is read, to a file.
        encode: compresses all weights with them, each for what those before it hand on (probe/in_sequence.py).
    """

    measure: Callable[[Work, list[Pair], str, Path], None]
    encode: Callable[[Work, Options, Sequence[Planned], Moments], AbstractContextManager[Packs]]

"""What is done to each weight in the passes of a conversion, wherever it is done: here, or by a worker of a cluster.

A task is a value that can be sent to another process. It gets the models that are opened there, and returns what the
conversion needs of a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol, TypeVar

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.compress.mixes import Spectrum
from dqrelo_gguf.convert.device import within_memory
from dqrelo_gguf.convert.encode import Means, encode_weight, measure_weight
from dqrelo_gguf.convert.moments import Moments
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.convert.sources import Models
from dqrelo_gguf.file.weight_data import Pack, packed
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.model.selfcheck import Checked, check_factors, check_weight

W = TypeVar("W")
W_contra = TypeVar("W_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Task(Protocol[W_contra, R_co]):
    """One pass over the weights."""

    def name(self, weight: W_contra, /) -> str:
        """What messages call a weight."""

    def n_elements(self, weight: W_contra, /) -> int:
        """How large it is."""

    def n_result_bytes(self, weight: W_contra, /) -> int:
        """How large its result is; 0 where that is a few numbers."""

    def run(self, weight: W_contra, models: Models, blocks: Blocks, /) -> R_co:
        """The result of a weight.

        Raises:
            DqreloError: the weight cannot be converted.
        """


class _OfPairs:
    """What tasks on weights that have no plan yet share."""

    def name(self, pair: Pair) -> str:
        return pair.name

    def n_elements(self, pair: Pair) -> int:
        return prod(pair.ne)


@dataclass(frozen=True)
class Check(_OfPairs):
    """Compares a weight of the fine-tune with the base's.

    Args:
        min_cosine: smallest cosine between them.
    """

    min_cosine: float

    def n_result_bytes(self, pair: Pair) -> int:
        del pair
        return 0

    def run(self, pair: Pair, models: Models, blocks: Blocks) -> Checked:
        factors = models.adapter.factors if models.adapter is not None else {}
        if pair.name in factors:
            return check_factors(pair, models.reference, factors[pair.name], self.min_cosine)
        return check_weight(pair, models.reference, models.tuned, blocks, self.min_cosine)


@dataclass(frozen=True)
class Measure(_OfPairs):
    """Computes the spectrum of a weight's delta."""

    def n_result_bytes(self, pair: Pair) -> int:
        return 8 * min(pair.ne[:2])  # The squares of its singular values.

    def run(self, pair: Pair, models: Models, blocks: Blocks) -> Spectrum:
        moments = models.inputs if isinstance(models.inputs, Moments) else None
        with within_memory(pair.name, blocks.device):
            return measure_weight(pair, models.reference, models.tuned, blocks, moments)


@dataclass(frozen=True)
class Encode:
    """Compresses a weight's delta as planned.

    Args:
        options: of the conversion.
    """

    options: Options

    def name(self, planned: Planned) -> str:
        return planned.spec.name

    def n_elements(self, planned: Planned) -> int:
        return prod(planned.pair.ne)

    def n_result_bytes(self, planned: Planned) -> int:
        return planned.spec.n_bytes

    def run(self, planned: Planned, models: Models, blocks: Blocks) -> Pack:
        means = Means(self.options, blocks, models.inputs)
        with within_memory(planned.spec.name, blocks.device):
            return packed(planned.spec, encode_weight(planned, models.reference, models.tuned, means))

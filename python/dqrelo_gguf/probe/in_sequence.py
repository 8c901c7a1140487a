"""Weights compressed one step after the other, as the graph reads them: each makes up for what those before it lose.

A weight W_ft of the fine-tune multiplies rows x. In the compressed model the same place gets x', because the weights before it
have errors; what is wanted there is still W_ft x:

    fine-tune     x  --> W_ft ------------> W_ft x
    compressed    x' --> W_base + D_hat --> as near to W_ft x as it gets

Least squares against x', drawn towards D by a share of plain errors, move the delta by W_ft times

    shift = E[(x - x') x'^T] (E[x' x'^T] + damping)^-1        (n_in, n_in)

and errors of what is coded then count by E[x' x'^T]. So the weights of a step are compressed after those of the steps before:
both models read the text up to the step's weights, and the weights that it gave go into the compressed model. A step goes on where the
one before has left the text, so that all of them together read it once:

    layer 0                                  layer 1
    q k v  ->  o  ->  gate up  ->  down  ->  q k v  ->  ...
    step 1     2      3            4         5
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.paper import norm
from dqrelo_gguf.convert.lanes import LocalLanes
from dqrelo_gguf.convert.moments import Moments
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.convert.sources import Models
from dqrelo_gguf.convert.tasks import Encode
from dqrelo_gguf.convert.work import Calibrate, Packs, Work
from dqrelo_gguf.file.container import GGUFFile
from dqrelo_gguf.file.weight_data import Pack
from dqrelo_gguf.model.vocabulary import EMBEDDING
from dqrelo_gguf.probe.calibrate import measure_moments
from dqrelo_gguf.probe.comparison import Comparison, held_bytes
from dqrelo_gguf.probe.one_weight import write_one
from dqrelo_gguf.probe.tuned_model import plain_tuned
from dqrelo_gguf.progress import Progress

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Step:
    """Weights that are compressed together.

    Args:
        weights: in the sequence of the file.
        compared: their group, if its inputs are compared before.
    """

    weights: list[Planned]
    compared: str | None = None


@contextmanager
def encoded_in_sequence(work: Work, options: Options, planned: Sequence[Planned], moments: Moments) -> Iterator[Packs]:
    """Compresses all weights, and keeps them in a temporary folder.

    Args:
        work: the conversion's inputs.
        options: of the conversion.
        planned: all weights.
        moments: of the fine-tune's inputs, with the text.

    Yields:
        What gives the packs of some weights, in sequence.

    Raises:
        DqreloError: a weight cannot be compressed, or there is no room.
    """
    n_plain = 2 * sum(prod(ne) for ne in work.base.shapes.values())
    n_held = held_bytes(moments.texts, max((p.pair.ne[0] for p in planned), default=0))
    with plain_tuned(work, "the calibration", sum(p.n_bytes for p in planned), n_plain + n_held) as path:
        todo = [p for p in planned if p.spec.dense_type is None and p.factors is None]
        with Comparison(moments.texts, path, work.blocks) as comparison:
            largest = max((prod(p.pair.ne) for p in planned), default=0)
            sequence = _InSequence(work, options, moments, comparison, folder=path.parent, largest=largest)
            with work.phases("compressing", sum(prod(p.pair.ne) for p in todo)) as progress:
                for step in steps(todo, moments):
                    sequence.take(step, progress)
        yield sequence.packs


def steps(planned: Sequence[Planned], moments: Moments) -> Iterator[Step]:
    """First what no group stands for, then the groups as the graph reads them.

    Inputs are compared of plain matrices. Of a stack, a row may go to other experts in the compressed model; and errors of a
    matrix that is also the embedding count before anything is read.
    """
    members: dict[str | None, list[Planned]] = {}
    for p in planned:
        group = moments.group(p.spec.name)
        members.setdefault(None if group == EMBEDDING or group not in moments.sequence else group, []).append(p)
    if None in members:
        yield Step(members.pop(None))
    for group in moments.sequence:
        if group in members:
            weights = members[group]
            yield Step(weights, group if all(prod(p.pair.ne[2:]) == 1 for p in weights) else None)


class _InSequence:
    """The compressed model, and the weights that are in it so far.

    Args:
        work: see `encoded_in_sequence`, as the two below.
        options: see above.
        moments: see above.
        comparison: of the fine-tune with the compressed model.
        folder: for files of weights that are compressed.
        largest: elements of the largest weight.
    """

    def __init__(
        self, work: Work, options: Options, moments: Moments, comparison: Comparison, *, folder: Path, largest: int
    ) -> None:
        self._work, self._options, self._moments, self._comparison = work, options, moments, comparison
        self._folder, self._largest = folder, largest
        self._found: dict[str, tuple[Path, Pack]] = {}  # The packs here have no tensors; those lie in the files.

    def take(self, step: Step, progress: Progress) -> None:
        """Compresses the weights of a step, and puts them into the compressed model."""
        inputs = self._moments
        if step.compared is not None:
            H, shift = self._comparison.of(step.compared)
            inputs = inputs.with_step({step.compared: H}, {step.compared: shift})
        lanes = self._lanes(inputs)
        for p, pack in lanes.each(Encode(self._options), step.weights):
            path = self._folder / f"{len(self._found)}.dq.gguf"
            D_hat = write_one(path, p.spec, pack)
            found = pack if inputs.shift(p.spec.name) is None else self._with_errors(p, pack, D_hat)
            self._found[p.spec.name] = path, replace(found, tensors=())
            D_hat += self._work.base.load(p.spec.name, self._work.blocks)
            self._comparison.compressed.set_weight(p.spec.name, D_hat)
            progress.step(prod(p.pair.ne), p.spec.name)

    def packs(self, planned: Sequence[Planned]) -> Iterator[tuple[Planned, Pack]]:
        """See `work.Packs`."""
        for p in planned:
            if p.spec.name not in self._found:
                yield from self._lanes(self._moments).each(Encode(self._options), [p])
                continue
            path, pack = self._found[p.spec.name]
            file = GGUFFile(path)
            yield p, replace(pack, tensors=tuple(file.raw(tensor) for tensor in file.tensors.values()))

    def _lanes(self, inputs: Moments) -> LocalLanes:
        work = self._work
        return LocalLanes(Models(work.base, work.reference, work.tuned, work.tuned, inputs), work.blocks, self._largest)

    def _with_errors(self, p: Planned, pack: Pack, D_hat: F32) -> Pack:
        """The pack with the errors of D itself, not of D with its shift."""
        work, (n_in, *_) = self._work, p.pair.ne
        D = torch.from_numpy(work.delta(p.pair))
        E = torch.from_numpy(D_hat) - D
        W = torch.from_numpy(work.tuned.load(p.pair.tuned_name, work.blocks))
        metrics = self._moments.metrics(p.spec.name, n_in, 1)
        assert metrics is not None
        error, outputs = norm(E, work.blocks), metrics[0].norm(D, work.blocks)
        return replace(
            pack,
            error_delta=_share(error, norm(D, work.blocks)),
            error_weight=_share(error, norm(W, work.blocks)),
            error_outputs=_share(metrics[0].norm(E, work.blocks), outputs),
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


# What `convert.job.convert` takes as `calibrate`.
CALIBRATE = Calibrate(measure_moments, encoded_in_sequence)

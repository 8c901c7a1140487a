"""Weights compressed one step after the other, as the graph reads them: each makes up for what those before it lose.

A weight W_ft of the fine-tune multiplies rows x. In the compressed model the same place gets x', because the weights before it
have errors; what is wanted there is still W_ft x:

    fine-tune     x  --> W_ft ------------> W_ft x
    compressed    x' --> W_base + D_hat --> as near to W_ft x as it gets

Least squares against x', drawn towards D by a share of plain errors, move the delta by W_ft times

    shift = E[(x - x') x'^T] (E[x' x'^T] + damping)^-1        (n_in, n_in)

and errors of what is coded then count by E[x' x'^T]. So the weights of a step are compressed after those of the steps before:
both models read the text up to the step's weights, and the weights that it gave go into the compressed model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.compress.paper import norm
from dqrelo_gguf.convert.lanes import LocalLanes
from dqrelo_gguf.convert.moments import Moments, Text
from dqrelo_gguf.convert.plain_model import replace_tensor
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.convert.sources import Models
from dqrelo_gguf.convert.tasks import Encode
from dqrelo_gguf.convert.work import Calibrate, Packs, Work
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.container import GGUFFile
from dqrelo_gguf.file.weight_data import Pack
from dqrelo_gguf.model.vocabulary import EMBEDDING
from dqrelo_gguf.probe.calibrate import measure_moments
from dqrelo_gguf.probe.one_weight import write_one
from dqrelo_gguf.probe.tuned_model import open_plain, plain_tuned
from dqrelo_gguf.progress import Progress
from dqrelo_gguf.runtime.session import Runtime

F32 = npt.NDArray[np.float32]

# A step costs two passes over the text, half of the model's depth in the mean. Up to so many steps there is one for each group of
# weights with the same input, beyond there are several groups in a step, which make up for the steps before alone.
MAX_STEPS = 64
# Of the text at most, in all steps.
MAX_TOKENS = 16384
# What draws a weight to the fine-tune's own, against the mean of the diagonal of x'^T x': a shift is smooth, so that less does than for codes.
SHIFT_DAMPING = 0.05


@dataclass(frozen=True)
class Step:
    """Weights that are compressed together.

    Args:
        weights: in the sequence of the file.
        compared: the groups whose inputs are compared before, in the sequence of the graph.
    """

    weights: list[Planned]
    compared: list[str]


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
    with plain_tuned(work, "the calibration", n_plain + sum(p.n_bytes for p in planned)) as tuned:
        sequence = _InSequence(work, options, moments, tuned)
        shutil.copyfile(tuned, sequence.compressed)
        todo = [p for p in planned if p.spec.dense_type is None and p.factors is None]
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
        yield Step(members[None], [])
    groups = [group for group in moments.sequence if group in members]
    size = -(-len(groups) // MAX_STEPS)
    for i in range(0, len(groups), max(size, 1)):
        some = groups[i : i + size]
        weights = [p for group in some for p in members[group]]
        compared = [group for group in some if all(prod(p.pair.ne[2:]) == 1 for p in members[group])]
        yield Step(weights, compared)


class _InSequence:
    """The two models, and the weights that are compressed so far.

    Args:
        work: see `encoded_in_sequence`, as the two below.
        options: see above.
        moments: see above.
        tuned: the fine-tune as a plain GGUF, in the temporary folder.

    Attributes:
        compressed: the plain GGUF of the fine-tune with base + D_hat in place of what is compressed.
    """

    def __init__(self, work: Work, options: Options, moments: Moments, tuned: Path) -> None:
        self.compressed = tuned.with_name("compressed.gguf")
        self._work, self._options, self._moments, self._tuned = work, options, moments, tuned
        self._texts = _first(moments.texts, MAX_TOKENS)
        self._found: dict[str, tuple[Path, Pack]] = {}  # The packs here have no tensors; those lie in the files.

    def take(self, step: Step, progress: Progress) -> None:
        """Compresses the weights of a step, and puts them into the compressed model."""
        inputs = self._moments.with_step(*self._compared(step.compared))
        lanes = self._lanes(inputs)
        for p, pack in lanes.each(Encode(self._options), step.weights):
            path = self._tuned.with_name(f"{len(self._found)}.dq.gguf")
            D_hat = write_one(path, p.spec, pack)
            found = pack if inputs.shift(p.spec.name) is None else self._with_errors(p, pack, D_hat)
            self._found[p.spec.name] = path, replace(found, tensors=())
            D_hat += self._work.base.load(p.spec.name, self._work.blocks)
            replace_tensor(self.compressed, p.spec.name, D_hat)
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
        return LocalLanes(Models(work.base, work.reference, work.tuned, work.tuned, inputs), work.blocks)

    def _compared(self, groups: list[str]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Of each group the moments of its inputs in the compressed model, and the shift."""
        if not groups:
            return {}, {}
        n_threads = self._work.blocks.n_threads
        n_tokens = max(len(text.tokens) for text in self._texts)
        sums = {group: InputSums(self._work.blocks) for group in groups}
        with (
            open_plain(self._tuned, 1, n_tokens, n_threads, watch=True) as tuned,
            open_plain(self.compressed, 1, n_tokens, n_threads, watch=True) as compressed,
        ):
            for text in self._texts:
                wanted, got = (_inputs(rt, text, groups) for rt in (tuned, compressed))
                for group in groups:
                    sums[group].add(wanted[group], got[group], text.weights)
        return {group: s.moments for group, s in sums.items()}, {group: s.shift() for group, s in sums.items()}

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


class InputSums:
    """What rows x of the fine-tune and x' of the compressed model are together.

    Args:
        blocks: the threads to work with.
    """

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._squares: torch.Tensor | None = None  # x'^T x'
        self._products: torch.Tensor | None = None  # (x - x')^T x'
        self._weight = 0.0

    def add(self, wanted: F32, got: F32, weights: F32) -> None:
        """Adds rows x and x', (n_rows, n_in) float32 each, that count by their weights (n_rows,)."""
        X, off = (torch.from_numpy(rows * np.sqrt(weights)[:, None]) for rows in (got, wanted - got))
        squares = self._blocks.gram(X)
        products = self._blocks.matmul(off.T.contiguous(), X).double()
        self._squares = squares if self._squares is None else self._squares.add_(squares)
        self._products = products if self._products is None else self._products.add_(products)
        self._weight += float(weights.sum())

    @property
    def moments(self) -> torch.Tensor:
        """The mean of x' x'^T, (n_in, n_in) float32."""
        assert self._squares is not None
        H = self._squares / self._weight
        return ((H + H.T) / 2).float()

    def shift(self) -> torch.Tensor:
        """The shift of the module's text, (n_in, n_in) float32."""
        assert self._squares is not None
        assert self._products is not None
        damped = (self._squares + self._squares.T) / 2
        damped.diagonal().add_(SHIFT_DAMPING * float(damped.diagonal().mean()) + 1e-30)
        # The inverse of a symmetric matrix from the right: X A^-1 = (A^-1 X^T)^T.
        return torch.cholesky_solve(self._products.T, torch.linalg.cholesky(damped)).T.float().contiguous()


def _inputs(rt: Runtime, text: Text, groups: list[str]) -> dict[str, F32]:
    """The rows that each group's weights multiply, a token a row: (n_tokens, n_in) float32."""
    found: dict[str, list[F32]] = {group: [] for group in groups}
    rt.visit_inputs([text.tokens], groups, lambda name, rows, _: found[name].append(rows))
    for group, rows in found.items():
        if not rows or not all(np.isfinite(part).all() for part in rows):
            raise InputError(
                f"the calibration: weight '{group}' multiplies {'numbers that are not finite' if rows else 'nothing'} in this "
                "model. Calibrate again with it"
            )
    return {group: np.concatenate(rows) for group, rows in found.items()}


def _first(texts: Sequence[Text], n_tokens: int) -> list[Text]:
    """Texts of about so many tokens at most, spread evenly over all."""
    total = sum(len(text.tokens) for text in texts)
    return list(texts[:: max(1, -(-total // n_tokens))])


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


# What `convert.job.convert` takes as `calibrate`.
CALIBRATE = Calibrate(measure_moments, encoded_in_sequence)

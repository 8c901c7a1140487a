"""The importance of weights, by a probe: how far the fine-tune's answers move when one class of weights is compressed.

Nobody's data is needed: base and fine-tune write the text themselves. For each class, weights of one kind in one half of
the layers, the fine-tune runs with that class compressed and all else exact; KL(fine-tune || that) over its squared error is
what one unit of it does. The fine-tune runs as a plain F16 GGUF in a temporary folder, the classes as deltas over it that
hold the error of the compressed weights whole, all in one process and mixed batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.convert.encode import Means, encode_weight
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.convert.report import kind, layer
from dqrelo_gguf.convert.work import Work
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.divergence import divergence
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.layout import Type, WeightSpec
from dqrelo_gguf.file.metadata import DeltaMeta
from dqrelo_gguf.file.weight_data import WeightData
from dqrelo_gguf.file.writer import DeltaWriter
from dqrelo_gguf.probe.one_weight import write_one
from dqrelo_gguf.probe.tuned_model import Tokens, drawn_texts, open_plain, plain_tuned
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime

F32 = npt.NDArray[np.float32]

# Text that each of base and fine-tune writes.
N_TEXTS, N_TOKENS = 8, 48
SEED = 1
# A class whose weights no graph reads, or which the text does not show, still counts this much of the median.
LEAST_SHARE = 1e-3


def measured_importance(work: Work, planned: list[Planned]) -> dict[str, float]:
    """KL a unit of squared error of each planned matrix.

    Args:
        work: the conversion's inputs.
        planned: a first plan; its mixes are what is probed.

    Raises:
        InputError: the model cannot be probed here; the text says why.
    """
    matrices = [p for p in planned if p.spec.dense_type is None]
    n_params = sum(prod(ne) for ne in work.base.shapes.values())
    with plain_tuned(work, "the probe", 2 * n_params, 2 * n_params) as tuned:
        texts = _texts(Path(work.base.path), tuned, work.blocks.n_threads)
        classes = list(_write_classes(work, matrices, tuned))
        with _open(tuned, work.blocks.n_threads) as rt:
            moved = _moved(work, rt, [rt.load_delta(path) for _, path, _ in classes], texts)
    shares = [kl / max(error, 1e-300) for kl, (_, _, error) in zip(moved, classes, strict=True)]
    floor = LEAST_SHARE * float(np.median(shares))
    return {
        p.spec.name: max(share, floor, 1e-30)
        for share, (members, _, _) in zip(shares, classes, strict=True)
        for p in members
    }


def _open(path: Path, n_threads: int) -> Runtime:
    return open_plain(path, N_TEXTS, N_TOKENS + 1, n_threads)


def _texts(base: Path, tuned: Path, n_threads: int) -> list[Tokens]:
    """Texts that both models write from the beginning, drawn with fixed seeds."""
    texts = []
    for path in (base, tuned):
        with _open(path, n_threads) as rt:
            texts += drawn_texts(rt, N_TEXTS, N_TOKENS, SEED)
    if not texts:
        raise InputError("the models write no text of their own")
    return texts


def _write_classes(work: Work, matrices: list[Planned], tuned: Path) -> Iterator[tuple[list[Planned], Path, float]]:
    """A delta over the fine-tune for each class, beside it, with the squared error that it holds."""
    folder = tuned.parent
    identity = base_identity(tuned)
    n_layer = 1 + max((layer(p.spec.name) or 0 for p in matrices), default=0)
    classes: dict[tuple[str, int], list[Planned]] = {}
    for p in matrices:
        i = layer(p.spec.name)
        classes.setdefault((kind(p.spec.name), -1 if i is None else 2 * i // n_layer), []).append(p)
    means = Means(Options(), work.blocks, max_rounds=1)
    with work.phases("probing", sum(prod(p.pair.ne) for p in matrices)) as progress:
        for c, members in enumerate(classes.values()):
            meta = DeltaMeta(work.base.architecture, str(c), "probe", "dqrelo-convert", {}, work.base.name, identity)
            specs = [WeightSpec.dense(p.spec.name, p.spec.ne, Type.F16) for p in members]
            path, error = folder / f"{c}.dq.gguf", 0.0
            with DeltaWriter(path, meta, specs) as writer:
                for p in members:
                    data = encode_weight(p, work.reference, work.tuned, means)
                    off = write_one(folder / "one.dq.gguf", p.spec, data) - work.delta(p.pair)
                    error += float(np.square(off, dtype=np.float64).sum())
                    writer.write(WeightData(dense=off))
                    progress.step(prod(p.pair.ne), p.spec.name)
            yield members, path, error


def _moved(work: Work, rt: Runtime, deltas: list[Delta], texts: list[Tokens]) -> list[float]:
    """Mean KL(fine-tune || fine-tune with a class compressed) over all tokens, for each class."""
    total = np.zeros(len(deltas))
    n_tokens = sum(len(text) for text in texts)
    with work.phases("listening", n_tokens * len(deltas), unit="tokens") as progress:
        for text in texts:
            expected = rt.logits(text)
            for first in range(0, len(deltas), N_TEXTS - 1):
                some = deltas[first : first + N_TEXTS - 1]
                for i, got in enumerate(rt.logits([text] * len(some), some)):
                    total[first + i] += float(divergence(expected, got).sum())
                progress.step(len(text) * len(some), "text")
    return [float(kl) / n_tokens for kl in total]

"""The measurement on text: every window is read by the fine-tune, by the base and its deltas in mixed batches, and by rivals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.evaluate.divergence import Candidates, Compared, candidates, compare
from dqrelo_gguf.evaluate.room import Rounds
from dqrelo_gguf.evaluate.sides import F32, Host, Sides, Store
from dqrelo_gguf.evaluate.statistics import Mean, TextFigures, perplexity
from dqrelo_gguf.evaluate.text import Text, Window
from dqrelo_gguf.progress import Progress
from dqrelo_gguf.runtime.session import Runtime

N_CANDIDATES = 5  # that are kept of each token of the sample


@dataclass
class TextResult:
    """What was measured so far, window by window.

    Args:
        n_sample: of so many of the first tokens that count, the most probable candidates are kept.
        tuned_nll: -log P of each token that counts, by the fine-tune.
        models: of each model, its comparisons: the base, its deltas, the rivals.
        sample: of each of the first windows, the candidates by the fine-tune and by each of these models.
    """

    n_sample: int = 0
    tuned_nll: list[npt.NDArray[np.float32]] = field(default_factory=list)
    models: list[list[Compared]] = field(default_factory=list)
    sample: list[list[Candidates]] = field(default_factory=list)

    @property
    def n_windows(self) -> int:
        return len(self.tuned_nll)

    @property
    def n_scored(self) -> int:
        """Tokens that counted."""
        return sum(map(len, self.tuned_nll))

    def figures(self) -> tuple[Mean, list[TextFigures]]:
        """The perplexity of the fine-tune, and the figures of each model; at least one window is measured."""
        nll, lengths = np.concatenate(self.tuned_nll), [len(n) for n in self.tuned_nll]
        return perplexity(nll), [TextFigures.of(nll, Compared.joined(parts), lengths) for parts in self.models]


def measure_text(sides: Sides, text: Text, rounds: Rounds, progress: Progress, result: TextResult) -> None:
    """Measures all windows.

    Args:
        sides: the models.
        text: what they read.
        rounds: how much at a time.
        progress: counts tokens, each once by each model.
        result: gets each round's figures as soon as all models have read it: what an interrupt leaves is whole.
    """
    n_sampled = iter(sampled_rows(text.windows, result.n_sample))
    for batch in _batches(text, rounds, sides):
        sides.store.clear()
        with sides.tuned() as rt:
            shapes = [_read_tuned(rt, windows, sides.store, progress) for windows in batch]
        measured = [_Round([next(n_sampled) for _ in windows]) for windows in batch]
        for i in range(sides.n_hosts):
            sides.store.rewind()
            with sides.host(i) as host:
                for part, windows, shape in zip(measured, batch, shapes, strict=True):
                    part.read(host, rounds.n_group, windows, [sides.store.take(n) for n in shape])
                    progress.step(sum(w.n_scored for w in windows) * len(host.models), host.name)
                    if i == sides.n_hosts - 1:
                        part.add_to(result)


def sampled_rows(windows: list[Window], n_sample: int) -> list[int]:
    """Of how many tokens of each window candidates are kept, so that they are the first `n_sample` that count."""
    n_rows = list[int]()
    for window in windows:
        n_rows.append(min(n_sample - sum(n_rows), window.n_scored))
    return n_rows


def _read_tuned(rt: Runtime, windows: list[Window], store: Store, progress: Progress) -> list[tuple[int, int]]:
    """Stores the fine-tune's rows of each window; returns their shapes."""
    shapes = []
    for rows in rt.logits([w.tokens[:-1] for w in windows], first=[w.first for w in windows]):
        store.put(rows)
        shapes.append((rows.shape[0], rows.shape[1]))
    progress.step(sum(w.n_scored for w in windows), "fine-tune")
    return shapes


def _batches(text: Text, rounds: Rounds, sides: Sides) -> Iterator[list[list[Window]]]:
    """Rounds that the fine-tune reads before the base reads them: as many as may wait, at least one."""
    batch, n_bytes = list[list[Window]](), 0
    for windows in rounds.of(text.windows):
        n_more = rounds.row_bytes * sum(w.n_scored for w in windows)
        if batch and n_bytes + n_more > sides.waiting_bytes:
            yield batch
            batch, n_bytes = [], 0
        batch.append(windows)
        n_bytes += n_more
    yield batch


@dataclass
class _Round:
    """What was measured of a round so far: as in `TextResult`. Candidates are kept of the first `n_sampled` rows of each window."""

    n_sampled: list[int]
    nll: list[npt.NDArray[np.float32]] = field(default_factory=list)
    models: list[list[Compared]] = field(default_factory=list)
    sample: list[list[Candidates]] = field(default_factory=list)

    def read(self, host: Host, n_group: int, windows: list[Window], tuned: list[F32]) -> None:
        """Lets all models on a host read the windows, `n_group` of them in a call; `tuned` are the fine-tune's rows."""
        self.sample = self.sample or [
            [candidates(p[:n], N_CANDIDATES)] for p, n in zip(tuned, self.n_sampled, strict=True)
        ]
        for at in range(0, len(host.models), n_group):
            group = host.models[at : at + n_group]
            n = len(group)
            rows = host.rt.logits(
                [w.tokens[:-1] for w in windows for _ in group],
                group * len(windows),
                first=[w.first for w in windows for _ in group],
            )
            of_windows = [
                compare(p, rows[n * i : n * (i + 1)], w.targets)
                for i, (w, p) in enumerate(zip(windows, tuned, strict=True))
            ]
            self.nll = [own for own, _ in of_windows]
            self.models += [[models_of[k] for _, models_of in of_windows] for k in range(n)]
            for i, found in enumerate(self.sample):
                found += [candidates(q[: self.n_sampled[i]], N_CANDIDATES) for q in rows[n * i : n * (i + 1)]]

    def add_to(self, result: TextResult) -> None:
        """Adds it to what is measured."""
        result.sample += [found for found, n in zip(self.sample, self.n_sampled, strict=True) if n > 0]
        result.tuned_nll += self.nll
        result.models = result.models or [[] for _ in self.models]
        for model, of_windows in zip(result.models, self.models, strict=True):
            model.extend(of_windows)

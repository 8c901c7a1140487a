"""The measurement on problems: the fine-tune answers them, and the base, its deltas and the rivals do, all greedily."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from dqrelo_gguf.evaluate.problems import Problem, ProblemFile
from dqrelo_gguf.evaluate.retention import Hits, TaskHits
from dqrelo_gguf.evaluate.sides import Host, Sides
from dqrelo_gguf.evaluate.text import Tokens
from dqrelo_gguf.progress import Progress

N_TOGETHER = 32  # problems that both sides answer before the next ones


@dataclass(frozen=True)
class Task:
    """A file's problems, and the tokens that the models read of each."""

    file: ProblemFile
    prompts: list[Tokens]


@dataclass
class TaskResult:
    """Texts of the problems answered so far.

    Args:
        task: the problems.
        tuned: the fine-tune's texts.
        models: those of the base, its deltas and the rivals.
    """

    task: Task
    tuned: list[str] = field(default_factory=list)
    models: list[list[str]] = field(default_factory=list)

    @property
    def n_answered(self) -> int:
        """Problems that all have answered."""
        return min([len(self.tuned), *map(len, self.models)]) if self.models else 0

    def tuned_hits(self) -> Hits:
        """Which the fine-tune has right."""
        return self._hits(self.tuned)

    def model_hits(self) -> list[Hits]:
        """Which each model has right; the first is the base."""
        return [self._hits(texts) for texts in self.models]

    def hits(self) -> list[TaskHits]:
        """Of each delta and rival, with its base and its fine-tune."""
        base, *others = self.model_hits()
        return [TaskHits(base, self.tuned_hits(), other) for other in others]

    def n_same(self) -> list[int]:
        """Problems that each model answers word for word as the fine-tune does."""
        return [sum(a == b for a, b in zip(self.tuned, texts, strict=False)) for texts in self.models]

    def _hits(self, texts: list[str]) -> Hits:
        answered = zip(self.task.file.problems[: self.n_answered], texts, strict=False)
        return np.array([problem.is_right(text) for problem, text in answered], bool)


def answer_problems(sides: Sides, result: TaskResult, max_tokens: int, progress: Progress, is_sequential: bool) -> None:
    """Lets all models answer a task.

    Args:
        sides: the models.
        result: gets the answers as they come.
        max_tokens: of an answer.
        progress: counts answers.
        is_sequential: a model answers all problems before the next one does.
    """
    for problems, prompts in _batches(result.task, is_sequential):
        stop = list(problems[0].stop)
        with sides.tuned() as rt:
            result.tuned += rt.generate(prompts, max_tokens=max_tokens, stop=stop)
            progress.step(len(problems), "fine-tune")
        texts = list[list[str]]()
        for i in range(sides.n_hosts):
            with sides.host(i) as host:
                texts += _answers(host, prompts, max_tokens, stop)
                progress.step(len(host.models) * len(problems), host.name)
        result.models = result.models or [[] for _ in texts]
        for of_model, more in zip(result.models, texts, strict=True):
            of_model.extend(more)


def _answers(host: Host, prompts: list[Tokens], max_tokens: int, stop: list[str]) -> list[list[str]]:
    """Of each model on a host, its answers."""
    n = len(host.models)
    texts = host.rt.generate(
        [prompt for prompt in prompts for _ in host.models],
        host.models * len(prompts),
        max_tokens=max_tokens,
        stop=stop,
    )
    return [texts[k::n] for k in range(n)]


def _batches(task: Task, is_sequential: bool) -> Iterator[tuple[list[Problem], list[Tokens]]]:
    """Problems that are answered together: they end at the same texts."""
    pairs = list(zip(task.file.problems, task.prompts, strict=True))
    for _, same in groupby(pairs, key=lambda pair: pair[0].stop):
        alike = list(same)
        step = len(alike) if is_sequential else N_TOGETHER
        for at in range(0, len(alike), step):
            some = alike[at : at + step]
            yield [problem for problem, _ in some], [prompt for _, prompt in some]

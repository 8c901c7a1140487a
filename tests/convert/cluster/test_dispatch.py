"""dispatch.py with workers that are none: order, bounds, and what becomes of the weights of lost workers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from dqrelo_gguf.convert.cluster.dispatch import MAX_LOSSES, Ended, LostError, Worker, dispatch
from dqrelo_gguf.convert.lanes import AHEAD
from dqrelo_gguf.errors import DqreloError, InputError, NonFiniteError


class Sizes:
    """A task on weights that are numbers of elements; a result has as many bytes."""

    def name(self, weight: int) -> str:
        return f"weight {weight}"

    def n_elements(self, weight: int) -> int:
        return weight

    def n_result_bytes(self, weight: int) -> int:
        return weight

    def run(self, weight: int, models: Any, blocks: Any) -> str:
        raise NotImplementedError


@dataclass
class FakeFleet:
    """Workers that finish in a random order; `fate` says how a weight ends."""

    list_of_workers: list[Worker]
    fate: Callable[[int, Worker], str | DqreloError | None] = lambda _weight, _worker: None
    max_held_bytes: int = 1 << 40
    gone: set[int] = field(default_factory=set)  # weights whose result is lost once it is there
    seed: int = 0

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)  # noqa: S311
        self.running: dict[int, tuple[int, Worker, int]] = {}
        self.done: dict[int, int] = {}
        self.n_begun = 0
        self.begun: list[int] = []
        self.most_held = 0
        self.log: list[tuple[Worker, list[int]]] = []

    def workers(self) -> Sequence[Worker]:
        if not self.list_of_workers:
            raise InputError("--ray: no worker is left")
        return self.list_of_workers

    def start(self, worker: Worker, task: Any, weight: int, n_threads: int) -> int:
        del task
        self.n_begun += 1
        self.running[self.n_begun] = weight, worker, n_threads
        self.begun.append(weight)
        self.most_held = max(self.most_held, sum(w for w, *_ in self.running.values()) + sum(self.done.values()))
        own = [(w, n) for w, at, n in self.running.values() if at == worker]
        assert sum(n for _, n in own) <= worker.n_threads
        self.log.append((worker, [w for w, _ in own]))
        return self.n_begun

    def wait(self) -> Sequence[Ended]:
        assert self.running, "waits for nothing"
        ticket = self.draw.choice(list(self.running))
        weight, worker, _ = self.running.pop(ticket)
        fate = self.fate(weight, worker)
        if isinstance(fate, str):  # The worker dies with all that it works on.
            self.list_of_workers = [w for w in self.list_of_workers if w != worker]
            lost = [ticket, *(t for t, (_, at, _) in self.running.items() if at == worker)]
            for other in lost[1:]:
                del self.running[other]
            self.list_of_workers.append(Worker(worker.key + "'", worker.n_threads))
            return [Ended(t, lost=fate) for t in lost]
        if isinstance(fate, DqreloError):
            return [Ended(ticket, error=fate)]
        self.done[ticket] = weight
        return [Ended(ticket)]

    def fetch(self, ticket: int) -> str:
        weight = self.done.pop(ticket)
        if weight in self.gone:
            self.gone.remove(weight)
            raise LostError("its machine is gone")
        return f"done {weight}"


WEIGHTS = [7, 1000, 3, 240, 251, 5, 250, 9, 260, 1, 2, 4, 999, 8, 6]
WORKERS = [Worker("a", 1), Worker("b", 4), Worker("c", 2)]


def results(fleet: FakeFleet, weights: Sequence[int] = WEIGHTS) -> tuple[list[tuple[int, str]], list[str]]:
    notes: list[str] = []
    return list(dispatch(Sizes(), weights, fleet, notes)), notes


DONE = [(w, f"done {w}") for w in WEIGHTS]


@pytest.mark.parametrize("seed", range(20))
def test_results_come_in_order_and_each_worker_keeps_to_the_size_of_the_largest_weight(seed: int) -> None:
    fleet = FakeFleet(list(WORKERS), seed=seed)
    assert results(fleet) == (DONE, [])
    assert Counter(fleet.begun) == Counter(WEIGHTS)
    assert max(sum(own) for _, own in fleet.log) <= max(WEIGHTS)
    assert len({worker for worker, _ in fleet.log}) == len(WORKERS)


@pytest.mark.parametrize("seed", range(20))
def test_what_waits_to_be_written_is_bounded(seed: int) -> None:
    fleet = FakeFleet([Worker(str(i), 4) for i in range(9)], max_held_bytes=50, seed=seed)
    weights = [10] * 40 + [300] + [10] * 10
    assert [w for w, _ in results(fleet, weights)[0]] == weights
    assert fleet.most_held <= 50 + 300  # What is larger than the bound goes when its turn has come.
    fleet = FakeFleet([Worker(str(i), 4) for i in range(9)], max_held_bytes=50, seed=seed)
    results(fleet, [10] * 40)
    assert 10 < fleet.most_held <= 50


def test_no_more_is_begun_than_a_few_weights_a_thread_ahead() -> None:
    fleet = FakeFleet([Worker("a", 2)])
    found = dispatch(Sizes(), [1] * 100, fleet, [])
    next(found)
    assert len(fleet.begun) <= AHEAD * 2 + 2


@pytest.mark.parametrize("seed", range(20))
def test_the_weights_of_a_lost_worker_are_computed_again(seed: int) -> None:
    draw, n_lost = random.Random(seed), Counter[int]()  # noqa: S311

    def fate(weight: int, _: Worker) -> str | None:
        if n_lost[weight] < MAX_LOSSES - 2 and draw.random() < 0.4:
            n_lost[weight] += 1
            return "killed"
        return None

    fleet = FakeFleet(list(WORKERS), fate, seed=seed)
    found, notes = results(fleet)
    assert found == DONE
    assert bool(notes) == bool(n_lost)
    assert all(note.endswith("was computed again, because a worker was lost: killed") for note in notes)


def test_a_result_that_is_lost_with_its_machine_is_computed_again() -> None:
    fleet = FakeFleet(list(WORKERS), gone={251, 4})
    found, notes = results(fleet)
    assert found == DONE
    assert Counter(fleet.begun) == Counter([*WEIGHTS, 251, 4])
    assert len(notes) == 2


def test_a_weight_that_every_worker_is_lost_with_is_named() -> None:
    fleet = FakeFleet(list(WORKERS), lambda weight, _: "killed by signal 9" if weight == 251 else None)
    with pytest.raises(InputError) as raised:
        results(fleet)
    assert str(raised.value) == (
        "weight 251: 3 workers were lost while they worked on it, the last one so: killed by signal 9. "
        "Is there memory for it (docs/converter.md, On a cluster)?"
    )
    # After the first time nothing else runs beside it, so that no other weight is taken for the cause.
    assert [own for _, own in fleet.log if 251 in own][1:] == [[251], [251]]


@pytest.mark.parametrize("seed", range(10))
def test_the_first_weight_that_cannot_be_converted_is_the_one_that_is_named(seed: int) -> None:
    fleet = FakeFleet(
        list(WORKERS), lambda weight, _: NonFiniteError(f"bad {weight}") if weight in (240, 250) else None, seed=seed
    )
    found = dispatch(Sizes(), WEIGHTS, fleet, [])
    assert [next(found)[0] for _ in range(3)] == WEIGHTS[:3]
    with pytest.raises(NonFiniteError, match="bad 240"):
        next(found)


def test_without_workers_it_ends() -> None:
    fleet = FakeFleet([Worker("a", 1)])
    found = dispatch(Sizes(), WEIGHTS, fleet, [])
    next(found)
    fleet.list_of_workers = []
    with pytest.raises(InputError, match="no worker is left"):
        list(found)
    assert list(dispatch(Sizes(), [], fleet, [])) == []

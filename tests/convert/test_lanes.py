"""lanes.py: results in order, and no more at work at once than the largest weight is large."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.convert.lanes import AHEAD, in_lanes


class AtWork:
    """Counts what is worked on at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now: list[int] = []
        self.most_elements, self.most_weights = 0, 0
        self.n_threads: dict[int, int] = {}

    def __call__(self, weight: int, blocks: Blocks) -> str:
        with self.lock:
            self.now.append(weight)
            self.most_elements = max(self.most_elements, sum(self.now))
            self.most_weights = max(self.most_weights, len(self.now))
            self.n_threads[weight] = blocks.n_threads
        threading.Event().wait(0.01)
        with self.lock:
            self.now.remove(weight)
        return f"done {weight}"


WEIGHTS = [7, 1000, 3, 240, 251, 5, 250, 9, 260, 1, 2, 4]


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_results_come_in_order_within_the_largest_weights_size(n_threads: int) -> None:
    work = AtWork()
    with open_blocks(n_threads) as blocks:
        found = list(in_lanes(WEIGHTS, int, work, blocks))
    assert found == [(w, f"done {w}") for w in WEIGHTS]
    assert work.most_elements <= max(WEIGHTS)
    assert work.most_weights <= n_threads
    assert n_threads == 1 or work.most_weights > 1
    # A large weight has all threads, a small one has one.
    assert {w: n for w, n in work.n_threads.items() if n != (1 if w * n_threads <= 1000 else n_threads)} == {}


def test_fewer_weights_than_threads_have_all_threads_each() -> None:
    """As many as there are threads share them."""
    for weights, n_each in (([3, 5, 7], 4), ([3, 5, 7, 9], 1)):
        work = AtWork()
        with open_blocks(4) as blocks:
            found = list(in_lanes(weights, int, work, blocks, largest=1000))
        assert found == [(w, f"done {w}") for w in weights]
        assert set(work.n_threads.values()) == {n_each}


def test_a_failure_stops_the_rest_and_is_raised_in_its_place() -> None:
    begun = []

    def work(weight: int, _: Blocks) -> int:
        begun.append(weight)
        if weight == 3:
            raise ValueError("the third")
        return weight

    with open_blocks(2) as blocks:
        results: Iterator[tuple[int, int]] = in_lanes([1, 2, 3, *range(4, 100), 1000], int, work, blocks)
        assert [next(results), next(results)] == [(1, 1), (2, 2)]
        with pytest.raises(ValueError, match="the third"):
            next(results)
    assert max(begun) <= 3 + AHEAD * 2


def test_a_slow_weight_does_not_stop_the_other_lanes() -> None:
    others, is_slow_done = [], threading.Event()

    def work(weight: int, _: Blocks) -> int:
        if weight == 9:
            is_slow_done.wait(10)
        else:
            others.append(weight)
            if len(others) == AHEAD:
                is_slow_done.set()
        return weight

    with open_blocks(2) as blocks:
        assert [w for w, _ in in_lanes([9, *range(1, 8), 1000], int, work, blocks)] == [9, *range(1, 8), 1000]
    assert is_slow_done.is_set()


def test_equal_weights_share_the_lanes_beside_a_larger_one_of_another_call() -> None:
    """Alone each would take all threads."""
    barrier = threading.Barrier(2)

    def work(weight: int, blocks: Blocks) -> int:
        barrier.wait(10)
        return weight + blocks.n_threads

    with open_blocks(2) as blocks:
        assert [r for _, r in in_lanes([7, 7], int, work, blocks, largest=14)] == [8, 8]
        assert [r for _, r in in_lanes([7], int, lambda w, b: w + b.n_threads, blocks, largest=13)] == [9]


def test_nothing_is_at_work_after_a_consumer_left() -> None:
    work = AtWork()
    with open_blocks(2) as blocks:
        results = in_lanes([1] * 50 + [100], int, work, blocks)
        next(results)
        results.close()  # type: ignore[attr-defined]
    assert work.now == []
    assert list(in_lanes([], int, work, Blocks(1))) == []

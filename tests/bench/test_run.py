"""bench/run.py: in which order rows are timed, what their figures mean, and the native call that times them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.bench.plan import Workload
from dqrelo_gguf.bench.run import measure
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.runtime.deltas import Blend, Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.bench_rows import bench_row

# --- the order


class FakeTimer:
    """Returns 1, 2, 3 ... nanoseconds, and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[Sequence[Blend], int, int, int, int]] = []

    def time_streams(self, blends: Sequence[Blend], n_prompt: int, n_gen: int, n_threads: int, seed: int) -> int:
        self.calls.append((blends, n_prompt, n_gen, n_threads, seed))
        return len(self.calls)


def test_rows_take_turns_with_the_same_tokens() -> None:
    timer = FakeTimer()
    rows: Any = [["base"], ["math"], ["words"]]
    samples = measure(timer, Workload(7, 5), rows, n_threads=2, n_repetitions=2, warm_up=True)
    assert timer.calls == [
        *((row, 7, 1, 2, 0) for row in rows),  # These calls are the warm-up: the prompt and one step.
        *((row, 7, 5, 2, 0) for row in rows),
        *((row, 7, 5, 2, 1) for row in rows),
    ]
    assert samples == [[4, 7], [5, 8], [6, 9]]


def test_without_a_warm_up_the_first_run_counts() -> None:
    timer = FakeTimer()
    assert measure(timer, Workload(0, 5), [[[]]], n_threads=1, n_repetitions=3, warm_up=False) == [[1, 2, 3]]


# --- the figures


def test_the_ratio_is_taken_within_each_repetition() -> None:
    # The third repetition was slow for both: the ratio of the medians would be 0.5.
    tuned = bench_row(Workload(0, 10), (200, 400, 900), (100, 200, 800))
    assert tuned.ratio_to_base == 0.5
    slow_once = bench_row(Workload(0, 10), (200, 400, 1000), (100, 360, 950))
    assert slow_once.ratio_to_base == 0.9
    assert slow_once.limit == 0.9
    assert slow_once.ratio_to_limit == 1.0
    assert slow_once.median_ts == 1e9 * 10 / 400


def test_one_repetition_has_no_deviation() -> None:
    once = bench_row(Workload(0, 10), (250,), None)
    assert (once.avg_ns, once.stddev_ns, once.stddev_ts, once.median_ts) == (250, 0, 0.0, 4e7)
    assert (once.ratio_to_base, once.limit, once.ratio_to_limit) == (None, None, None)


def test_a_prompt_has_no_limit() -> None:
    assert bench_row(Workload(10, 0), (2,), (1,)).limit is None
    assert bench_row(Workload(10, 5), (2,), (1,)).ratio_to_limit is None
    assert bench_row(Workload(10, 0), (2,), (1,)).ratio_to_base == 0.5


# --- the native call


@pytest.fixture
def runtime(narrow_base: Path) -> Iterator[Runtime]:
    with Runtime(narrow_base, n_threads=1, n_ctx=512, n_batch=32, n_ubatch=16, n_seq_max=2, kv_unified=False) as rt:
        yield rt


def test_timing_leaves_nothing_behind(runtime: Runtime, narrow_deltas: list[Path]) -> None:
    session = runtime._session
    math, words = (runtime.load_delta(path) for path in narrow_deltas)
    before = runtime.logits([1, 5, 6], math)
    for n_prompt, n_gen in ((100, 0), (0, 5), (40, 3)):  # The first prompt has several pieces.
        assert session.time_streams([[(math, 1.0)], [(words, 0.5), (math, -1.0)]], n_prompt, n_gen, 2, 0) > 0
        assert session.time_streams([[]], n_prompt, n_gen, 1, 0) > 0
    assert session.time_streams([[(math, 1.0)]], 256, 0, 1, 0) > 0  # This takes all of a sequence's memory.
    assert (
        session.time_streams([[(math, 1.0)]], 0, 256, 1, 0) > 0
    )  # The first step, which is not measured, takes none of it.
    assert np.array_equal(runtime.logits([1, 5, 6], math), before)
    math.close()  # This works, because the delta is bound to nothing.
    words.close()
    with pytest.raises(InputError, match=r"delta 'words\.dq\.gguf' is closed"):
        session.time_streams([[], [(words, 1.0)]], 4, 0, 1, 0)  # It would have run on this delta.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, _: s.time_streams([], 4, 0, 1, 0), "got 0 streams, expected 1 to 2"),
        (lambda s, _: s.time_streams([[]] * 3, 4, 0, 1, 0), "got 3 streams, expected 1 to 2"),
        (lambda s, _: s.time_streams([[]], 4, 0, 0, 0), "got 0 threads, expected at least 1"),
        (lambda s, _: s.time_streams([[]], 257, 0, 1, 0), "no room in the context's memory"),
        (lambda s, d: s.time_streams([[], [(d, 1.0)]], 4, 0, 1, 0), "was loaded for another runtime"),
    ],
)
def test_timing_refuses(
    runtime: Runtime, narrow_base: Path, narrow_deltas: list[Path], call: Callable[[Any, Delta], object], message: str
) -> None:
    with Runtime(narrow_base, n_threads=1) as other:
        stranger = other.load_delta(narrow_deltas[0])
        with pytest.raises(InputError, match=message) as caught:
            call(runtime._session, stranger)
    assert "\n" not in str(caught.value)
    assert runtime._session.time_streams([[]], 4, 0, 1, 0) > 0  # The session is still in order.


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer on this system")
def test_a_signal_ends_timing(narrow_base: Path, narrow_deltas: list[Path]) -> None:
    class Interrupted(Exception):  # noqa: N818 - stands for KeyboardInterrupt
        pass

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    with Runtime(narrow_base, n_ctx=1 << 17, n_seq_max=1) as rt:
        loaded = rt.load_delta(narrow_deltas[0])
        old = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            with pytest.raises(Interrupted):
                rt._session.time_streams([[(loaded, 1.0)]], 0, 1 << 17, 1, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        loaded.close()  # This works, because the delta is bound to nothing.

"""bench/support/streams.py: speed from the times of tokens, and prompts."""

from __future__ import annotations

import pytest


def test_speed_counts_only_the_time_in_which_all_streams_generate(bench_module):
    streams = bench_module("support.streams")
    # There are 10 tokens/s from 1.0 to 2.0, and 5 tokens/s from 1.6 to 3.6: together 15 tokens/s from 1.6 to 2.0.
    fast = streams.Stream([1 + 0.1 * i for i in range(11)], list(range(1, 12)))
    late = streams.Stream([1.6 + 0.2 * i for i in range(11)], list(range(1, 12)))
    speed = streams.speed_of([fast, late])
    assert speed.tokens_per_s == pytest.approx(15)
    assert speed.step_ms == pytest.approx(1000 * 2 / 15)
    assert speed.run_tokens_per_s == pytest.approx(22 / 3.6)


def test_speed_does_not_depend_on_the_order_of_events_in_a_step(bench_module):
    streams = bench_module("support.streams")
    steps = [0.1 * i for i in range(1, 21)]
    together = [streams.Stream(steps, list(range(1, 21)))] * 4
    apart = [streams.Stream([t + 0.001 * i for t in steps], list(range(1, 21))) for i in range(4)]
    assert streams.speed_of(apart).tokens_per_s == pytest.approx(streams.speed_of(together).tokens_per_s)
    assert streams.speed_of(together).tokens_per_s == pytest.approx(40)


def test_speed_counts_tokens_that_came_without_an_event(bench_module):
    streams = bench_module("support.streams")
    gaps = streams.Stream([1.0, 1.4, 2.0], [1, 5, 11])  # An unfinished character is held back.
    assert streams.speed_of([gaps]).tokens_per_s == pytest.approx(10)


def test_speed_of_streams_that_do_not_overlap_is_refused(bench_module):
    streams = bench_module("support.streams")
    with pytest.raises(ValueError, match="n-predict"):
        streams.speed_of([streams.Stream([1.0, 2.0], [1, 2]), streams.Stream([2.5, 3.0], [1, 2])])


def test_random_prompts_differ_between_streams_and_not_between_runs(bench_module):
    prompt = bench_module("support.streams").random_prompt
    assert prompt(0, 32, 1000) == prompt(0, 32, 1000)
    assert prompt(0, 32, 1000) != prompt(1, 32, 1000)
    assert len(prompt(0, 32, 1000)) == 32
    assert all(300 <= token < 1000 for token in prompt(2, 500, 1000))

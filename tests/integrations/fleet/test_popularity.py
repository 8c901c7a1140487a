"""Counts that fade."""

from __future__ import annotations

import pytest

from dqrelo_gguf.integrations.fleet.popularity import HALF_LIFE_SECONDS, Popularity
from tests.support.clocks import Clock


def test_a_count_halves_in_its_half_life() -> None:
    clock = Clock()
    popularity = Popularity(clock)
    for _ in range(8):
        popularity.add("math")
    assert popularity.of("math") == pytest.approx(8)
    clock.now += HALF_LIFE_SECONDS
    assert popularity.of("math") == pytest.approx(4)
    popularity.add("math")
    assert popularity.of("math") == pytest.approx(5)


def test_shares_are_of_all_requests_the_old_ones_less() -> None:
    clock = Clock()
    popularity = Popularity(clock)
    assert popularity.share("math") == 0
    popularity.add("math")
    clock.now += 2 * HALF_LIFE_SECONDS
    for _ in range(3):
        popularity.add("words")
    assert popularity.share("math") == pytest.approx(0.25 / 3.25)
    assert popularity.share("words") == pytest.approx(3 / 3.25)
    assert popularity.share("nobody") == 0


def test_days_do_not_overflow_it() -> None:
    clock = Clock()
    popularity = Popularity(clock)
    for _ in range(200):
        clock.now += 3600
        popularity.add("math")
        popularity.add("words")
    assert popularity.of("math") == pytest.approx(1, rel=1e-6)
    assert popularity.share("math") == pytest.approx(0.5)
    clock.now += 1e7
    assert popularity.of("math") == pytest.approx(0)
    popularity.add("math")
    assert popularity.share("math") == pytest.approx(1)


def test_names_of_strangers_are_forgotten_and_popular_ones_are_kept() -> None:
    popularity = Popularity(Clock(), max_names=100)
    for _ in range(5):
        popularity.add("math")
    for i in range(10_000):
        popularity.add(f"stranger {i}")
        assert len(popularity._counts) <= 100
    assert popularity.of("math") == pytest.approx(5)
    assert popularity.share("math") == pytest.approx(5 / sum(popularity._counts.values()))

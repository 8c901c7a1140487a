"""Which replica a request goes to."""

from __future__ import annotations

import numpy as np
import pytest

from dqrelo_gguf.integrations.fleet.placement import MAX_PLACED, PLACED_SECONDS, Kind, Placement, Report
from tests.support.clocks import Clock

MIB = 1 << 20


def deltas(*names: str, each: int = MIB) -> dict[str, int]:
    return dict.fromkeys(names, each)


def placement(**reports: Report) -> Placement:
    made = Placement(Clock())
    made.update(reports)
    return made


def best(of: Placement, *names: str, **running: int) -> tuple[str, Kind]:
    return of.ranking(names, running)[0]


def test_the_replica_that_has_the_delta_is_first() -> None:
    fleet = placement(a=Report(4, 9 * MIB), b=Report(4, 9 * MIB, deltas("math")), c=Report(4, 9 * MIB))
    assert fleet.ranking(["math"], {"b": 3})[0] == ("b", Kind.HAS_IT)
    assert {key for key, _ in fleet.ranking(["math"], {})} == {"a", "b", "c"}


def test_of_two_that_have_it_the_less_busy_one_is_first() -> None:
    fleet = placement(a=Report(4, None, deltas("math")), b=Report(4, None, deltas("math")))
    assert best(fleet, "math", a=1, b=2)[0] == "a"
    assert best(fleet, "math", a=2, b=1)[0] == "b"


def test_a_cold_delta_goes_where_most_memory_is_free() -> None:
    fleet = placement(
        a=Report(4, 9 * MIB, deltas("x", "y")), b=Report(4, 9 * MIB, deltas("z")), c=Report(4, 5 * MIB, deltas())
    )
    assert best(fleet, "math") == ("b", Kind.ROOM)


def test_without_a_budget_it_goes_where_least_is_in_use() -> None:
    fleet = placement(a=Report(4, None, deltas("x", "y")), b=Report(4, None, deltas("z")))
    assert best(fleet, "math") == ("b", Kind.ROOM)


@pytest.mark.parametrize("seen", [{}, deltas("seen")])
def test_cold_deltas_fill_the_fleet_evenly_before_anybody_reports(seen: dict[str, int]) -> None:
    fleet = placement(a=Report(4, 9 * MIB, seen), b=Report(4, 9 * MIB), c=Report(4, 9 * MIB))
    found = ["a"] * len(seen)
    for i in range(9 - len(seen)):
        key, kind = best(fleet, f"cold {i}")
        assert kind is Kind.ROOM
        fleet.sent([f"cold {i}"], key)
        found.append(key)
    assert sorted(found) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


def test_a_delta_is_where_it_was_sent_until_the_report_must_have_come() -> None:
    clock = Clock()
    fleet = Placement(clock)
    fleet.update({key: Report(4, 9 * MIB) for key in "abc"})
    first = best(fleet, "math")[0]
    other = next(key for key in "abc" if key != first)
    fleet.sent(["math"], other)
    assert best(fleet, "math") == (other, Kind.HAS_IT)
    clock.now += PLACED_SECONDS + 1
    assert best(fleet, "math") == (first, Kind.ROOM)


def test_a_replica_that_was_chosen_has_nothing_where_another_one_took_the_request() -> None:
    fleet = placement(a=Report(4, None), b=Report(4, None), c=Report(4, None))
    for name, chosen, taken in (("d0", "a", "b"), ("d1", "c", "c"), ("d2", "b", "a")):
        fleet.chosen([name], chosen)
        assert best(fleet, name) == (chosen, Kind.HAS_IT)  # So that the next request for it goes there, too.
        fleet.sent([name], taken)
        assert dict(fleet.ranking([name], {})) == dict.fromkeys("abc", Kind.ROOM) | {taken: Kind.HAS_IT}
    fleet.chosen(["d1"], "a")  # A further copy: those that are there stay.
    fleet.sent(["d1"], "a")
    assert {key for key, kind in fleet.ranking(["d1"], {}) if kind is Kind.HAS_IT} == {"a", "c"}
    fleet.chosen(["d1"], "c")
    fleet.sent(["d1"], "b")
    assert {key for key, kind in fleet.ranking(["d1"], {}) if kind is Kind.HAS_IT} == {"a", "b", "c"}


def test_cold_deltas_fill_the_fleet_evenly_where_the_second_best_replica_takes_some() -> None:
    fleet = placement(a=Report(4, None), b=Report(4, None), c=Report(4, None))
    found = []
    for i in range(9):
        ranking = [key for key, _ in fleet.ranking([f"cold {i}"], {})]
        fleet.chosen([f"cold {i}"], ranking[0])
        found.append(ranking[1 if i % 3 == 0 else 0])
        fleet.sent([f"cold {i}"], found[-1])
    assert sorted(found) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


def test_a_replica_that_went_takes_its_placements_along() -> None:
    fleet = placement(a=Report(4, None), b=Report(4, None))
    fleet.sent(["math"], "a")
    fleet.update({"b": Report(4, None)})
    assert fleet.ranking(["math"], {}) == [("b", Kind.ROOM)]
    fleet.update({"a": Report(4, None), "b": Report(4, None, deltas("math"))})
    assert best(fleet, "math") == ("b", Kind.HAS_IT)


def test_when_all_copies_are_busy_another_one_is_made_where_there_is_room() -> None:
    fleet = placement(a=Report(2, 3 * MIB, deltas("math")), b=Report(2, 3 * MIB, deltas("x")))
    assert best(fleet, "math", a=2, b=0) == ("b", Kind.ROOM)
    assert best(fleet, "math", a=1, b=0) == ("a", Kind.HAS_IT)


def test_a_copy_does_not_put_out_more_popular_deltas() -> None:
    fleet = placement(a=Report(2, 2 * MIB, deltas("math", "x")), b=Report(2, 2 * MIB, deltas("y", "z")))
    for _ in range(9):
        fleet.accepted(["y", "z"])
    assert best(fleet, "math", a=2, b=0) == ("a", Kind.WAITS)
    for _ in range(30):
        fleet.accepted(["math"])
    assert best(fleet, "math", a=2, b=0) == ("b", Kind.SPREAD)


def test_a_cold_delta_puts_out_the_least_popular_ones() -> None:
    fleet = placement(a=Report(2, 2 * MIB, deltas("w", "x")), b=Report(2, 2 * MIB, deltas("y", "z")))
    for name, times in (("w", 5), ("x", 9), ("y", 3), ("z", 9)):
        for _ in range(times):
            fleet.accepted([name])
    assert best(fleet, "math") == ("b", Kind.EVICTS)
    assert best(fleet, "math", b=2) == ("a", Kind.EVICTS)


def test_a_hot_delta_gets_copies_before_its_replica_is_full() -> None:
    fleet = placement(a=Report(8, None, deltas("math", "words")), b=Report(8, None, {}), c=Report(8, None, {}))
    for _ in range(6):
        fleet.accepted(["math"])
    for _ in range(4):
        fleet.accepted(["words"])
    key, kind = best(fleet, "math", a=2)
    assert (key != "a", kind) == (True, Kind.SPREAD)
    assert best(fleet, "math", a=1) == ("a", Kind.HAS_IT)  # Nobody is much less busy.


def test_a_delta_that_is_not_hot_stays_on_its_replica() -> None:
    fleet = placement(a=Report(8, None, deltas("math")), b=Report(8, None, {}))
    fleet.accepted(["math"])
    for i in range(5):
        fleet.accepted([f"other {i}"])
    assert best(fleet, "math", a=5) == ("a", Kind.HAS_IT)


def test_a_budget_that_is_too_small_is_the_last_resort() -> None:
    fleet = placement(a=Report(1, MIB), b=Report(1, 4 * MIB), c=Report(1, 4 * MIB, deltas("big", each=3 * MIB)))
    ranking = fleet.ranking(["big"], {"b": 9, "c": 9})
    assert ranking == [("c", Kind.WAITS), ("b", Kind.CROWDED), ("a", Kind.NEVER)]


def test_the_parts_of_a_blend_lie_in_one_place() -> None:
    fleet = placement(
        a=Report(4, 4 * MIB, deltas("math", "x", "y")),
        b=Report(4, 4 * MIB, deltas("words")),
        c=Report(4, 4 * MIB, deltas("math", "words")),
    )
    assert best(fleet, "math", "words") == ("c", Kind.HAS_IT)
    assert [key for key, _ in fleet.ranking(["math", "words"], {})] == ["c", "b", "a"]
    tight = placement(a=Report(1, MIB, deltas("math")), b=Report(1, 2 * MIB, deltas("words")))
    assert tight.ranking(["math", "words"], {})[-1] == ("a", Kind.NEVER)


def test_the_base_goes_to_the_least_busy_one() -> None:
    fleet = placement(a=Report(4, 0), b=Report(4, 0))
    assert best(fleet, a=1) == ("b", Kind.HAS_IT)
    assert best(fleet, b=1) == ("a", Kind.HAS_IT)


def test_fronts_agree_and_deltas_differ_where_all_is_equal() -> None:
    reports = {key: Report(4, None) for key in "abcdefgh"}
    found = []
    for name in (f"cold {i}" for i in range(64)):
        fronts = [placement(**reports), placement(**dict(reversed(reports.items())))]
        assert fronts[0].ranking([name], {}) == fronts[1].ranking([name], {})
        found.append(best(fronts[0], name)[0])
    assert len(set(found)) == len(reports)


def test_names_from_outside_do_not_pile_up() -> None:
    fleet = placement(a=Report(4, None))
    for i in range(3 * MAX_PLACED):
        fleet.chosen([f"stranger {i}"], "a")
    assert len(fleet._placed["a"]) == MAX_PLACED
    fleet.ranking(["\ud800"], {})


@pytest.mark.parametrize("n_deltas", [8, 24])
def test_skewed_traffic_keeps_a_fleet_busy_and_seldom_loads(n_deltas: int) -> None:
    """Three replicas with room for eight deltas each: the model of bench/bench_fleet.py, without processes."""
    clock = Clock()
    fleet = Placement(clock)
    memory: dict[str, list[str]] = {key: [] for key in "abc"}  # Each is in the order of use, as the servers' is.
    running: dict[str, list[float]] = {key: [] for key in "abc"}  # When each request ends.
    loads, served, rng = 0, dict.fromkeys("abc", 0), np.random.default_rng(0)
    chances = 1 / np.arange(1, n_deltas + 1)
    n_requests = 3000
    for _ in range(n_requests):
        clock.now += 0.1
        for key in memory:
            running[key] = [end for end in running[key] if end > clock.now]
        fleet.update({key: Report(4, 8 * MIB, deltas(*names)) for key, names in memory.items()})
        name = f"delta {rng.choice(n_deltas, p=chances / chances.sum())}"
        key = fleet.ranking([name], {key: len(ends) for key, ends in running.items()})[0][0]
        fleet.sent([name], key)
        fleet.accepted([name])
        if name in memory[key]:
            memory[key].remove(name)
        else:
            loads += 1
        memory[key] = [*memory[key], name][-8:]
        running[key].append(clock.now + 0.9)  # Nine of twelve slots are in use.
        served[key] += 1
    assert min(served.values()) > 0.25 * n_requests
    assert loads < (0.02 if n_deltas == 8 else 0.2) * n_requests

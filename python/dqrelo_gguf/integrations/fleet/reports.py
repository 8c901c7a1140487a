"""What a replica tells the fronts' routers, by way of Ray Serve: plain values, and only what seldom changes.

Ray Serve sends the stats of all replicas to all fronts whenever one of them changes. So there are neither counters nor times in
it: it changes when a delta comes or goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from dqrelo_gguf.integrations.fleet.placement import Report

_IN_MEMORY = frozenset({"loading", "loaded"})


class Stats(TypedDict):
    """What record_routing_stats gives."""

    slots: int
    budget: int | None
    resident: dict[str, int]
    base: list[str]


def base_names_of(models: Mapping[str, Any]) -> list[str]:
    """The names by which requests ask for the base, from a server's GET /v1/models."""
    (base,) = [model for model in models["data"] if model["parent"] is None]
    return list(dict.fromkeys([base["id"], *base["aliases"]]))


def stats_of(deltas: Mapping[str, Any], slots: int, base_names: list[str]) -> Stats:
    """From a server's GET /deltas.

    Args:
        deltas: its answer, for a key that is not limited.
        slots: requests that the server computes at a time.
        base_names: those that are no deltas.
    """
    resident = {
        row["name"]: int(row["bytes_resident"] or row["bytes"] or 0)
        for row in deltas["data"]
        if row.get("state") in _IN_MEMORY
    }
    return Stats(slots=slots, budget=deltas["bytes_max"], resident=dict(sorted(resident.items())), base=base_names)


def report_of(stats: Mapping[str, Any], before: Report) -> Report:
    """As the placement wants it.

    Args:
        stats: a replica's; empty until it was asked for the first time.
        before: what it is until then.
    """
    return Report(stats["slots"], stats["budget"], stats["resident"]) if stats else before

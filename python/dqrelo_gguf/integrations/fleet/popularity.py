"""How often names are asked for, with less weight the longer ago it was."""

from __future__ import annotations

import heapq
from collections.abc import Callable

HALF_LIFE_SECONDS = 60.0
# More names than a fleet keeps warm. Names come from requests, so their number has a bound.
MAX_NAMES = 4096


class Popularity:
    """A count for each name that halves every HALF_LIFE_SECONDS. One thread uses it.

    Args:
        clock: seconds that only grow.
        max_names: names that are remembered; the least popular ones are forgotten first.
    """

    def __init__(self, clock: Callable[[], float], max_names: int = MAX_NAMES) -> None:
        self._clock = clock
        self._max_names = max_names
        self._begun = clock()
        # A request at time t counts 2 ** ((t - begun) / half-life), so that older ones need not be touched when time passes.
        self._counts: dict[str, float] = {}
        self._total = 0.0

    def add(self, name: str) -> None:
        """Counts a request."""
        one = self._one()
        if one > 1e200:  # Doubles end at 1e308: some eleven hours after the start.
            self._rebase(one)
            one = 1.0
        self._counts[name] = self._counts.get(name, 0.0) + one
        self._total += one
        if len(self._counts) > self._max_names:
            self._forget()

    def of(self, name: str) -> float:
        """Requests for the name, the older the less."""
        return self._counts.get(name, 0.0) / self._one()

    def share(self, name: str) -> float:
        """The name's part of all requests, 0 to 1."""
        return self._counts.get(name, 0.0) / self._total if self._total > 0 else 0.0

    def _one(self) -> float:
        return float(2 ** min((self._clock() - self._begun) / HALF_LIFE_SECONDS, 1000.0))

    def _rebase(self, one: float) -> None:
        self._begun = self._clock()
        self._counts = {name: count / one for name, count in self._counts.items() if count / one > 0}
        self._total = sum(self._counts.values())

    def _forget(self) -> None:
        """Forgets an eighth of all names, so that most requests sort nothing."""
        for name in heapq.nsmallest(self._max_names // 8 + 1, self._counts, key=self._counts.__getitem__):
            self._total -= self._counts.pop(name)

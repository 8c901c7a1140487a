"""Which replica a request goes to, from what each has in memory, how busy it is, and what is asked for how often.

A replica loads and evicts by itself: the first request for a delta has it loaded, and the least recently used ones leave
when all take more than the budget. Only where requests go is decided here; that decides which deltas lie where.

The order of preference, for a delta (or for the deltas of a blend, which have to lie in one place), is that of `Kind`.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dqrelo_gguf.integrations.fleet.popularity import Popularity

# A delta counts as being where a request for it was sent for this long, although the replica has not reported it yet.
PLACED_SECONDS = 10.0
MAX_PLACED = 1024  # of one replica
MAX_SIZES = 65536
# With 1, a delta would get a second copy when it keeps one replica busy all alone. With 2 it gets one at half of that, so that the
# others beside it are not crowded out before.
COPIES_PER_SHARE = 2.0
_SORTED_SECONDS = 1.0  # for which the order of popularity in a replica is taken as it was
# Requests by which a replica has to be less busy for that. The counts are some milliseconds old, so 1 would be by chance.
LESS_BUSY = 2


class Kind(enum.IntEnum):
    """What sending the request to a replica means; a smaller one is better."""

    SPREAD = 0  # a further copy of a popular delta, beside only less popular ones, on a replica that is less busy than those that have it
    HAS_IT = 1  # in memory, and a slot is free
    ROOM = 2  # a slot is free, and there is room for it, or it evicts less popular ones only
    WAITS = 3  # in memory, but all slots are busy
    EVICTS = 4  # a slot is free, but more popular ones have to go
    CROWDED = 5  # neither in memory nor a free slot
    NEVER = 6  # its budget is too small


@dataclass(frozen=True)
class Report:
    """What a replica says of itself.

    Args:
        slots: requests that it computes at a time.
        budget_bytes: memory that its deltas may take; None is no limit.
        resident_bytes: what each delta takes that is in memory, or is being loaded.
    """

    slots: int
    budget_bytes: int | None = None
    resident_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Offer:
    """What it takes to serve the asked deltas at one replica."""

    key: str
    running: int
    is_busy: bool
    has_all: bool
    fits: bool  # into the budget, when everything else is evicted
    evicted: float  # the popularity of the most popular delta that has to go
    free_bytes: float
    used_bytes: int
    n_deltas: int  # decides as long as nobody has reported a size


@dataclass(frozen=True)
class _Placed:
    """A delta that is to be in a replica's memory."""

    when: float
    is_taken: bool  # The replica took a request for it; else it was chosen for one.


@dataclass
class _Memory:
    """A report, with what is worked out from it once and not for every request."""

    report: Report
    used_bytes: int
    coldest: list[str] = field(
        default_factory=list
    )  # What is resident, the least popular first, as it was a moment ago.
    sorted_at: float = -math.inf


class Placement:
    """The state behind the choice: reports, recent choices and popularity. One thread uses it.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._memories: dict[str, _Memory] = {}
        self._placed: dict[str, dict[str, _Placed]] = {}  # replica: delta
        self._sizes: dict[str, int] = {}
        self._usual_bytes = 0  # of a delta whose size nobody has reported
        self.popularity = Popularity(clock)

    def update(self, reports: Mapping[str, Report]) -> None:
        """Takes the reports of all replicas that there are; others have gone."""
        self._memories = {
            key: old
            if (old := self._memories.get(key)) and old.report == report
            else _Memory(report, sum(report.resident_bytes.values()))
            for key, report in reports.items()
        }
        self._placed = {
            key: {name: one for name, one in placed.items() if name not in reports[key].resident_bytes}
            for key, placed in self._placed.items()
            if key in reports
        }
        if len(self._sizes) > MAX_SIZES:
            self._sizes = {}
        for report in reports.values():
            self._sizes.update(report.resident_bytes)
        self._usual_bytes = sum(self._sizes.values()) // len(self._sizes) if self._sizes else 0

    def chosen(self, names: Iterable[str], key: str) -> None:
        """A request for these deltas is meant for a replica, which has them from now on unless another one takes it."""
        self._place(names, key, is_taken=False)

    def sent(self, names: Iterable[str], key: str) -> None:
        """A replica took a request for these deltas, and has them from now on. Others that were chosen for it have not."""
        names = list(names)
        for other, placed in self._placed.items():
            for name in names:
                if other != key and name in placed and not placed[name].is_taken:
                    del placed[name]
        self._place(names, key, is_taken=True)

    def _place(self, names: Iterable[str], key: str, *, is_taken: bool) -> None:
        now, placed = self._clock(), self._placed.setdefault(key, {})
        for name in names:
            old = placed.pop(name, None)  # The dictionary keeps the order of time.
            placed[name] = _Placed(now, is_taken or (old is not None and old.is_taken))
        while placed and (len(placed) > MAX_PLACED or now - next(iter(placed.values())).when > PLACED_SECONDS):
            del placed[next(iter(placed))]

    def accepted(self, names: Iterable[str]) -> None:
        """A replica took a request for these deltas."""
        for name in names:
            self.popularity.add(name)

    def ranking(self, names: Sequence[str], running: Mapping[str, int]) -> list[tuple[str, Kind]]:
        """All replicas and what they mean for the request, the best one first.

        Args:
            names: the deltas of the request; none for the base.
            running: the requests that each replica holds; those that are missing hold none.
        """
        offers = [self._offer(names, key, memory, running.get(key, 0)) for key, memory in self._memories.items()]
        copies = [offer for offer in offers if offer.has_all]
        share = min((self.popularity.share(name) for name in names), default=0.0)
        is_too_few = 0 < len(copies) < round(share * len(offers) * COPIES_PER_SHARE)
        least_busy_copy = min((offer.running for offer in copies), default=0)
        # What another copy is worth is what each of all copies would then serve, this request included.
        worth = min((self.popularity.of(name) + 1 for name in names), default=0.0) / (len(copies) + 1)

        def kind(offer: _Offer) -> Kind:
            if not offer.fits:
                return Kind.NEVER
            if offer.has_all:
                return Kind.WAITS if offer.is_busy else Kind.HAS_IT
            if offer.is_busy:
                return Kind.CROWDED
            if offer.evicted > worth:
                return Kind.EVICTS
            return Kind.SPREAD if is_too_few and offer.running + LESS_BUSY <= least_busy_copy else Kind.ROOM

        def cost(offer: _Offer) -> tuple[float, float, int, int]:
            if offer.has_all:
                return 0.0, 0.0, 0, 0
            return offer.evicted, -offer.free_bytes, offer.used_bytes, offer.n_deltas

        ranked = sorted((kind(o), *cost(o), o.running, _spread(names, o.key), o.key) for o in offers)
        return [(found[-1], found[0]) for found in ranked]

    def _offer(self, names: Sequence[str], key: str, memory: _Memory, running: int) -> _Offer:
        now, resident = self._clock(), memory.report.resident_bytes
        placed = self._placed.get(key, {})
        coming = [n for n, one in placed.items() if n not in resident and now - one.when <= PLACED_SECONDS]
        missing = [name for name in names if name not in resident and name not in coming]
        used_bytes = memory.used_bytes + sum(map(self._size, coming))
        budget = math.inf if memory.report.budget_bytes is None else memory.report.budget_bytes
        excess_bytes = used_bytes + sum(map(self._size, missing)) - budget
        return _Offer(
            key=key,
            running=running,
            is_busy=running >= memory.report.slots,
            has_all=not missing,
            fits=sum(map(self._size, names)) <= budget,
            evicted=self._most_popular_evicted(memory, names, excess_bytes) if missing and excess_bytes > 0 else 0.0,
            free_bytes=budget - used_bytes,
            used_bytes=used_bytes,
            n_deltas=len(resident) + len(coming),
        )

    def _most_popular_evicted(self, memory: _Memory, kept: Sequence[str], excess_bytes: float) -> float:
        """The popularity of the last delta that has to go, where the least popular ones go first."""
        if self._clock() - memory.sorted_at > _SORTED_SECONDS:
            memory.coldest = sorted(memory.report.resident_bytes, key=self.popularity.of)
            memory.sorted_at = self._clock()
        popularity = 0.0
        for name in memory.coldest:
            if excess_bytes <= 0:
                break
            if name not in kept:
                popularity = self.popularity.of(name)
                excess_bytes -= memory.report.resident_bytes[name]
        return popularity

    def _size(self, name: str) -> int:
        return self._sizes.get(name, self._usual_bytes)


def _spread(names: Sequence[str], key: str) -> bytes:
    """Decides between equals: the same way for every front, another for every delta."""
    return hashlib.blake2b("\0".join((*names, key)).encode(errors="surrogatepass"), digest_size=8).digest()

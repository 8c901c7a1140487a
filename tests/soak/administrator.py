"""Loads, unloads and reloads deltas while a soak runs, of good and of broken files."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import requests

from tests.soak.traffic import OK, Tally
from tests.support.server_fixtures import Server

# The clients ask for these names while they change.
SWAPPED, PASSING, BROKEN = "swapped", "passing", "broken"
PAUSE_S = 0.2


@dataclass
class Timeline:
    """What a name may stand for, and when: a span begins when a change is asked for and ends when the next one is done."""

    spans: dict[str, list[tuple[str | None, float, float]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, name: str, content: str | None) -> None:
        with self.lock:
            self.spans.setdefault(name, []).append((content, time.monotonic(), float("inf")))

    def settle(self, name: str) -> None:
        """Ends all spans of a name but the last."""
        now = time.monotonic()
        with self.lock:
            *old, last = self.spans[name]
            self.spans[name] = [(content, begun, min(ended, now)) for content, begun, ended in old] + [last]

    def possible(self, name: str, since: float, until: float) -> set[str | None]:
        """The contents that a request between two moments may have met; a name without changes is its own content."""
        with self.lock:
            if name not in self.spans:
                return {name}
            return {content for content, begun, ended in self.spans[name] if begun <= until and ended >= since}


@dataclass(frozen=True)
class Administrator:
    """Changes what three names stand for, at random.

    Args:
        server: the server under test.
        contents: names of good deltas, whose files lie in its directory as NAME.dq.gguf.
        broken_file: the name of a broken file there.
        timeline: tells the clients what to expect.
        tally: where results go.
        rng: its own.
    """

    server: Server
    contents: tuple[str, ...]
    broken_file: str
    timeline: Timeline
    tally: Tally
    rng: random.Random

    def prepare(self) -> None:
        """Loads SWAPPED; PASSING is not there yet."""
        self._change(SWAPPED, self.contents[0], "load")
        self.timeline.begin(PASSING, None)

    def run(self, is_over: Callable[[], bool]) -> None:
        steps = (self._swap, self._come, self._go, self._break_new, self._break_loaded, self._look)
        while not is_over():
            try:
                self.rng.choice(steps)()
            except requests.RequestException as e:
                self.tally.failed(f"administrator: {e}")
                return
            time.sleep(PAUSE_S * self.rng.random())

    def _post(self, action: str, name: str, file: str | None = None) -> int:
        body = {"name": name} | ({"file": file} if file else {})
        status = self.server.post(f"/deltas/{action}", body).status_code
        with self.tally.lock:
            self.tally.actions[f"{action} {'done' if status == OK else 'refused'}"] += 1
        return status

    def _change(self, name: str, content: str, action: str) -> None:
        self.timeline.begin(name, content)
        status = self._post(action, name, f"{content}.dq.gguf")
        if status == OK:
            self.timeline.settle(name)
        else:
            self.tally.failed(f"{action} of {content} as {name}: status {status}")

    def _swap(self) -> None:
        self._change(SWAPPED, self.rng.choice(self.contents), "reload")

    def _come(self) -> None:
        if self.timeline.spans[PASSING][-1][0] is None:
            self._change(PASSING, self.rng.choice(self.contents), "load")

    def _go(self) -> None:
        if self.timeline.spans[PASSING][-1][0] is not None:
            self.timeline.begin(PASSING, None)
            if (status := self._post("unload", PASSING)) != OK:
                self.tally.failed(f"unload of {PASSING}: status {status}")
            self.timeline.settle(PASSING)

    def _break_new(self) -> None:
        if self._post("load", BROKEN, self.broken_file) == OK:
            self.tally.failed("a broken file was loaded")

    def _break_loaded(self) -> None:
        """A reload that fails must leave what was served before."""
        if self._post("reload", SWAPPED, self.broken_file) == OK:
            self.tally.failed("a broken file took a loaded one's place")

    def _look(self) -> None:
        listed = {row["name"]: row for row in self.server.get("/deltas")["data"]}
        if SWAPPED not in listed:
            self.tally.failed(f"{SWAPPED} is missing in /deltas")

"""Clients of a soak: requests for random deltas, streaming or not, some of them cancelled, each answer judged."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import requests

from tests.soak.answers import Expected, Verdict, request_body
from tests.soak.deltas import PROMPTS
from tests.support.server_fixtures import ANSWER_SECONDS, Server

OK = 200
AWAY = (404, 503)  # The delta was unloaded, or there is no room for it.
SHARE_STREAMED, SHARE_CANCELLED = 0.4, 0.2


def seeded(seed: int) -> random.Random:
    """Random choices that a second run makes again."""
    return random.Random(seed)  # noqa: S311 not for secrets


@dataclass
class Tally:
    """What a soak has seen, from all threads."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    n_cancelled: int = 0
    n_away: int = 0  # It counts answers that a name was not there, where it may not be.
    actions: Counter[str] = field(default_factory=Counter)  # It counts the administrator's actions.
    wrong: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)  # seconds between two events of a stream
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def n_requests(self) -> int:
        return self.verdicts.total() + self.n_away

    def judged(self, verdict: Verdict, what: str) -> None:
        with self.lock:
            self.verdicts[verdict] += 1
            if verdict is Verdict.WRONG:
                self.wrong.append(what)

    def failed(self, what: str) -> None:
        """Something that is wrong and no answer."""
        with self.lock:
            self.wrong.append(what)


@dataclass(frozen=True)
class Client:
    """One user.

    Args:
        server: the server under test.
        expected: by content and prompt.
        contents: what a name may stand for between two moments; None where it may be absent as well.
        names: that are asked for.
        tally: where results go.
        rng: its own.
    """

    server: Server
    expected: dict[tuple[str, str], Expected]
    contents: Callable[[str, float, float], set[str | None]]
    names: tuple[str, ...]
    tally: Tally
    rng: random.Random

    def run(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            self.ask_once()

    def ask_once(self) -> None:
        name, prompt = self.rng.choice(self.names), self.rng.choice(PROMPTS)
        dice, begun = self.rng.random(), time.monotonic()
        try:
            if dice < SHARE_CANCELLED:
                status, tokens = self._stream(name, prompt, self.rng.randint(1, 8))
            elif dice < SHARE_CANCELLED + SHARE_STREAMED:
                status, tokens = self._stream(name, prompt, None)
            else:
                status, tokens = self._plain(name, prompt)
        except requests.RequestException as e:
            self.tally.failed(f"{name}: {e}")
            return
        self._judge(name, prompt, begun, status, tokens, is_whole=dice >= SHARE_CANCELLED)

    def _judge(self, name: str, prompt: str, begun: float, status: int, tokens: list[int], *, is_whole: bool) -> None:
        possible = self.contents(name, begun, time.monotonic())
        if status != OK:
            if None in possible and status in AWAY:
                with self.tally.lock:
                    self.tally.n_away += 1
            else:
                self.tally.failed(f"{name}: status {status}")
            return
        verdicts = [
            self.expected[content, prompt].judge(tokens, is_whole=is_whole)
            for content in possible
            if content is not None
        ]
        best = next((v for v in (Verdict.RIGHT, Verdict.NEAR_TIE) if v in verdicts), Verdict.WRONG)
        self.tally.judged(best, f"{name} on {prompt!r}: {tokens}, possible {sorted(map(str, possible))}")

    def _plain(self, name: str, prompt: str) -> tuple[int, list[int]]:
        answer = self.server.post("/completion", request_body(name, prompt))
        return answer.status_code, answer.json()["tokens"] if answer.status_code == OK else []

    def _stream(self, name: str, prompt: str, n_max: int | None) -> tuple[int, list[int]]:
        """Reads a stream, or its first `n_max` tokens and then hangs up."""
        body = request_body(name, prompt) | {"stream": True}
        tokens: list[int] = []
        with requests.post(self.server.url + "/completion", json=body, stream=True, timeout=ANSWER_SECONDS) as answer:
            if answer.status_code != OK:
                return answer.status_code, []
            last: float | None = None
            for event in _events(answer.iter_lines(chunk_size=None)):
                at = time.perf_counter()
                if last is not None:
                    self.tally.gaps_s.append(at - last)
                last = at
                tokens += event["tokens"]
                if n_max is not None and len(tokens) >= n_max:
                    with self.tally.lock:
                        self.tally.n_cancelled += 1
                    break
        return OK, tokens


def _events(lines: Iterable[bytes]) -> Iterable[dict[str, list[int]]]:
    """The events of a stream that carry new tokens; the last one repeats what was said."""
    for line in lines:
        if line.startswith(b"error: ") or b'"error"' in line:
            raise requests.RequestException(line.decode())
        if line.startswith(b"data: {"):
            event = json.loads(line.removeprefix(b"data: "))
            if not event["stop"]:
                yield event

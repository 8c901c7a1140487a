"""Greedy streams asked of servers at once, and the speed at which they all generate together."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import requests

ANSWER_SECONDS = 900
# The first token ids of a vocabulary are special ones and bytes.
FIRST_TOKEN = 300


@dataclass(frozen=True)
class Request:
    """One stream: a server, the model that it is asked for (None: the server's only one), and the number of its adapter of `--lora`."""

    url: str
    model: str | None
    prompt: list[int]
    n_predict: int
    lora: int | None = None

    def body(self) -> dict[str, Any]:
        """The request's JSON. Greedy, and no token ends it early."""
        named = {} if self.model is None else {"model": self.model}
        adapters = {} if self.lora is None else {"lora": [{"id": self.lora, "scale": 1.0}]}
        return (
            named
            | adapters
            | {
                "prompt": self.prompt,
                "n_predict": self.n_predict,
                "ignore_eos": True,
                "cache_prompt": False,
                "temperature": 0,
                "top_k": 1,
                "stream": True,
            }
        )


@dataclass(frozen=True)
class Stream:
    """When tokens arrived, in seconds after the start of all: the time of each event and the tokens up to then."""

    seconds: list[float]
    n_tokens: list[int]


@dataclass(frozen=True)
class Speed:
    """Of streams that run at once.

    Args:
        tokens_per_s: of all streams together, while all of them generate.
        step_ms: in which every stream gets one token, on average over the same time.
        run_tokens_per_s: generated tokens over the time from the start, prompts included, to the last token.
    """

    tokens_per_s: float
    step_ms: float
    run_tokens_per_s: float


def random_prompt(stream: int, n_tokens: int, n_vocab: int) -> list[int]:
    """The fixed prompt of a stream: random tokens."""
    first = min(FIRST_TOKEN, n_vocab // 2)
    prompt: list[int] = np.random.default_rng(stream).integers(first, n_vocab, n_tokens).tolist()
    return prompt


def run_streams(requests_: Sequence[Request]) -> list[Stream]:
    """Sends all requests at once and reads them to their ends."""
    start = threading.Barrier(len(requests_))

    def read(request: Request) -> Stream:
        with requests.Session() as session:
            start.wait()
            return read_stream(session, request)

    begun = time.perf_counter()
    with ThreadPoolExecutor(len(requests_)) as pool:
        streams = list(pool.map(read, requests_))
    return [Stream([t - begun for t in s.seconds], s.n_tokens) for s in streams]


def read_stream(session: requests.Session, request: Request) -> Stream:
    """Sends one request and reads it to its end; times are those of time.perf_counter."""
    seconds: list[float] = []
    n_tokens: list[int] = []
    with session.post(f"{request.url}/completion", json=request.body(), stream=True, timeout=ANSWER_SECONDS) as reply:
        if not reply.ok:
            raise SystemExit(f"{request.url}: {reply.status_code}: {reply.text}")
        for line in reply.iter_lines(chunk_size=None):
            if not line.startswith(b"data: "):
                continue
            now = time.perf_counter()
            event = json.loads(line.removeprefix(b"data: "))
            n = int(event["tokens_predicted"])
            if not n_tokens or n > n_tokens[-1]:  # The last event repeats the number.
                seconds.append(now)
                n_tokens.append(n)
    return Stream(seconds, n_tokens)


def speed_of(streams: Sequence[Stream]) -> Speed:
    """The speed between the first token of the last starter and the first end of a stream: all generate in between.

    Progress between two events of a stream is taken as even, so that it does not matter which stream's event of a step
    comes first.

    Raises:
        ValueError: the streams did not run at the same time.
    """
    begin = max(s.seconds[0] for s in streams)
    end = min(s.seconds[-1] for s in streams)
    if end <= begin:
        raise ValueError("a stream ended before all had begun: generate more tokens (--n-predict)")
    done = sum(float(np.diff(np.interp([begin, end], s.seconds, s.n_tokens))[0]) for s in streams)
    tokens_per_s = done / (end - begin)
    return Speed(tokens_per_s, 1000 * len(streams) / tokens_per_s, run_speed(streams))


def run_speed(streams: Sequence[Stream]) -> float:
    """Generated tokens of all streams over the whole run, prompts included."""
    return sum(s.n_tokens[-1] for s in streams) / max(s.seconds[-1] for s in streams)

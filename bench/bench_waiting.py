"""What do requests that wait for deltas cost the others?

One server that runs one delta at a time, and a stream of that delta that does not end. Windows with no request, some, and many requests that wait for
another delta, in turns. In each: tokens a second of a stream of the base, how long /health takes to answer, and the server's processor time.

  bench_waiting.py --dir llama1b

takes the base, delta-00.dq.gguf and delta-01.dq.gguf of make_llama_1b.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import numpy as np
import psutil
import requests

from dqrelo_gguf.cli import run
from dqrelo_gguf.file import format as fmt
from support.llama_servers import Server, Setup, running
from support.machine import facts_of, heading
from support.model_folder import add_arguments, base_of, need_files, server_of
from support.streams import FIRST_TOKEN, Request, random_prompt

N_CTX = 512
N_PROMPT = 16
N_WAITING_MAX = 960  # the most that --delta-max-waiting takes
HEALTH_PERIOD_S = 0.02
WAIT_SECONDS = 60
WARM_UP_S = 3.0
RUNNING, AWAITED = "delta-00", "delta-01"


@dataclass
class Window:
    """What was measured beside some waiting requests."""

    n_waiting: int
    tokens_per_s: float = 0.0  # of the base's stream
    cpu_s: float = 0.0  # of the server, a second
    health_ms: list[float] = field(default_factory=list)


def stream(server: Server, model: str | None, over: threading.Event) -> list[float]:
    """Reads an answer without an end until `over`; when its tokens arrived, in seconds of time.perf_counter."""
    body = Request(server.url, model, random_prompt(1, N_PROMPT, server.n_vocab()), -1).body()
    seconds = []
    with requests.post(f"{server.url}/completion", json=body, stream=True, timeout=WAIT_SECONDS) as reply:
        for line in reply.iter_lines(chunk_size=None):
            if over.is_set():
                break
            if line.startswith(b"data: "):
                seconds.append(time.perf_counter())
    return seconds


def n_waiting(server: Server) -> int:
    """Requests that wait, as the server counts them."""
    return int(requests.get(f"{server.url}/deltas", timeout=WAIT_SECONDS).json()["requests_waiting"])


@contextlib.contextmanager
def waiting(server: Server, n: int) -> Iterator[None]:
    """n requests that wait for a delta as long as the block."""
    url = urlsplit(server.url)
    body = json.dumps({"model": AWAITED, "prompt": [FIRST_TOKEN], "n_predict": 1})
    head = f"POST /completion HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(n):
            connection = stack.enter_context(socket.create_connection((url.hostname, url.port), timeout=WAIT_SECONDS))
            connection.sendall((head + body).encode())
        wait_until(server, n)
        yield
    wait_until(server, 0)


def wait_until(server: Server, n: int) -> None:
    """Returns when n requests wait."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (found := n_waiting(server)) != n:
        if time.monotonic() > deadline:
            raise SystemExit(f"{found} requests wait, expected {n}")
        time.sleep(0.1)


def measure(server: Server, args: argparse.Namespace) -> list[Window]:
    """The windows: all counts in turn, `repeat` times."""
    windows, over, process = [], threading.Event(), psutil.Process(server.process.pid)
    with ThreadPoolExecutor(2) as pool:
        holder = pool.submit(stream, server, RUNNING, over)
        base = pool.submit(stream, server, None, over)
        time.sleep(WARM_UP_S)
        spans = []
        for n in args.waiting * args.repeat:
            window = Window(n)
            with waiting(server, n), requests.Session() as session:
                cpu, begin = sum(process.cpu_times()[:2]), time.perf_counter()
                while (now := time.perf_counter()) - begin < args.seconds:
                    session.get(f"{server.url}/health", timeout=WAIT_SECONDS).raise_for_status()
                    window.health_ms.append(1000 * (time.perf_counter() - now))
                    time.sleep(HEALTH_PERIOD_S)
                window.cpu_s = (sum(process.cpu_times()[:2]) - cpu) / (now - begin)
                spans.append((begin, now))
            windows.append(window)
        over.set()
        holder.result()
        seconds = np.array(base.result())
    for window, (begin, end) in zip(windows, spans, strict=True):
        window.tokens_per_s = float(np.count_nonzero((seconds >= begin) & (seconds < end)) / (end - begin))
    return windows


def bench(args: argparse.Namespace) -> None:
    """Measures and prints."""
    server, base = server_of(args), base_of(args)
    deltas = {name: args.dir / f"{name}{fmt.SUFFIX}" for name in (RUNNING, AWAITED)}
    need_files([server, base, *deltas.values()])
    options = ["--delta-max-active", "1", "--delta-max-waiting", str(N_WAITING_MAX), "--context-shift"]
    setup = Setup(server, base, 3, N_CTX, args.threads, deltas, [*options, "--delta-allow-other-base"])
    with running([setup]) as (started,):
        windows = measure(started, args)
    facts = facts_of(server, base, args.threads)
    if args.output == "json":
        print(json.dumps({"facts": facts, "windows": [asdict(window) for window in windows]}))
    else:
        print(markdown(facts, windows))


def markdown(facts: dict[str, object], windows: list[Window]) -> str:
    """The facts, and a row for each number of waiting requests: medians of its windows, percentiles of all its answers."""
    rows = []
    for n in sorted({window.n_waiting for window in windows}):
        same = [window for window in windows if window.n_waiting == n]
        health = np.concatenate([window.health_ms for window in same])
        speed, cpu = (float(np.median([getattr(w, name) for w in same])) for name in ("tokens_per_s", "cpu_s"))
        ms = " | ".join(f"{np.percentile(health, q):.1f}" for q in (50, 99, 100))
        rows.append(f"| {n} | {speed:.1f} | {cpu:.2f} | {ms} |")
    head = (
        "| waiting | base, tokens/s | processor s/s | /health, median ms | 99 % | longest |\n|---|---|---|---|---|---|"
    )
    return "\n".join([heading(facts), "", head, *rows])


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, base="base-q8_0.gguf")
    parser.add_argument(
        "--waiting",
        type=int,
        nargs="+",
        default=[0, 500, N_WAITING_MAX],
        help="requests that wait (default: %(default)s)",
    )
    parser.add_argument("--seconds", type=float, default=10, help="of each window (default: %(default)s)")
    parser.add_argument("--repeat", "-r", type=int, default=3, help="windows of each kind (default: %(default)s)")
    return run(lambda: bench(parser.parse_args()), "bench_waiting.py")


if __name__ == "__main__":
    sys.exit(main())

"""Do streams stall while deltas load and go?

One server, streams that run all the time: the base and pinned deltas. Windows without any change and windows in which one delta after another is loaded
(its digests checked every time) and the least recently used one goes, in turns. Gaps between two tokens of a stream, by window; and what a load takes
against a plain read of the same file, which is measured before the streams begin and, in windows of its own, beside them.

  bench_gaps.py --dir llama1b

takes the base and the deltas of make_llama_1b.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import requests

from dqrelo_gguf.cli import run
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file import format as fmt
from support.llama_servers import MIB, Server, Setup, running
from support.machine import facts_of, heading
from support.model_folder import add_arguments, base_of, by_name, need_files, server_of
from support.page_cache import drop_from_page_cache, read_all
from support.streams import Request, Stream, random_prompt, read_stream

N_CTX = 512
N_PROMPT = 16
WARM_UP_S = 3.0  # It warms the graphs up, and the pinned deltas.
N_LOADED = 2  # number of deltas that fit beside the pinned ones
QUIET, CHANGING, READING = "nothing changes", "deltas load and go", "files are read"
IDLE, BUSY = "idle", "beside the streams"
N_IDLE = 19  # loads and reads before the streams
LOAD_SECONDS = 300


@dataclass
class Windows:
    """When what was done: (kind, begin, end) in seconds of time.perf_counter."""

    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def gaps(self, kind: str, streams: Iterable[Stream]) -> np.ndarray:
        """Milliseconds between two tokens of a stream that both came in a window of this kind.

        A token that ends within a character is sent with the next one: when it came is not known, so the gaps before and
        after it are left out.
        """
        found: list[float] = []
        for stream in streams:
            for (before, n_before), (after, n_after) in itertools.pairwise(
                zip(stream.seconds, stream.n_tokens, strict=True)
            ):
                is_one = n_after == n_before + 1
                if is_one and any(k == kind and begin <= before and after <= end for k, begin, end in self.spans):
                    found.append(1000 * (after - before))
        return np.array(found)


def stream_all_the_time(url: str, model: str | None, stream: int, n_vocab: int, over: threading.Event) -> list[Stream]:
    """Asks again and again until `over`; when the tokens of each answer came."""
    request = Request(url, model, random_prompt(stream, N_PROMPT, n_vocab), N_CTX - N_PROMPT)
    answers = []
    while not over.is_set():
        with requests.Session() as session:
            answers.append(read_stream(session, request))
    return answers


def timed_read(path: Path, is_cold: bool) -> float:
    """Milliseconds of a plain read."""
    if is_cold:
        drop_from_page_cache(path)
    begun = time.perf_counter()
    read_all(path)
    return 1000 * (time.perf_counter() - begun)


def timed_load(url: str, path: Path, is_cold: bool) -> float:
    """Milliseconds of a load with all digests."""
    os.utime(path)  # The file is newer, so its digests are checked again.
    if is_cold:
        drop_from_page_cache(path)
    begun = time.perf_counter()
    body = {"name": path.name.removesuffix(fmt.SUFFIX)}
    reply = requests.post(f"{url}/deltas/load", json=body, timeout=LOAD_SECONDS)
    if not reply.ok:
        raise SystemExit(f"{path.name}: {reply.status_code}: {reply.text}")
    return 1000 * (time.perf_counter() - begun)


@dataclass
class Measured:
    """What one run measured: the windows, when the tokens of every answer came, and milliseconds of loads and reads by where they were."""

    windows: Windows = field(default_factory=Windows)
    answers: list[Stream] = field(default_factory=list)
    loads: dict[str, list[float]] = field(default_factory=lambda: {IDLE: [], BUSY: []})
    reads: dict[str, list[float]] = field(default_factory=lambda: {IDLE: [], BUSY: []})

    def window(self, kind: str, url: str, paths: Iterator[Path], args: argparse.Namespace) -> None:
        """One more window."""
        begin = time.perf_counter()
        until = begin + args.seconds
        if kind == QUIET:
            time.sleep(args.seconds)
        while kind != QUIET and time.perf_counter() < until:
            if kind == CHANGING:
                self.loads[BUSY].append(timed_load(url, next(paths), args.cold))
            else:
                self.reads[BUSY].append(timed_read(next(paths), args.cold))
        self.windows.spans.append((kind, begin, time.perf_counter()))


def measure(server: Server, args: argparse.Namespace, pinned: list[str], rest: list[Path]) -> Measured:
    """Idle reads and loads, and then the windows beside the streams."""
    measured, over = Measured(), threading.Event()
    paths = itertools.cycle(rest)
    n_vocab = server.n_vocab()
    models = [None, *pinned]
    for _ in range(N_IDLE):
        measured.reads[IDLE].append(timed_read(next(paths), args.cold))
        measured.loads[IDLE].append(timed_load(server.url, next(paths), args.cold))
    with ThreadPoolExecutor(len(models)) as pool:
        streams = [pool.submit(stream_all_the_time, server.url, m, i, n_vocab, over) for i, m in enumerate(models)]
        time.sleep(WARM_UP_S)
        for kind in [QUIET, CHANGING, READING] * args.repeat:
            measured.window(kind, server.url, paths, args)
        over.set()
        measured.answers = [answer for stream in streams for answer in stream.result()]
    return measured


def bench(args: argparse.Namespace) -> None:
    """Measures and prints."""
    server, base = server_of(args), base_of(args)
    need_files([server, base])
    paths = sorted(args.dir.glob(f"delta-*{fmt.SUFFIX}"))
    if len(paths) < args.pinned + N_LOADED + 1:
        raise InputError(
            f"{args.dir}: {len(paths)} deltas, {args.pinned + N_LOADED + 1} are needed. bench/make_llama_1b.py makes them"
        )
    pinned = list(by_name(paths[: args.pinned]))
    budget = -(-(args.pinned + N_LOADED) * paths[0].stat().st_size // MIB)
    options = [
        "--deltas-dir",
        str(args.dir),
        "--delta-memory",
        str(budget),
        "--delta-pin",
        ",".join(pinned),
        "--delta-admin",
    ]
    setup = Setup(server, base, args.pinned + 1, N_CTX, args.threads, extra=[*options, "--delta-allow-other-base"])
    with running([setup]) as (started,):
        measured = measure(started, args, pinned, paths[args.pinned :])
    gaps = {kind: measured.windows.gaps(kind, measured.answers) for kind in (QUIET, CHANGING, READING)}
    facts = {
        **facts_of(server, base, args.threads),
        "delta": f"{paths[0].stat().st_size:,} bytes, {'not ' if args.cold else ''}in the page cache",
        "streams": f"the base and {args.pinned} pinned deltas",
        "loads": f"{len(measured.loads[BUSY])} beside the streams, each evicting one",
    }
    if args.output == "json":
        gaps_ms = {kind: ms.tolist() for kind, ms in gaps.items()}
        print(json.dumps({"facts": facts, "gaps_ms": gaps_ms, "loads_ms": measured.loads, "reads_ms": measured.reads}))
    else:
        print(markdown(facts, gaps, measured))


def markdown(facts: dict[str, object], gaps: dict[str, np.ndarray], measured: Measured) -> str:
    """The facts, a table of the gaps with the ratio of the 99th percentiles, and one of the loads."""
    rows = "\n".join(
        f"| {kind} | {len(ms)} | " + " | ".join(f"{np.percentile(ms, q):.1f}" for q in (50, 90, 99, 100)) + " |"
        for kind, ms in gaps.items()
    )
    table = f"| | gaps | median ms | 90 % | 99 % | longest |\n|---|---|---|---|---|---|\n{rows}"
    ratio = np.percentile(gaps[CHANGING], 99) / np.percentile(gaps[QUIET], 99)
    times = "\n".join(
        f"| {where} | {spread(measured.reads[where])} | {spread(measured.loads[where])} | "
        f"{np.median(measured.loads[where]) / np.median(measured.reads[where]):.2f} | "
        f"{np.median(measured.loads[where]) / np.median(measured.reads[IDLE]):.2f} |"
        for where in (IDLE, BUSY)
    )
    head = "| | plain read, ms | load, ms | load / read there | load / idle read |\n|---|---|---|---|---|"
    return f"{heading(facts)}\n\n{table}\n\n99th percentile: {ratio:.2f} times that without changes\n\n{head}\n{times}"


def spread(ms: list[float]) -> str:
    """The median, and the least and the most."""
    return f"{np.median(ms):.0f} ({min(ms):.0f} to {max(ms):.0f})"


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, base="base-q8_0.gguf")
    parser.add_argument("--pinned", type=int, default=2, help="deltas that stream (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="of each window (default: %(default)s)")
    parser.add_argument("--cold", action="store_true", help="drop each file from the page cache before it is loaded")
    parser.add_argument("--repeat", "-r", type=int, default=3, help="windows of each kind (default: %(default)s)")
    args = parser.parse_args()
    return run(lambda: bench(args), "bench_gaps.py")


if __name__ == "__main__":
    sys.exit(main())

"""Do streams stall while deltas load and go?

One server, streams that run all the time: the base and pinned deltas. Windows without any change and windows in which one delta after another is loaded
(its digests checked every time) and the least recently used one goes, in turns. Gaps between two tokens of a stream, by window.

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
from support.page_cache import drop_from_page_cache
from support.streams import Request, random_prompt, read_stream

N_CTX = 512
N_PROMPT = 16
WARM_UP_S = 3.0  # It warms the graphs up, and the pinned deltas.
N_LOADED = 2  # number of deltas that fit beside the pinned ones
QUIET, CHANGING = "nothing changes", "deltas load and go"
LOAD_SECONDS = 300


@dataclass
class Windows:
    """When what was done: (kind, begin, end) in seconds of time.perf_counter."""

    spans: list[tuple[str, float, float]] = field(default_factory=list)

    def gaps(self, kind: str, streams: Iterable[list[float]]) -> np.ndarray:
        """Milliseconds between two tokens of a stream that both came in a window of this kind."""
        found: list[float] = []
        for seconds in streams:
            for before, after in itertools.pairwise(seconds):
                if any(k == kind and begin <= before and after <= end for k, begin, end in self.spans):
                    found.append(1000 * (after - before))
        return np.array(found)


def stream_all_the_time(
    url: str, model: str | None, stream: int, n_vocab: int, over: threading.Event
) -> list[list[float]]:
    """Asks again and again until `over`; the arrival times of each answer's tokens."""
    request = Request(url, model, random_prompt(stream, N_PROMPT, n_vocab), N_CTX - N_PROMPT)
    answers = []
    while not over.is_set():
        with requests.Session() as session:
            answers.append(read_stream(session, request).seconds)
    return answers


def load_in_turn(url: str, paths: Iterator[Path], is_cold: bool, until: float) -> list[float]:
    """Loads one delta after another; milliseconds of each load."""
    took = []
    while time.perf_counter() < until:
        path = next(paths)
        os.utime(path)  # The file is newer, so its digests are checked again.
        if is_cold:
            drop_from_page_cache(path)
        begun = time.perf_counter()
        body = {"name": path.name.removesuffix(fmt.SUFFIX)}
        reply = requests.post(f"{url}/deltas/load", json=body, timeout=LOAD_SECONDS)
        if not reply.ok:
            raise SystemExit(f"{path.name}: {reply.status_code}: {reply.text}")
        took.append(1000 * (time.perf_counter() - begun))
    return took


def measure(
    server: Server, args: argparse.Namespace, pinned: list[str], rest: list[Path]
) -> tuple[Windows, list[list[float]], list[float]]:
    """The windows, every answer's arrival times, and the times of the loads."""
    windows, loads, over = Windows(), [], threading.Event()
    paths = itertools.cycle(rest)
    n_vocab = server.n_vocab()
    models = [None, *pinned]
    with ThreadPoolExecutor(len(models)) as pool:
        streams = [pool.submit(stream_all_the_time, server.url, m, i, n_vocab, over) for i, m in enumerate(models)]
        time.sleep(WARM_UP_S)
        for kind in [QUIET, CHANGING] * args.repeat:
            begin = time.perf_counter()
            if kind == CHANGING:
                loads += load_in_turn(server.url, paths, args.cold, begin + args.seconds)
            else:
                time.sleep(args.seconds)
            windows.spans.append((kind, begin, time.perf_counter()))
        over.set()
        answers = [seconds for stream in streams for seconds in stream.result()]
    return windows, answers, loads


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
        windows, answers, loads = measure(started, args, pinned, paths[args.pinned :])
    gaps = {kind: windows.gaps(kind, answers) for kind in (QUIET, CHANGING)}
    facts = {
        **facts_of(server, base, args.threads),
        "delta": f"{paths[0].stat().st_size:,} bytes",
        "streams": f"the base and {args.pinned} pinned deltas",
        "loads": f"{len(loads)}, each evicting one, {np.median(loads):.0f} ms (median)",
    }
    if args.output == "json":
        print(json.dumps({"facts": facts, "gaps_ms": {k: v.tolist() for k, v in gaps.items()}, "loads_ms": loads}))
    else:
        print(markdown(facts, gaps))


def markdown(facts: dict[str, object], gaps: dict[str, np.ndarray]) -> str:
    """The facts, a table of the gaps, and the ratio of the 99th percentiles."""
    rows = "\n".join(
        f"| {kind} | {len(ms)} | " + " | ".join(f"{np.percentile(ms, q):.1f}" for q in (50, 90, 99, 100)) + " |"
        for kind, ms in gaps.items()
    )
    ratio = np.percentile(gaps[CHANGING], 99) / np.percentile(gaps[QUIET], 99)
    table = f"| | gaps | median ms | 90 % | 99 % | longest |\n|---|---|---|---|---|---|\n{rows}"
    return f"{heading(facts)}\n\n{table}\n\n99th percentile: {ratio:.2f} times that without changes"


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

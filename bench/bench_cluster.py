"""What does a cluster cost where it gains nothing, on one machine?

Converts the same pair in turn with the threads of this process and on a Ray cluster of this machine alone with as many
(`--ray local`), compares the bytes, and prints the medians: what it takes to start the cluster and its workers, what the three passes
take, and what went over the network, had the worker been elsewhere.

  make_llama_1b.py -o smol --layers 30 --width 576 --ff 1536 --heads 9 --kv-heads 3 --vocab 49152 --deltas 1 --merged 1
  bench_cluster.py smol/base-f16.gguf smol/merged-00-f16.gguf
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dqrelo_gguf.cli import run
from dqrelo_gguf.compress.blocks import Blocks, n_cores
from dqrelo_gguf.convert.cluster.lanes import on_ray
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.lanes import Lanes, OpenLanes, local_lanes
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.convert.sources import Models, Sources
from dqrelo_gguf.errors import InputError
from support.machine import commit, cpu

PROG = "bench_cluster.py"


class Timed:
    """Lanes whose opening is timed."""

    def __init__(self, open_lanes: OpenLanes) -> None:
        self.open_lanes, self.start_seconds, self.end_seconds = open_lanes, 0.0, 0.0

    @contextmanager
    def __call__(self, sources: Sources, models: Models, options: Options, blocks: Blocks) -> Iterator[Lanes]:
        begun = time.monotonic()
        with self.open_lanes(sources, models, options, blocks) as lanes:
            self.start_seconds = time.monotonic() - begun
            yield lanes
            begun = time.monotonic()
        self.end_seconds = time.monotonic() - begun


def measure(args: argparse.Namespace) -> None:
    """Runs and prints."""
    print(f"{' '.join(sys.argv)}; commit {commit()}; {cpu()}; {args.threads} threads; load {os.getloadavg()[0]:.1f}")
    rows: dict[str, list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        written = set()
        for _ in range(args.repeat):
            for name, open_lanes in (("threads", local_lanes), ("--ray local", on_ray("local", None, args.threads))):
                out, timed = Path(folder) / "x.dq.gguf", Timed(open_lanes)
                job = Job(args.base, args.tuned, out, force=True, n_threads=args.threads)
                result = convert(job, Options(method=args.method), open_lanes=timed)
                rows.setdefault(name, []).append((timed.start_seconds, result.seconds, timed.end_seconds))
                written.add(out.read_bytes())
        if len(written) != 1:
            raise InputError("the deltas differ")
    for name, seconds in rows.items():
        start, total, end = (statistics.median(column) for column in zip(*seconds, strict=True))
        print(f"{name:12} {total:7.1f} s: start {start:.1f}, passes {total - start - end:.1f}, end {end:.1f}")
    print(f"same bytes; {result.n_bytes / 1e6:.1f} MB of packs; load {os.getloadavg()[0]:.1f}")


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("tuned", type=Path)
    parser.add_argument("--method", default="best", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=n_cores(), help="(default: all cores)")
    parser.add_argument("--repeat", type=int, default=3, help="(default: %(default)s)")
    args = parser.parse_args()
    return run(lambda: measure(args), PROG)


if __name__ == "__main__":
    sys.exit(main())

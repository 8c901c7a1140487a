"""How long until a delta can be used, and what does switching between deltas cost?

  cold     the delta's file dropped from the page cache: a plain read of it, against loading it until its first token
           (load + first decode of one token - the same decode again)
  swap     the files in the page cache: unloading one delta and loading another
  switch   one stream of a server on two loaded deltas: time to the first token when the request before was for the
           other delta, against the same delta; the prompt is computed anew in both cases

Medians of interleaved repeats. The graphs are built with another delta before, as in a server that runs already.

  bench_load.py --dir llama1b

takes base-f16.gguf, delta-00.dq.gguf and delta-01.dq.gguf of make_llama_1b.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dqrelo_gguf.cli import run
from dqrelo_gguf.runtime.session import Runtime
from support.llama_servers import Setup, running
from support.machine import facts_of, heading
from support.model_folder import add_arguments, base_of, by_name, need_files, server_of
from support.page_cache import drop_from_page_cache, read_all
from support.streams import Request, random_prompt, run_streams

TOKEN = 1  # Any token does: it is decoded for its time only.


@dataclass
class Times:
    """Milliseconds by what was timed; every list has one entry a repeat."""

    ms: dict[str, list[float]] = field(default_factory=dict)

    def add(self, what: str, ms: float) -> None:
        """One more repeat."""
        self.ms.setdefault(what, []).append(ms)

    def median(self, what: str) -> float:
        """The median of the repeats."""
        return statistics.median(self.ms[what])


def timed(fn: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    begun = time.perf_counter()
    fn()
    return 1000 * (time.perf_counter() - begun)


def measure_cold(runtime: Runtime, path: Path, times: Times) -> None:
    """One repeat of `cold`."""
    drop_from_page_cache(path)
    times.add("cold read", timed(lambda: read_all(path)))
    times.add("warm read", timed(lambda: read_all(path)))
    drop_from_page_cache(path)
    begun = time.perf_counter()
    with runtime.load_delta(path) as delta:
        runtime.logits([TOKEN], delta)
        first = 1000 * (time.perf_counter() - begun)
        again = timed(lambda: runtime.logits([TOKEN], delta))
    times.add("cold load", first - again)


def measure_swap(runtime: Runtime, paths: list[Path], times: Times) -> None:
    """One repeat of `swap`, in both directions."""
    delta = runtime.load_delta(paths[0])
    for path in (paths[1], paths[0]):
        runtime.logits([TOKEN], delta)
        unload = timed(delta.close)
        begun = time.perf_counter()
        delta = runtime.load_delta(path)
        load = 1000 * (time.perf_counter() - begun)
        times.add("unload", unload)
        times.add("load", load)
        times.add("swap", unload + load)
    delta.close()


def measure_switch(setup: Setup, repeat: int, n_prompt: int, times: Times) -> None:
    """All repeats of `switch`."""
    a, b = setup.deltas
    with running([setup]) as (server,):
        prompt = random_prompt(0, n_prompt, server.n_vocab())

        def first_token_ms(name: str) -> float:
            return 1000 * run_streams([Request(server.url, name, prompt, 1)])[0].seconds[0]

        for name in (a, b):
            first_token_ms(name)
        for _ in range(repeat):
            times.add("after the other delta", first_token_ms(a))
            times.add("after the same delta", first_token_ms(a))
            times.add("after the other delta", first_token_ms(b))
            times.add("after the same delta", first_token_ms(b))


def bench(args: argparse.Namespace) -> None:
    """Measures and prints."""
    server, base = server_of(args), base_of(args)
    paths = [args.dir / f"delta-{i:02d}.dq.gguf" for i in range(2)]
    need_files([server, base, *paths])
    times = Times()
    with Runtime(base, n_ctx=512, n_seq_max=1, n_threads=args.threads, allow_other_base=True) as runtime:
        with runtime.load_delta(paths[1]) as other:
            runtime.logits([TOKEN], other)
        for _ in range(args.repeat):
            measure_cold(runtime, paths[0], times)
            measure_swap(runtime, paths, times)
    setup = Setup(server, base, 1, 512, args.threads, by_name(paths), ["--delta-allow-other-base"])
    measure_switch(setup, args.repeat, args.n_prompt, times)
    facts = {
        **facts_of(server, base, args.threads),
        "delta": f"{paths[0].stat().st_size:,} bytes",
        "repeats": args.repeat,
    }
    medians = {what: times.median(what) for what in times.ms}
    if args.output == "json":
        print(json.dumps({"facts": facts, "ms": times.ms, "medians": medians}, indent=1))
    else:
        print(markdown(facts, medians))


def markdown(facts: dict[str, object], medians: dict[str, float]) -> str:
    """The facts and a table of what was measured."""
    read, load = medians["cold read"], medians["cold load"]
    same, other = medians["after the same delta"], medians["after the other delta"]
    rows = {
        "file not in the page cache: plain read": f"{read:.1f}",
        "file not in the page cache: loaded and usable": f"{load:.1f} ({load / read:.2f} of the read)",
        "file in the page cache: plain read": f"{medians['warm read']:.1f}",
        "file in the page cache: unload": f"{medians['unload']:.1f}",
        "file in the page cache: load": f"{medians['load']:.1f}",
        "warm swap: unload and load": f"{medians['swap']:.1f}",
        "first token after a request for the same delta": f"{same:.1f}",
        "first token after a request for the other delta": f"{other:.1f} ({other - same:+.1f})",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"{heading(facts)}\n\n| what | ms |\n|---|---|\n{table}"


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, base="base-f16.gguf")
    parser.add_argument("--n-prompt", type=int, default=32, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--repeat", "-r", type=int, default=7, help="runs (default: %(default)s)")
    args = parser.parse_args()
    return run(lambda: bench(args), "bench_load.py")


if __name__ == "__main__":
    sys.exit(main())

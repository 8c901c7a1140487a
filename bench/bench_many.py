"""What do many fine-tunes in one server cost against a server for each? The paper's Table 4, on CPUs.

For every N, interleaved and repeated:

  deltas      one llama-server with the base and N deltas, one stream on each
  separate    N stock llama-servers, each with one merged model and one stream; threads of each: the better of all
              cores and one, found by a short trial
  base alone  one llama-server with the base, N streams on it

All streams start at once with prompts of their own, greedy, end tokens ignored; prompt and KV caches of earlier
requests are not used. Speed is measured over the time in which all streams generate: from the first token of the last
starter to the first end of a stream. A step is the time in which every stream gets one token. Memory is the PSS of all
server processes after the run (pages that several share counted once). Where N merged models do not fit into memory
(files, KV caches and compute buffers against MemAvailable), the cell is a dash.

  bench_many.py --dir llama1b --stock-server stock/llama-server

takes the files of make_llama_1b.py: base-f16.gguf, delta-NN.dq.gguf, merged-NN-f16.gguf.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import psutil

from dqrelo_gguf.cli import run
from dqrelo_gguf.errors import InputError
from support.llama_servers import Server, Setup, pss_bytes, running
from support.machine import facts_of
from support.many_report import markdown
from support.many_rows import Measured, Row
from support.model_folder import add_arguments, base_of, by_name, need_files, server_of
from support.streams import Request, random_prompt, run_speed, run_streams, speed_of

CTX_STEP = 256  # llama.cpp gives a sequence a multiple of this.
N_WARM_UP = 4  # These tokens touch the pages and build the graphs.
# Share of MemAvailable that stock servers may take: the rest keeps their pages from being read from disk again and again.
MEMORY_SHARE = 0.95


class Bench:
    """The measurement, from the command line's arguments."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        n_most = max(args.n)
        self.server, self.base = server_of(args), base_of(args)
        self.deltas = [args.dir / f"delta-{i:02d}.dq.gguf" for i in range(n_most)]
        self.merged = [args.dir / f"merged-{i:02d}-f16.gguf" for i in range(n_most)]
        n_tokens = args.n_prompt + args.n_predict
        self.n_ctx = -(-n_tokens // CTX_STEP) * CTX_STEP
        merged = self.merged[:1] if args.stock_server else []
        stock = [args.stock_server] if args.stock_server else []
        need_files([self.server, *stock, self.base, *self.deltas, *merged])
        if args.n_predict < 2:
            raise InputError(f"--n-predict {args.n_predict}: must be at least 2")

    @cached_property
    def n_vocab(self) -> int:
        """Of the base."""
        with running([self.ours(0, 1)]) as (server,):
            return server.n_vocab()

    def ours(self, n_deltas: int, n_streams: int) -> Setup:
        """The server of this project."""
        deltas = by_name(self.deltas[:n_deltas])
        extra = ["--delta-allow-other-base"] if deltas and self.args.allow_other_base else []
        return Setup(self.server, self.base, n_streams, self.n_ctx, self.args.threads, deltas, extra)

    def stock(self, n: int, n_threads: int) -> list[Setup]:
        """N stock servers."""
        return [Setup(self.args.stock_server, p, 1, self.n_ctx, n_threads) for p in self.merged[:n]]

    def measure(self, n: int) -> Row:
        """All runs of one N."""
        row = Row(n, sum(p.stat().st_size for p in (self.base, *self.deltas[:n])))
        for _ in range(self.args.repeat):
            with self.started([self.ours(n, n)], n) as (servers, requests):
                row.runs["deltas"].append(_measured(servers, requests))
            if self.stock_fits(row):
                if row.stock_threads is None:
                    row.trials = {
                        t: self.trial(n, t) for t in sorted({1, self.args.threads} if n > 1 else {self.args.threads})
                    }
                    row.stock_threads = max(row.trials, key=lambda t: row.trials[t])
                with self.started(self.stock(n, row.stock_threads), n) as (servers, requests):
                    row.runs["separate"].append(_measured(servers, requests))
            with self.started([self.ours(0, n)], n) as (servers, requests):
                row.runs["base alone"].append(_measured(servers, requests))
        return row

    def trial(self, n: int, n_threads: int) -> float:
        """Tokens/s of N stock servers in a short run."""
        with self.started(self.stock(n, n_threads), n) as (_, requests):
            return run_speed(run_streams(_shortened(requests, max(2, self.args.n_predict // 4))))

    @contextmanager
    def started(self, setups: Sequence[Setup], n: int) -> Iterator[tuple[list[Server], list[Request]]]:
        """Running, warm servers, and the requests of N streams for them."""
        names: list[str | None] = [*setups[0].deltas] or [None] * n
        print(f"N = {n}: {len(setups)} servers, {len(setups[0].deltas)} deltas ...", file=sys.stderr, flush=True)
        prompts = [random_prompt(i, self.args.n_prompt, self.n_vocab) for i in range(n)]
        with running(setups) as servers:
            urls = [servers[i % len(servers)].url for i in range(n)]
            requests = [
                Request(*of_stream, self.args.n_predict) for of_stream in zip(urls, names, prompts, strict=True)
            ]
            run_streams(_shortened(requests, N_WARM_UP))
            yield servers, requests

    def stock_fits(self, row: Row) -> bool:
        """Whether N stock servers are asked for and fit into memory.

        Raises:
            InputError: they fit, but a merged model is not there.
        """
        if self.args.stock_server is None:
            return False
        merged_bytes = row.n * self.merged[0].stat().st_size  # All have the same size.
        needed = merged_bytes + row.buffer_bytes("KV") + row.n * row.buffer_bytes("compute")
        if needed > MEMORY_SHARE * psutil.virtual_memory().available:
            return False
        missing = [p for p in self.merged[: row.n] if not p.is_file()]
        if missing:
            raise InputError(f"{missing[0]}: no such file. bench/make_llama_1b.py --merged {row.n} makes it")
        return True


def _shortened(requests: Sequence[Request], n_predict: int) -> list[Request]:
    return [Request(r.url, r.model, r.prompt, n_predict) for r in requests]


def _measured(servers: Sequence[Server], requests: Sequence[Request]) -> Measured:
    try:
        speed = speed_of(run_streams(requests))
    except ValueError as e:
        raise InputError(str(e)) from e
    sizes = [server.buffers() for server in servers]
    return Measured(speed, pss_bytes(servers), {use: sum(s[use] for s in sizes) for use in sizes[0]})


def _numbers(text: str) -> list[int]:
    numbers = sorted({int(word) for word in text.split(",")})
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be numbers of at least 1")
    return numbers


def bench(args: argparse.Namespace) -> None:
    """Measures and prints."""
    measuring = Bench(args)
    facts = {
        **facts_of(measuring.server, measuring.base, args.threads),
        "streams": f"{args.n_prompt} prompt tokens, {args.n_predict} generated, context {measuring.n_ctx} a stream",
        "repeats": args.repeat,
    }
    rows = [measuring.measure(n) for n in args.n]
    if args.output == "json":
        print(json.dumps({"facts": facts, "rows": [row.as_json() for row in rows]}, indent=1))
    else:
        print(markdown(facts, rows))


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, base="base-f16.gguf")
    parser.add_argument(
        "--allow-other-base", action="store_true", help="the base is another quantisation of the deltas' base"
    )
    parser.add_argument("--stock-server", type=Path, help="stock llama-server (default: no separate servers)")
    parser.add_argument("--n", type=_numbers, default=[1, 2, 4, 8, 16], help="fine-tunes (default: 1,2,4,8,16)")
    parser.add_argument("--n-prompt", type=int, default=32, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--n-predict", type=int, default=32, help="tokens generated (default: %(default)s)")
    parser.add_argument("--repeat", "-r", type=int, default=3, help="runs of each setting (default: %(default)s)")
    args = parser.parse_args()
    return run(lambda: bench(args), "bench_many.py")


if __name__ == "__main__":
    sys.exit(main())

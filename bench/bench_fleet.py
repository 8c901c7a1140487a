"""What does a fleet lose when its fine-tunes are more than one replica holds?

A Ray cluster on this machine, a front and three replicas of one thread each (dqrelo_gguf.integrations.ray_serve), each with memory for
eight deltas. Clients that ask one request after the other, each for a delta whose popularity is that of its rank (Zipf): of eight
deltas, and of 24, in turns. Printed for both: tokens a second of all answers, first tokens (median, 99 %), loads and evictions by the
servers, and the processor time of the front, of Ray's proxy and of its controller.

  bench_fleet.py --dir fleet

takes base-f16.gguf and delta-00.dq.gguf to delta-23.dq.gguf of make_llama_1b.py, for instance of

  make_llama_1b.py -o fleet --layers 8 --width 512 --ff 1408 --heads 8 --vocab 4096 --deltas 24

and needs ray[serve] (the extra `serve`).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import shutil
import statistics
import string
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests

from dqrelo_gguf.cli import run
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.integrations.fleet.server_process import ask_server
from support.machine import facts_of, heading
from support.model_folder import add_arguments, base_of, need_files, server_of

APP = "fleet"
PORT = 8127
ANSWER_SECONDS = 300
OBJECT_STORE_BYTES = 80 << 20
N_PROMPT = 24  # Letters.
PARTS = {"front": f"ray::ServeReplica:{APP}:Front", "proxy": "ray::ProxyActor", "controller": "ray::ServeController"}


@dataclass
class Phase:
    """One window with some number of deltas."""

    n_deltas: int
    seconds: float = 0.0
    n_tokens: int = 0
    n_failed: int = 0
    first_ms: list[float] = field(default_factory=list)
    loads: int = 0
    cpu_s: dict[str, float] = field(default_factory=dict)  # by part, over the window

    @property
    def tokens_per_s(self) -> float:
        """Of all answers together."""
        return self.n_tokens / self.seconds


@dataclass(frozen=True)
class Load:
    """What the clients ask for."""

    url: str
    n_predict: int
    skew: float

    def ask(self, phase: Phase, rng: random.Random, lock: threading.Lock) -> None:
        """One request, streamed; counts what came."""
        ranks = range(phase.n_deltas)
        (rank,) = rng.choices(ranks, [1 / (1 + r) ** self.skew for r in ranks])
        body = {
            "model": f"delta-{rank:02d}",
            "prompt": "".join(rng.choices(string.ascii_lowercase, k=N_PROMPT)),
            "max_tokens": self.n_predict,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0,
            "stream": True,
        }
        begun, first, n_tokens, is_whole = time.perf_counter(), None, 0, False
        with requests.post(f"{self.url}/v1/completions", json=body, stream=True, timeout=ANSWER_SECONDS) as answer:
            for line in answer.iter_lines(chunk_size=None) if answer.ok else ():
                first = first or time.perf_counter()
                is_whole |= line == b"data: [DONE]"
                n_tokens += line.startswith(b'data: {"choices"')
        with lock:
            phase.n_failed += not is_whole
            phase.n_tokens += n_tokens
            if first is not None:
                phase.first_ms.append(1000 * (first - begun))


def loads(folder: Path) -> int:
    """Loads of deltas since the servers started, of all of them."""
    found = [ask_server(path, "/deltas", {})["data"] for path in folder.glob("dqrelo-*/server.sock")]
    return sum(row["generation"] for rows in found for row in rows)


def cpu_seconds() -> dict[str, float]:
    """Processor time of Ray's parts since they started."""
    names = {p.info["pid"]: " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["pid", "cmdline"])}
    times: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    for part, name in PARTS.items():
        for pid in (pid for pid, found in names.items() if found.startswith(name)):
            with contextlib.suppress(psutil.Error):
                times[part] += sum(psutil.Process(pid).cpu_times()[:2])
    return times


def measure(load: Load, n_deltas: int, args: argparse.Namespace, folder: Path, seed: int) -> Phase:
    """A window in which the clients ask, after a shorter one that warms up."""
    for seconds in (args.warm_up, args.seconds):
        phase, lock = Phase(n_deltas), threading.Lock()
        loads_before, cpu_before, begun = loads(folder), cpu_seconds(), time.perf_counter()

        def client(
            number: int, phase: Phase = phase, lock: threading.Lock = lock, end: float = begun + seconds
        ) -> None:
            rng = random.Random(f"{seed} {number}")  # noqa: S311 - a load, not a secret
            while time.perf_counter() < end:
                load.ask(phase, rng, lock)

        threads = [threading.Thread(target=client, args=(i,)) for i in range(args.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        phase.seconds = time.perf_counter() - begun
        phase.loads = loads(folder) - loads_before
        phase.cpu_s = {part: seconds - cpu_before[part] for part, seconds in cpu_seconds().items()}
    return phase


@contextlib.contextmanager
def fleet(args: argparse.Namespace, base: Path, budget_mib: int) -> Iterator[Path]:
    """The cluster and the application; gives the directory in which the servers have theirs."""
    import ray
    from ray import serve

    from dqrelo_gguf.integrations.ray_serve import app

    folder = Path(tempfile.mkdtemp(prefix="dqb-", dir="/tmp"))
    os.environ |= {"TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    if args.server:
        os.environ["DQRELO_BIN_DIR"] = str(args.server.parent.resolve())
    arguments: dict[str, Any] = {
        "base": str(base.resolve()),
        "deltas": str(args.dir.resolve()),
        "replicas": args.replicas,
        "delta_memory": budget_mib,
        "slots": args.slots,
        "context": 256,
        "threads": args.threads,
        "cpus": 0.1,
        "server_args": "--delta-allow-other-base --alias base",
    }
    try:
        ray.init(
            num_cpus=4,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=str(folder / "ray"),
        )
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(app(arguments), name=APP)
        yield folder
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def bench(args: argparse.Namespace) -> None:
    """Measures and prints."""
    server, base = server_of(args), base_of(args)
    deltas = [args.dir / f"delta-{i:02d}{fmt.SUFFIX}" for i in range(max(args.n))]
    need_files([server, base, *deltas])
    if args.room < 1:
        raise InputError(f"--room {args.room}: must be at least 1")
    budget_mib = math.ceil((args.room + 0.2) * max(path.stat().st_size for path in deltas) / (1 << 20))
    with fleet(args, base, budget_mib) as folder:
        load = Load(f"http://127.0.0.1:{PORT}", args.n_predict, args.skew)
        turns = enumerate(itertools.chain.from_iterable([args.n] * args.repeat))
        phases = [measure(load, n, args, folder, seed) for seed, n in turns]
    facts = facts_of(server, base, args.threads) | {
        "deltas": f"{deltas[0].stat().st_size:,} bytes each; {budget_mib} MiB for them in each of {args.replicas} replicas",
        "load": f"{args.clients} clients, answers of {args.n_predict} tokens, popularity 1/rank^{args.skew:g}",
    }
    if args.output == "json":
        print(json.dumps({"facts": facts, "phases": [asdict(phase) for phase in phases]}))
    else:
        print(markdown(facts, phases))


def markdown(facts: dict[str, object], phases: list[Phase]) -> str:
    """The facts, a row for each number of deltas (medians of its windows, percentiles of all its answers), and the ratios."""
    rows, speeds = [], {}
    for n in sorted({phase.n_deltas for phase in phases}):
        same = [phase for phase in phases if phase.n_deltas == n]
        first = np.concatenate([phase.first_ms for phase in same])
        speeds[n] = statistics.median(phase.tokens_per_s for phase in same)
        ms = " | ".join(f"{np.percentile(first, q):.0f}" for q in (50, 99, 100))
        n_asked, n_failed = len(first), sum(phase.n_failed for phase in same)
        n_loads = sum(phase.loads for phase in same)
        cpu = " | ".join(f"{1000 * sum(phase.cpu_s[part] for phase in same) / n_asked:.1f}" for part in PARTS)
        rows.append(f"| {n} | {speeds[n]:.1f} | {ms} | {n_asked} | {n_failed} | {n_loads} | {cpu} |")
    head = (
        "| deltas | tokens/s | first token, median ms | 99 % | longest | answers | failed | loads | front, ms of CPU an answer "
        "| proxy | controller |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    least = min(speeds)
    ratios = [f"{n} deltas: {speed / speeds[least]:.2f} of the speed at {least}" for n, speed in speeds.items()]
    return "\n".join([heading(facts), "", head, *rows, "", *ratios[1:]])


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, base="base-f16.gguf")
    parser.set_defaults(threads=1)
    parser.add_argument("--n", type=int, nargs="+", default=[8, 24], help="deltas (default: %(default)s)")
    parser.add_argument("--room", type=int, default=8, help="deltas that fit into a replica (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--slots", type=int, default=4, help="of a replica (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=12, help="that ask at a time (default: %(default)s)")
    parser.add_argument("--n-predict", type=int, default=32, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--skew", type=float, default=1.0, help="of the popularity, 1/rank^SKEW (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="of each window (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=10, help="seconds before it (default: %(default)s)")
    parser.add_argument("--repeat", "-r", type=int, default=3, help="windows of each kind (default: %(default)s)")
    return run(lambda: bench(parser.parse_args()), "bench_fleet.py")


if __name__ == "__main__":
    sys.exit(main())

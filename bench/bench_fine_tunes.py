"""Do fine-tunes keep their skill as deltas? Converts, serves and scores, and prints the table of docs/benchmarks/quality-small.md.

For every base file: each fine-tune becomes a delta; one server holds the base and all deltas; problems with checkable
answers are asked of the base and of each delta by name. The same problems go to the full fine-tune and to base + delta
merged (dqrelo-merge), each as a plain GGUF in a server of its own.

  bench_fine_tunes.py --base base-f16.gguf --base base-q4_k_m.gguf --tuned math=ft-math/ --tuned words=words-f16.gguf
      --problems DIR --scorer score_server.py

A fine-tune's name is the name of its problem file: NAME.jsonl. A fine-tune given as a checkpoint is also served as F16 GGUF, made by upstream's script.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from dqrelo_gguf._pin import conversion_script
from dqrelo_gguf.cli import run
from dqrelo_gguf.compress.blocks import n_cores
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.runtime.programs import program
from support.llama_servers import Setup, running
from support.machine import commit, cpu

N_STREAMS = 4
N_CTX = 1024  # tokens of a stream
N_BASE_TEXTS = 20


@dataclass
class Row:
    """A fine-tune over a base.

    Args:
        base: the base's file name.
        task: the fine-tune's name.
        n_problems: that were asked.
        scores: right answers of base, full, delta and merged.
        n_bytes: of the delta file.
        ratio: of the delta.
        seconds: that its conversion took.
    """

    base: str
    task: str
    n_problems: int
    scores: dict[str, int]
    n_bytes: int
    ratio: float
    seconds: float

    @property
    def retention(self) -> float:
        """(compressed - base) / (full - base), paper appendix B; NaN where the full fine-tune is no better than the base."""
        gained = self.scores["full"] - self.scores["base"]
        return (self.scores["delta"] - self.scores["base"]) / gained if gained else math.nan


def output_of(*command: str | Path) -> str:
    """What a command prints.

    Raises:
        InputError: it failed.
    """
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"{' '.join(map(str, command[:3]))} failed: {done.stderr[-2000:]}")
    return done.stdout


@contextlib.contextmanager
def serve(model: Path, deltas: dict[str, Path], n_threads: int) -> Iterator[str]:
    """A server with a model named `base` and deltas of it; its URL."""
    setup = Setup(program("llama-server"), model, N_STREAMS, N_CTX, n_threads, deltas, ["--alias", "base"])
    with running([setup]) as (server,):
        yield server.url


class Bench:
    """The measurement, from the command line's arguments; `work` is the folder of its files."""

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arguments = arguments
        self.work = work
        self.tuned = {name: Path(path) for name, path in (t.split("=", 1) for t in arguments.tuned)}

    def score(self, url: str, model: str, task: str) -> tuple[int, int]:
        """Right answers and problems."""
        command = [sys.executable, self.arguments.scorer, "--url", url, "--model", model, "--timeout", "900"]
        if self.arguments.chat:
            command += ["--chat"]
        if self.arguments.limit:
            command += ["--limit", str(self.arguments.limit)]
        right, total = output_of(*command, self.arguments.problems / f"{task}.jsonl").split()[-1].split("/")
        return int(right), int(total)

    def base_texts(self, url: str) -> list[str]:
        """What the base says, one question after the other."""
        problems = (self.arguments.problems / f"{next(iter(self.tuned))}.jsonl").read_text().splitlines()
        texts = []
        for problem in problems[:N_BASE_TEXTS]:
            messages = [{"role": "user", "content": json.loads(problem)["question"]}]
            body = {"model": "base", "messages": messages, "temperature": 0, "max_tokens": 48, "cache_prompt": False}
            reply = requests.post(f"{url}/v1/chat/completions", json=body, timeout=900).json()
            texts.append(reply["choices"][0]["message"]["content"])
        return texts

    def score_plain(self, model: Path, task: str) -> int:
        """Right answers of a plain GGUF, served alone."""
        with serve(model, {}, self.arguments.threads) as url:
            return self.score(url, "base", task)[0]

    def plain_gguf(self, name: str) -> Path:
        """The full fine-tune as an F16 GGUF."""
        if self.tuned[name].is_file():
            return self.tuned[name]
        out = self.work / f"{name}-full.gguf"
        script = self.arguments.convert_script or conversion_script()
        output_of(sys.executable, script, self.tuned[name], "--outfile", out, "--outtype", "f16")
        return out

    def convert(self, base: Path, name: str) -> tuple[Path, float, float]:
        """The delta, its ratio, and the seconds that its conversion took."""
        out = self.work / f"{base.stem}-{name}.dq.gguf"
        report = out.with_suffix(".json")
        start = time.perf_counter()
        command = ["-m", "dqrelo_gguf.cli.convert", base, self.tuned[name], "-o", out, "--force", "--json", report]
        output_of(sys.executable, *command, "--ratio", self.arguments.ratio)
        return out, json.loads(report.read_text())["ratio"], time.perf_counter() - start

    def rows_of(self, base: Path, full: dict[str, int]) -> Iterator[Row]:
        """A row for each fine-tune over a base; `full` has the right answers of the full fine-tunes."""
        made = {name: self.convert(base, name) for name in self.tuned}
        with serve(base, {name: delta for name, (delta, _, _) in made.items()}, self.arguments.threads) as url:
            served = {name: (self.score(url, "base", name), self.score(url, name, name)) for name in self.tuned}
            texts = self.base_texts(url)
        with serve(base, {}, self.arguments.threads) as url:
            equal = sum(a == b for a, b in zip(texts, self.base_texts(url), strict=True))
        print(f"# {base.name}: {equal} of {len(texts)} chat answers of the base are the same with and without deltas")
        for name, (delta, ratio, seconds) in made.items():
            merged = self.work / f"{base.stem}-{name}-merged.gguf"
            output_of(
                sys.executable, "-m", "dqrelo_gguf.cli.merge", base, delta, "-o", merged, "--outtype", "f16", "--force"
            )
            (base_right, n_problems), (delta_right, _) = served[name]
            scores = {
                "base": base_right,
                "full": full[name],
                "delta": delta_right,
                "merged": self.score_plain(merged, name),
            }
            yield Row(base.name, name, n_problems, scores, delta.stat().st_size, ratio, seconds)

    def table(self) -> None:
        """Measures everything, and prints a row as soon as it is there."""
        full = {name: self.score_plain(self.plain_gguf(name), name) for name in self.tuned}
        print(
            "| base | bytes | task | problems | base | full fine-tune | delta, served | merged | retention | delta bytes | ratio | conversion s |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|---|")
        for base in self.arguments.base:
            for row in self.rows_of(base, full):
                s = row.scores
                print(
                    f"| {row.base} | {base.stat().st_size:,} | {row.task} | {row.n_problems} | {s['base']} | {s['full']} | {s['delta']} | {s['merged']} "
                    f"| {row.retention:.1%} | {row.n_bytes:,} | {row.ratio:.4f} | {row.seconds:.1f} |",
                    flush=True,
                )


def bench(arguments: argparse.Namespace) -> None:
    """Measures and prints."""
    print(
        f"# {' '.join(sys.argv)}\n# commit {commit()}, {cpu()}, {arguments.threads} threads",
        file=sys.stderr,
        flush=True,
    )
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        Bench(arguments, work).table()


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, action="append", required=True, help="a base GGUF; repeatable")
    parser.add_argument("--tuned", action="append", required=True, metavar="TASK=PATH", help="a fine-tune; repeatable")
    parser.add_argument("--problems", type=Path, required=True, help="folder of TASK.jsonl")
    parser.add_argument("--scorer", type=Path, required=True, help="score_server.py")
    parser.add_argument("--ratio", default="1/8", help="of the deltas (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="problems a task (default: all)")
    parser.add_argument("--chat", action="store_true", help="ask through each model's chat template")
    parser.add_argument("--threads", type=int, default=n_cores(), help="(default: all cores, %(default)s)")
    parser.add_argument("--convert-script", type=Path, help="upstream's convert_hf_to_gguf.py (default: the pin's)")
    parser.add_argument("--work", type=Path, help="keep the files here (default: a temporary folder)")
    arguments = parser.parse_args()
    return run(lambda: bench(arguments), "bench_fine_tunes.py")


if __name__ == "__main__":
    sys.exit(main())

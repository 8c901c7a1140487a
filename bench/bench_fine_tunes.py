"""Do fine-tunes keep their skill as deltas? Converts, serves and scores, and prints the table of docs/benchmarks.md.

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
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from dqrelo_gguf.runtime.programs import program

START_SECONDS = 120
N_BASE_TEXTS = 20


@dataclass
class Row:
    base: str
    task: str
    n_problems: int
    scores: dict[str, int]  # base, full, delta, merged -> right answers
    n_bytes: int
    ratio: float
    seconds: float

    @property
    def retention(self) -> float:
        """(compressed - base) / (full - base), paper appendix B."""
        return (self.scores["delta"] - self.scores["base"]) / (self.scores["full"] - self.scores["base"])


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")
    return done.stdout


@contextlib.contextmanager
def serve(model: Path, deltas: dict[str, Path], threads: int) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        program("llama-server"),
        "-m",
        model,
        "--alias",
        "base",
        "--port",
        port,
        "-np",
        4,
        "-c",
        4096,
        "-t",
        threads,
    ]
    for name, path in deltas.items():
        command += ["--delta", f"{name}={path}"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until_ready(url, server)
            yield url
        finally:
            server.terminate()


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        time.sleep(0.2)
    raise SystemExit(f"the server did not start: {server.args!r}")


class Bench:
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
        right, total = run(*command, self.arguments.problems / f"{task}.jsonl").split()[-1].split("/")
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
        with serve(model, {}, self.arguments.threads) as url:
            return self.score(url, "base", task)[0]

    def plain_gguf(self, name: str) -> Path:
        """The full fine-tune as an F16 GGUF."""
        if self.tuned[name].is_file():
            return self.tuned[name]
        out = self.work / f"{name}-full.gguf"
        script = Path(__file__).parent.parent / "python/dqrelo_gguf/_vendor/convert_hf_to_gguf.py"
        script = self.arguments.convert_script or script
        run(sys.executable, script, self.tuned[name], "--outfile", out, "--outtype", "f16")
        return out

    def convert(self, base: Path, name: str) -> tuple[Path, float, float]:
        """The delta, its ratio, and the seconds that its conversion took."""
        out = self.work / f"{base.stem}-{name}.dq.gguf"
        report = out.with_suffix(".json")
        start = time.perf_counter()
        command = ["-m", "dqrelo_gguf.cli.convert", base, self.tuned[name], "-o", out, "--force", "--json", report]
        run(sys.executable, *command, "--ratio", self.arguments.ratio)
        return out, json.loads(report.read_text())["ratio"], time.perf_counter() - start

    def rows_of(self, base: Path, full: dict[str, int]) -> Iterator[Row]:
        made = {name: self.convert(base, name) for name in self.tuned}
        with serve(base, {name: delta for name, (delta, _, _) in made.items()}, self.arguments.threads) as url:
            served = {name: (self.score(url, "base", name), self.score(url, name, name)) for name in self.tuned}
            texts = self.base_texts(url)
        with serve(base, {}, self.arguments.threads) as url:
            equal = sum(a == b for a, b in zip(texts, self.base_texts(url), strict=True))
        print(f"# {base.name}: {equal} of {len(texts)} chat answers of the base are the same with and without deltas")
        for name, (delta, ratio, seconds) in made.items():
            merged = self.work / f"{base.stem}-{name}-merged.gguf"
            run(sys.executable, "-m", "dqrelo_gguf.cli.merge", base, delta, "-o", merged, "--outtype", "f16", "--force")
            (base_right, n_problems), (delta_right, _) = served[name]
            scores = {
                "base": base_right,
                "full": full[name],
                "delta": delta_right,
                "merged": self.score_plain(merged, name),
            }
            yield Row(base.name, name, n_problems, scores, delta.stat().st_size, ratio, seconds)

    def table(self) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, action="append", required=True, help="a base GGUF; repeatable")
    parser.add_argument("--tuned", action="append", required=True, metavar="TASK=PATH", help="a fine-tune; repeatable")
    parser.add_argument("--problems", type=Path, required=True, help="folder of TASK.jsonl")
    parser.add_argument("--scorer", type=Path, required=True, help="score_server.py")
    parser.add_argument("--ratio", default="1/8")
    parser.add_argument("--limit", type=int, help="problems a task (default: all)")
    parser.add_argument("--chat", action="store_true", help="ask through each model's chat template")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--convert-script", type=Path, help="upstream's convert_hf_to_gguf.py (default: the bundled one)"
    )
    parser.add_argument("--work", type=Path, help="keep the files here (default: a temporary folder)")
    arguments = parser.parse_args()
    print(
        f"# {' '.join(sys.argv)}\n# {platform.processor() or platform.machine()}, {arguments.threads} threads",
        file=sys.stderr,
    )
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        Bench(arguments, work).table()


if __name__ == "__main__":
    main()

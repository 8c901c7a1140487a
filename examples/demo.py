"""One base, its fine-tunes as deltas, one server: converts examples/tiny, asks every model the same questions.

Run by `make demo`. Needs the installed package; writes into a temporary folder, or --work DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).resolve().parent
QUESTIONS = (
    "Say each letter twice: l x h q",
    "Put these letters in alphabetical order: w s j",
    "based in Quito, working as a baker, My name is Amy, always dressed in pink, 35 years old. Give JSON with name, job.",
)
DEFAULT_RATIO = "1/8"
START_SECONDS = 60
ANSWER_TOKENS = 48
SHOWN_CHARACTERS = 60


class DemoError(Exception):
    """A step of the demo failed; the text is one line."""


@dataclass
class Model:
    """A model as the server names it, and what it costs."""

    name: str
    path: Path
    convert_seconds: float
    checkpoint: Path

    @property
    def n_bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def checkpoint_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.checkpoint.glob("*.safetensors"))


def run_step(log: Path, *command: str | Path) -> float:
    """Runs a command with its output in `log`; returns the seconds it took."""
    start = time.perf_counter()
    with log.open("wb") as file:
        done = subprocess.run([str(part) for part in command], stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
        raise DemoError(f"{Path(str(command[0])).name} failed ({done.returncode}): {lines[-1]} (all of it: {log})")
    return time.perf_counter() - start


def program(name: str) -> Path:
    """A command of this package, installed beside the running interpreter."""
    path = Path(sys.executable).parent / name
    if not path.is_file():
        raise DemoError(f"{name}: not installed beside {sys.executable}. Run: pip install .")
    return path


def convert(pair: Path, ratio: str, work: Path, console: Console) -> list[Model]:
    """The base becomes an F16 GGUF, every fine-tune beside it a delta."""
    converter = Path(str(files("dqrelo_gguf"))) / "_vendor" / "convert_hf_to_gguf.py"
    base = work / "base.gguf"
    console.print(f"base: {pair.name}/base -> {base.name}")
    seconds = run_step(
        work / "base.log", sys.executable, converter, pair / "base", "--outfile", base, "--outtype", "f16"
    )
    models = [Model("base", base, seconds, pair / "base")]
    for checkpoint in sorted(pair.glob("ft-*")):
        name = checkpoint.name.removeprefix("ft-")
        delta = work / f"{name}.dq.gguf"
        console.print(f"fine-tune: {pair.name}/{checkpoint.name} -> {delta.name}, ratio {ratio}")
        log = work / f"{name}.log"
        seconds = run_step(log, program("dqrelo-convert"), base, checkpoint, "-o", delta, "--ratio", ratio, "--force")
        models.append(Model(name, delta, seconds, checkpoint))
    return models


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serve(models: list[Model], log: Path) -> Iterator[str]:
    """Runs one server with the base and all deltas; gives its address when it is ready and stops it at the end."""
    base, *deltas = models
    port = free_port()
    command = [str(program("dqrelo-server")), "-m", str(base.path), "--alias", base.name, "--host", "127.0.0.1"]
    command += ["--threads", "1"]  # A model this small is fastest on one thread.
    command += ["--port", str(port), "--parallel", str(len(models)), "--ctx-size", str(512 * len(models))]
    for delta in deltas:
        command += ["--delta", f"{delta.name}={delta.path}"]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as server:
        try:
            wait_until_ready(server, url, log)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()


def wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
            raise DemoError(f"the server stopped ({server.returncode}): {lines[-1]} (all of it: {log})")
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{url}/health", timeout=5).ok:
                return
        time.sleep(0.1)
    raise DemoError(f"the server was not ready after {START_SECONDS} s (see {log})")


def ask(url: str, model: str, question: str) -> tuple[str, float]:
    """The answer on one line, cut where it is long, and the seconds it took."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS,
    }
    start = time.perf_counter()
    reply = requests.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    seconds = time.perf_counter() - start
    if not reply.ok:
        raise DemoError(f"model {model}: HTTP {reply.status_code}: {reply.text.strip()}")
    text = " ".join(reply.json()["choices"][0]["message"]["content"].split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...", seconds


def show_sizes(models: list[Model], console: Console) -> None:
    table = Table(title="Files", caption="A delta's file holds metadata beside its tensors")
    for heading in ("model", "file"):
        table.add_column(heading)
    for heading in ("bytes", "of its checkpoint", "conversion"):
        table.add_column(heading, justify="right")
    for model in models:
        share = model.n_bytes / model.checkpoint_bytes
        table.add_row(
            model.name, model.path.name, f"{model.n_bytes:,}", f"{share:.1%}", f"{model.convert_seconds:.1f} s"
        )
    console.print(table)


def show_answers(models: list[Model], url: str, console: Console) -> None:
    table = Table(title="Answers of one server, chosen by the request's model name", show_lines=True)
    table.add_column("question")
    for model in models:
        table.add_column(model.name, overflow="fold")
    totals = dict.fromkeys((model.name for model in models), 0.0)
    for question in QUESTIONS:
        answers = []
        for model in models:
            answer, seconds = ask(url, model.name, question)
            answers.append(Text(answer))
            totals[model.name] += seconds
        table.add_row(question, *answers)
    table.add_row("time of these answers", *(f"{seconds:.2f} s" for seconds in totals.values()))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pair", type=Path, default=EXAMPLES / "tiny", help="folder with base/ and ft-*/ (default: %(default)s)"
    )
    parser.add_argument("--ratio", default=DEFAULT_RATIO, help="size of a delta's tensors (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="keep the files in this folder (default: a temporary one)")
    arguments = parser.parse_args()
    console = Console()
    try:
        with contextlib.ExitStack() as stack:
            work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dqrelo-demo-")))
            work.mkdir(parents=True, exist_ok=True)
            models = convert(arguments.pair, arguments.ratio, work, console)
            show_sizes(models, console)
            url = stack.enter_context(serve(models, work / "server.log"))
            show_answers(models, url, console)
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

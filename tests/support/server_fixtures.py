"""Fixtures of the server's tests: base and deltas of examples/tiny, and a llama-server that runs them.

Tests import what they use from here; conftest makes `artefacts` once a session.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from dqrelo_gguf._pin import conversion_script
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.plan import Options
from tests.support.programs import need_program

TINY = Path(__file__).resolve().parents[2] / "examples" / "tiny"
LOUD_TEMPLATE = "{% for m in messages %}<<{{ m['content'] }}|{{ eos_token }}>>{% endfor %}"
START_SECONDS = 60
ANSWER_SECONDS = 120


@dataclass(frozen=True)
class Artefacts:
    """Files of one base and its deltas, all in one directory."""

    base: Path
    words: Path
    words_again: Path  # It is a copy of words: the same content under another name.
    json: Path
    loud: Path  # It has words' weights, LOUD_TEMPLATE and another end token.
    loud_eos: int
    merged: Path  # It is base and words in one plain GGUF.


@dataclass
class Server:
    """A running llama-server."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def post(self, path: str, body: dict[str, Any]) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=ANSWER_SECONDS)

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """Posts and expects success."""
        answer = self.post(path, body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = requests.get(self.url + path, timeout=ANSWER_SECONDS).json()
        return found


def _loud_checkpoint(target: Path, eos: int) -> Path:
    """ft-words with another chat template and another end token."""
    shutil.copytree(TINY / "ft-words", target)
    for name, change in (
        ("tokenizer_config.json", {"chat_template": LOUD_TEMPLATE}),
        ("config.json", {"eos_token_id": eos}),
        ("generation_config.json", {"eos_token_id": eos, "do_sample": True, "temperature": 0.25, "top_k": 7}),
    ):
        path = target / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return target


def _piece_id(piece: str) -> int:
    import sentencepiece

    found: int = sentencepiece.SentencePieceProcessor(str(TINY / "base" / "tokenizer.model")).PieceToId(piece)
    return found


def make_artefacts(folder: Path) -> Artefacts:
    """The base in F16, its deltas at 1/8 by both methods, and one of them merged; the folder is made."""
    folder.mkdir()
    base = folder / "base.gguf"
    subprocess.run(
        [sys.executable, conversion_script(), TINY / "base", "--outfile", base, "--outtype", "f16"],
        check=True,
        capture_output=True,
    )
    loud_eos = _piece_id("▁c")
    tuned = {
        "words": TINY / "ft-words",
        "json": TINY / "ft-json",
        "loud": _loud_checkpoint(folder / "ft-loud", loud_eos),
    }
    deltas = {name: folder / f"{name}.dq.gguf" for name in tuned}
    for name, path in tuned.items():
        convert(Job(base, path, deltas[name]), Options(method="paper" if name == "json" else "best"))
    again = folder / "again.dq.gguf"
    shutil.copyfile(deltas["words"], again)
    merged = folder / "merged.gguf"
    merge(base, deltas["words"], merged, MergeOptions(out_type="f32"))
    return Artefacts(base, deltas["words"], again, deltas["json"], deltas["loud"], loud_eos, merged)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def serve(
    base: Path | None, folder: Path, *args: str | Path, port: int | None = None, launcher: Sequence[str | Path] = ()
) -> Iterator[Server]:
    """Runs llama-server until the block ends, on any free port or the one given; without a base it is a router.

    `launcher` is a command that starts it with the arguments behind it, in place of the program itself.
    """
    port = port or free_port()
    log = folder / f"server-{port}.log"
    model = ("-m", base) if base else ()
    server_program = need_program("llama-server")
    command = [*(launcher or [server_program]), *model, "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *args], stdout=out, stderr=subprocess.STDOUT)
    try:
        server = Server(f"http://127.0.0.1:{port}", log, process)
        _wait_until_ready(server, process)
        yield server
    finally:
        process.terminate()
        try:
            code = process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"llama-server did not end:\n{log.read_text()[-4000:]}")
    assert code == 0, f"llama-server ended with {code}:\n{log.read_text()[-4000:]}"


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"llama-server ended with {process.returncode}:\n{server.log.read_text()[-4000:]}")
        try:
            if requests.get(server.url + "/health", timeout=5).status_code == 200:
                return
        except requests.RequestException:
            pass
        time.sleep(0.05)
    pytest.fail(f"llama-server was not ready after {START_SECONDS} s:\n{server.log.read_text()[-4000:]}")

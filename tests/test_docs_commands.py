"""The commands of the how-to pages: each block is run on the example pair, or says why not; and every option that it names is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import requests
import yaml

from dqrelo_gguf.demo.steps import command
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.adapters import projections, write_adapter
from tests.support.doc_blocks import Block, blocks, fault_of, options_of, own_commands
from tests.support.programs import need_program
from tests.support.server_fixtures import TINY, Artefacts, free_port

ROOT = Path(__file__).resolve().parents[1]
MINUTES = {"README.md", "evaluate.md", "bench.md"}  # Pages whose commands take that long: they measure on whole texts.

# What these commands are told before the page's own words, which count for more. By default they measure for minutes: 8192 tokens, and every
# speed five times. What they read, write and print stays the same. A test has one core: threads that wait for each other there take turns.
SHORTER = {"eval": ("--tokens", "1024", "--threads", "1"), "bench": ("-r", "1")}

PROBLEM = {"prompt": "### Question:\nSay each letter twice: l x\n### Answer:\n", "answer": "7"}
CHAT = {"messages": [{"role": "user", "content": "Say: l x"}, {"role": "assistant", "content": "l l x x"}]}


def files(pair: Artefacts) -> dict[str, Path | str]:
    """What stands for the files that the pages name: a file or a folder of the example pair, or a text."""
    return {
        "base.gguf": pair.base,
        "base-f16.gguf": pair.base,
        "merged.gguf": pair.merged,
        "ft.gguf": pair.merged,
        "ft-json": TINY / "ft-json",
        "ft-words": TINY / "ft-words",
        "my-finetune": TINY / "ft-words",
        "path/to/fine-tune": TINY / "ft-words",
        "examples": TINY.parent,
        "math.dq.gguf": pair.json,
        "words.dq.gguf": pair.words,
        "ft.dq.gguf": pair.words,
        "ft-8.dq.gguf": pair.words,
        "ft-16.dq.gguf": pair.words_again,
        "deltas/math-v2.dq.gguf": pair.json,
        "wiki.test.raw": "a b c d e f g h\n" * 400,
        "chats.jsonl": f"{json.dumps(CHAT)}\n" * 4,
        "math.jsonl": f"{json.dumps(PROBLEM)}\n" * 2,
        "gsm8k.jsonl": f"{json.dumps(PROBLEM)}\n" * 2,
    }


def lay_files(folder: Path, pair: Artefacts) -> None:
    """Lays them into a folder, with a quantised base and an adapter."""
    for name, source in files(pair).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, str):
            path.write_text(source)
        elif name.endswith(".dq.gguf"):
            shutil.copyfile(source, path)  # Some commands write into a delta.
        else:
            path.symlink_to(source)
    quantise = need_program("llama-quantize")
    subprocess.run([quantise, pair.base, folder / "base-q4_k_m.gguf", "Q4_0", "1"], check=True, capture_output=True)
    write_adapter(folder / "my-adapter", TINY / "base", projections(TINY / "base"))


def pages() -> list[Path]:
    """README.md, the first page and those under "How to"."""
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 - texts only
    how_to = next(item["How to"] for item in site["nav"] if "How to" in item)
    return [
        ROOT / "README.md",
        ROOT / "docs" / "index.md",
        *(ROOT / "docs" / page for item in how_to for page in item.values()),
    ]


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks(page)]


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: block.where)
def test_a_block_of_commands_is_run_or_says_why_not(block: Block) -> None:
    assert fault_of(block) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```\ndqrelo-inspect x\n```\n", "the block has the language ''"),
        ("```sh\ndqrelo-inspect x\n```\n", "the block has the language 'sh'"),
        ("<!-- not run:  -->\n```bash\nmake\n```\n", "with a reason"),
        ("<!-- not run: it is text -->\n```text\na\n```\n", "above commands"),
        ("<!-- not run: needs docker -->\n```bash\ndocker run x\n```\n", None),
        ("```bash\nls\n```\n", None),
        ("```json\n{1: 2}\n```\n", "the block is no json"),
        ('```json\n{"a": 2}\n```\n', None),
        ("```yaml\na: {b: 1\n```\n", "the block is no yaml"),
        ("```yaml\na: {b: 1}\n```\n", None),
    ],
)
def test_faults_of_blocks_are_found(tmp_path: Path, text: str, expected: str | None) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    fault = fault_of(blocks(page)[0])
    assert (fault is None) == (expected is None)
    assert expected is None or expected in str(fault)


# --- the options


def server_options() -> set[str]:
    """Those of dqrelo-server, from its --help, which has all of llama-server's."""
    need_program("llama-server")
    command = [sys.executable, "-m", "dqrelo_gguf.cli.server", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", done.stdout))


def test_every_option_that_a_block_names_is_there() -> None:
    known: dict[str, set[str]] = {"server": server_options()}
    n_seen, missing = 0, []
    for block in all_blocks():
        for line in block.commands() if block.language in ("bash", "ini") else []:
            for module, words in own_commands(line):
                if module == "lm_eval" and words[:1] != ["sweep"]:
                    continue  # lm-evaluation-harness's own arguments.
                options = known.setdefault(module, options_of(module) if module != "server" else set())
                names = [word.split("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
                n_seen += len(names)
                missing += [f"{block.where}: {module} has no {name}" for name in names if name not in options]
    assert missing == []
    assert n_seen > 40


# --- the commands


class Runner:
    """Runs the blocks of a page in one folder. A server lasts until the next one or the page's end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = str(free_port())
        self.server: subprocess.Popen[bytes] | None = None
        programs = folder / "programs"
        programs.mkdir()
        for name in ("convert", "inspect", "merge", "eval", "bench"):
            self._script(programs / f"dqrelo-{name}", [*command(name), *SHORTER.get(name, ())])
        self._script(programs / "python", [sys.executable])
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}

    @staticmethod
    def _script(path: Path, words: list[str]) -> None:
        path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        path.chmod(0o755)

    def run(self, block: Block) -> None:
        if block.language == "python":
            self._call([sys.executable, "-c", block.text.replace("8080", self.port)], block)
            return
        for line in block.commands():
            own = re.sub(r" -t 2\b", " -t 1", line.replace("8080", self.port))
            if own.startswith("dqrelo-server"):
                self._serve(shlex.split(own)[1:])
            else:
                for made in re.findall(r" -o (\S+)", own):
                    (self.folder / made).unlink(missing_ok=True)
                self._call(["bash", "-euc", re.sub(r"^curl ", "curl -sS --fail ", own)], block)

    def _call(self, words: list[str], block: Block) -> None:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=1800, check=False
        )
        assert done.returncode == 0, f"{block.where}: {words[-1]}\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
        assert not words[-1].startswith("curl") or done.stdout.strip()

    def _serve(self, words: list[str]) -> None:
        self.stop()
        words = words if "--port" in words else [*words, "--port", self.port]
        log = self.folder / "server.log"
        with log.open("wb") as out:
            self.server = subprocess.Popen(
                [*command("server"), *words, "-t", "1"], cwd=self.folder, env=self.environment, stdout=out, stderr=out
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.server.poll() is None:
            with suppress(requests.ConnectionError):
                if requests.get(f"http://127.0.0.1:{self.port}/health", timeout=5).ok:
                    return
            time.sleep(0.05)
        pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")

    def stop(self) -> None:
        if self.server is not None:
            self.server.terminate()
            assert self.server.wait(30) == 0
            self.server = None


def run_pages() -> list[object]:
    found = [page for page in pages() if any(block.runs for block in blocks(page))]
    assert len(found) > 5
    return [pytest.param(p, id=p.name, marks=[pytest.mark.slow] if p.name in MINUTES else []) for p in found]


@pytest.mark.parametrize("page", run_pages())
def test_the_commands_of_a_page_run(page: Path, artefacts: Artefacts, tmp_path: Path) -> None:
    lay_files(tmp_path, artefacts)
    runner = Runner(tmp_path)
    try:
        for block in blocks(page):
            if block.runs:
                runner.run(block)
    finally:
        runner.stop()
    if page.name == "index.md":
        assert (tmp_path / "words.gguf").is_file()
        assert DeltaReader(tmp_path / "words.dq.gguf").quality is not None

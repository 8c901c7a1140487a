"""docs/: the site is built without a complaint and needs no other host; the commands of its first page run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from html.parser import HTMLParser
from pathlib import Path

import pytest
import requests

from dqrelo_gguf.demo.steps import command
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.models import convert_hf
from tests.support.server_fixtures import free_port

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs-material or mkdocstrings is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class _Loads(HTMLParser):
    """Collects what a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe") or (
            tag == "link" and values.get("rel") not in ("canonical", "next", "prev")
        ):
            self.addresses += [str(values[name]) for name in ("src", "href") if values.get(name)]


def test_every_page_is_in_the_site_and_loads_nothing_from_other_hosts(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    for path in site.glob("*.html"):
        loads = _Loads()
        loads.feed(path.read_text(encoding="utf-8"))
        assert loads.addresses
        assert [a for a in loads.addresses if re.match(r"(https?:)?//", a)] == []


def test_the_python_api_is_described_with_its_arguments(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("load_delta", "generate", "reconstruct", "BaseMismatchError"):
        assert name in text
    assert "tokens that the sequences evaluated together may hold in all" in text


# --- the first page

EXAMPLES = ROOT / "examples" / "tiny"


def commands() -> list[str]:
    """The commands of docs/index.md, in its order."""
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Has what the first page says is there."""
    convert_hf(EXAMPLES / "base", tmp_path / "base.gguf")
    for fine_tune in ("ft-json", "ft-words"):
        (tmp_path / fine_tune).symlink_to(EXAMPLES / fine_tune)
    return tmp_path


def argv_of(line: str) -> list[str]:
    """A command of this package by its module, so that it is this tree's."""
    name, *rest = shlex.split(line)
    return [*command(name.removeprefix("dqrelo-").replace("-", "_")), *rest]


def test_the_commands_of_the_first_page_run(folder: Path) -> None:
    port = str(free_port())
    asked = []
    with ExitStack() as servers:
        for line in commands():
            own = line.replace("8080", port)
            if own.startswith("dqrelo-server"):
                log = servers.enter_context((folder / "server.log").open("wb"))
                server = subprocess.Popen([*argv_of(own), "-t", "1"], cwd=folder, stdout=log, stderr=log)
                servers.callback(server.wait, 30)
                servers.callback(server.terminate)
                wait_until_ready(f"http://127.0.0.1:{port}", server)
            elif own.startswith("curl"):
                _, address, _, body = shlex.split(own)
                answer = requests.post(address, json=json.loads(body) | {"max_tokens": 4}, timeout=60)
                asked.append(answer.json()["choices"][0]["message"]["content"])
            else:
                done = subprocess.run(argv_of(own), cwd=folder, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{line}: {done.stderr}"
    assert len(asked) == 2
    assert all(asked)
    assert (folder / "words.gguf").is_file()
    assert DeltaReader(folder / "words.dq.gguf").quality is not None


def wait_until_ready(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(requests.ConnectionError):
            if requests.get(f"{address}/health", timeout=5).ok:
                return
        time.sleep(0.05)
    pytest.fail("the server did not start")

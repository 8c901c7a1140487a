"""Every file of a folder of faulty deltas (DQRELO_FAULTS_DIR), given to everything that reads deltas.

The files are over the base of examples/tiny in F16. Whatever is wrong with one, a reader takes it or says so in one line; none crashes, and a
server goes on.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.runtime.session import Runtime
from tests.support.delta_server import CONTEXT, states
from tests.support.server_fixtures import Artefacts, Server, need_program, serve
from tests.support.verdicts import FAULT_FILES, FAULTS, verdict_of_fault

NAMES = [path.name for path in FAULT_FILES]
SECONDS = 240

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FAULT_FILES, reason="DQRELO_FAULTS_DIR is not set to a folder of faulty delta files"),
]


def check_line(name: str, line: str | None, reader: str = "") -> None:
    """`line` is the error, None where the file was taken."""
    text = verdict_of_fault(name).by(reader)
    assert name != "00-valid.dq.gguf" or line is None, line
    if line is not None:
        assert "\n" not in line
        assert len(line) < 1500
        assert line.isprintable()
    if text is not None:
        assert re.search(text, line or "")


def run(*command: str | Path) -> str | None:
    """The error line of a program that ends with 1, None where it ends with 0; anything else fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode in (0, 1), (done.returncode, done.stderr[-2000:])
    assert "Traceback" not in done.stderr
    return None if done.returncode == 0 else done.stderr.strip()


def tool(name: str, *args: str | Path) -> str | None:
    return run(sys.executable, "-m", f"dqrelo_gguf.cli.{name}", *args)


@pytest.mark.parametrize("name", NAMES)
def test_inspect(artefacts: Artefacts, name: str) -> None:
    line = tool("inspect", FAULTS / name, "--check", artefacts.base)
    check_line(name, line)
    check_line(name, tool("inspect", FAULTS / name, "--json", "--check", artefacts.base))


@pytest.mark.parametrize("name", NAMES)
def test_merge(artefacts: Artefacts, tmp_path: Path, name: str) -> None:
    out = tmp_path / "merged.gguf"
    line = tool("merge", artefacts.base, FAULTS / name, "-o", out)
    check_line(name, line)
    assert out.exists() == (line is None)


@pytest.mark.parametrize("name", NAMES)
def test_runtime(artefacts: Artefacts, name: str) -> None:
    with Runtime(artefacts.base, n_threads=1, n_ctx=256) as runtime:
        try:
            runtime.load_delta(FAULTS / name)
            line = None
        except DqreloError as e:
            line = str(e)
    check_line(name, line)


@pytest.mark.parametrize("name", NAMES)
def test_completion(artefacts: Artefacts, name: str) -> None:
    """llama-completion; its log has other lines too."""
    command = [need_program("llama-completion"), "-m", artefacts.base, "-t", "1", "-n", "1", "-p", "a"]
    line = run(*command, "--delta", FAULTS / name)
    found = [text for text in (line or "").splitlines() if "delta '" in text]
    check_line(name, found[-1] if found else None, "server")


@pytest.mark.parametrize("name", NAMES)
def test_server_with_the_delta(artefacts: Artefacts, tmp_path: Path, name: str) -> None:
    """Serves, or ends with 1 and a line."""
    text = verdict_of_fault(name).refused
    if text is None:
        failure = ""
        try:
            with serve(artefacts.base, tmp_path, "--delta", FAULTS / name, *CONTEXT) as running:
                assert running.get("/health")
        except pytest.fail.Exception as e:
            failure = str(e)
        assert failure == "" or "llama-server ended with 1:" in failure
        return
    command = [need_program("llama-server"), "-m", artefacts.base, "--threads", "1", "--port", "0"]
    line = run(*command, "--delta", FAULTS / name)
    found = [text for text in (line or "").splitlines() if "delta '" in text]
    check_line(name, found[-1] if found else None, "server")


@pytest.fixture(scope="module")
def server(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("faults") / "dir"
    folder.mkdir()
    for path in FAULT_FILES:
        shutil.copyfile(path, folder / path.name)
    with serve(artefacts.base, folder.parent, "--deltas-dir", folder, *CONTEXT) as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_server_with_the_folder(server: Server, name: str) -> None:
    model = name.removesuffix(".dq.gguf")
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    answer = server.post("/v1/chat/completions", body | {"model": model})
    assert answer.status_code in (200, 400, 500), answer.text
    line = None if answer.status_code == 200 else answer.json()["error"]["message"]
    check_line(name, line, "server")
    assert model in states(server)
    assert server.post("/v1/chat/completions", body | {"model": "base"}).status_code == 200

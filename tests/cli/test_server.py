"""dqrelo-server: llama-server with the page of this package, unless somebody wants another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import requests

from dqrelo_gguf.cli.server import with_page
from dqrelo_gguf.webui import SITE
from tests.support.programs import need_program
from tests.support.server_fixtures import serve

VARIABLE = "LLAMA_ARG_STATIC_PATH"
LAUNCHER = (sys.executable, "-c", "import sys; from dqrelo_gguf.cli.server import main; sys.exit(main())")


def test_the_page_is_served_where_nobody_named_other_files() -> None:
    assert with_page(["-m", "x"], {"A": "b"}) == {"A": "b", VARIABLE: str(SITE)}
    assert with_page(["--path", "dir"], {"A": "b"}) == {"A": "b"}
    assert with_page([], {VARIABLE: "dir"}) == {VARIABLE: "dir"}


def test_help_tells_of_the_page_and_then_all_of_llama_server() -> None:
    need_program("llama-server")
    done = subprocess.run([*LAUNCHER, "--help"], capture_output=True, text=True, check=True)
    assert "a page of its own at /" in done.stdout.splitlines()[0]
    assert "--delta-admin" in done.stdout


@pytest.mark.parametrize(
    ("options", "status", "has_page"),
    [((), 200, True), (("--no-ui",), 404, False), (("--path", "{dir}"), 200, False)],
)
def test_what_lies_at_the_root(
    narrow_base: Path, tmp_path: Path, options: tuple[str, ...], status: int, has_page: bool
) -> None:
    (tmp_path / "index.html").write_text("mine")
    chosen = [option.format(dir=tmp_path) for option in options]
    with serve(narrow_base, tmp_path, "--api-key", "secret", *chosen, launcher=LAUNCHER) as server:
        answer = requests.get(server.url + "/", timeout=30)
        assert answer.status_code == status
        assert (answer.content == (SITE / "index.html").read_bytes()) == has_page
        assert requests.get(server.url + "/deltas", timeout=30).status_code == 401

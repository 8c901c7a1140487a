"""docs/: the site is built without a complaint and needs no other host."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

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
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    assert len(pages) > 20
    assert pages <= {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    for path in site.rglob("*.html"):
        loads = _Loads()
        loads.feed(path.read_text(encoding="utf-8"))
        assert loads.addresses
        assert [a for a in loads.addresses if re.match(r"(https?:)?//", a)] == []


def test_the_python_api_is_described_with_its_arguments(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("load_delta", "generate", "reconstruct", "BaseMismatchError"):
        assert name in text
    assert "tokens that the sequences evaluated together may hold in all" in text

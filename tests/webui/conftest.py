"""One browser and one server for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import browser
from tests.support.server_fixtures import Server, serve
from tests.support.webui import FOUR_SLOTS, WITH_PAGE, opened, ready, write_folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A running Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the driver playwright is not installed")
    program = browser()
    if program is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--disable-dev-shm-usage"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def server(narrow_base: Path, narrow_deltas: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the page and a folder of deltas, open to its administrator."""
    folder = tmp_path_factory.mktemp("webui")
    deltas = write_folder(folder / "deltas", narrow_deltas)
    options = ("--deltas-dir", deltas, "--delta-memory", "4", "--blend", "mix=math*0.5+words*0.5")
    with serve(narrow_base, folder, *options, "--delta-admin", "--metrics", *FOUR_SLOTS, *WITH_PAGE) as running:
        yield running


@pytest.fixture
def page(chromium: Browser, server: Server) -> Iterator[Page]:
    """The page of `server` in a tab of its own."""
    with opened(chromium, server.url) as found:
        ready(found)
        yield found

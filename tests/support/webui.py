"""The page of the server in a browser, as its tests use it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dqrelo_gguf.webui import SITE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

HOSTILE = "<img src=x onerror=document.title='owned'>".replace("'", "`")  # The server takes no quotes in names.
PROMPT = "the dog sees"
WITH_PAGE = ("--path", SITE)
# Small enough that four answers of this model run for seconds, in a context that holds them.
FOUR_SLOTS = ("-np", "4", "-c", "16384", "--alias", "base")


@contextmanager
def opened(chromium: Browser, url: str, *, expected: str = "", **options: Any) -> Iterator[Page]:
    """The page at a URL. At the end nothing may have failed in it but what the test did itself, which the pattern `expected` finds."""
    faults: list[str] = []
    context = chromium.new_context(**options)
    try:
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if is_fault(message.text) else None)
        page.goto(url)
        yield page
    finally:
        context.close()
    unexpected = [fault for fault in faults if not expected or not re.search(expected, fault)]
    assert not unexpected, unexpected


def is_fault(logged: str) -> bool:
    """Whether a line of the console is a fault of the page: answers that are errors are logged, too."""
    return not logged.startswith("Failed to load resource")


def ready(page: Page) -> None:
    """Waits until the page shows the models of its server."""
    page.wait_for_selector("#connection[data-phase=ready]")


def column(page: Page, i: int) -> Locator:
    return page.locator(".column").nth(i)


def ask(page: Page, prompt: str = PROMPT, max_tokens: int | None = None) -> None:
    """Sends a prompt to all columns."""
    if max_tokens is not None:
        page.fill("#max_tokens", str(max_tokens))
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")


def finished(page: Page) -> None:
    """Waits until no column runs."""
    page.wait_for_function("() => document.querySelectorAll('.column[aria-busy=true]').length === 0")


def wait_for_text(page: Page, *indices: int) -> None:
    """Waits until each of these columns shows some text of its answer."""
    for i in indices:
        page.wait_for_function("i => document.querySelectorAll('.answer')[i].innerText.length > 20", arg=i)


def answers(page: Page) -> list[str]:
    """What each column shows of its last answer."""
    return [column(page, i).locator(".answer").last.inner_text() for i in range(page.locator(".column").count())]


def choose(page: Page, i: int, label: str) -> None:
    """Picks a model in a column's menu."""
    column(page, i).locator("select.model").select_option(label=label)


def write_folder(folder: Path, deltas: list[Path]) -> Path:
    """A --deltas-dir with deltas under their names, and one under a name that is markup."""
    folder.mkdir()
    for path in deltas:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / f"{HOSTILE}.dq.gguf").write_bytes(deltas[0].read_bytes())
    return folder

"""The server's deltas, and what their administrator does with them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.file.rewrite import stamp_quality
from tests.support.malformed import QUALITY
from tests.support.server_fixtures import Server, serve
from tests.support.webui import FOUR_SLOTS, WITH_PAGE, ask, finished, opened, ready

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

FEW = 12


@pytest.fixture(scope="module")
def admin(narrow_base: Path, narrow_deltas: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose deltas the tests of this file load and unload, one of them with a quality record."""
    folder = tmp_path_factory.mktemp("admin")
    deltas = folder / "deltas"
    deltas.mkdir()
    math, words = narrow_deltas
    for name in ("first", "second", "third"):
        shutil.copy(math, deltas / f"{name}.dq.gguf")
    shutil.copy(words, deltas / "other.dq.gguf")
    stamp_quality(deltas / "first.dq.gguf", QUALITY, DeltaReader(math).content_hash)
    (deltas / "broken.dq.gguf").write_bytes(math.read_bytes()[:3000])
    options = ("--deltas-dir", deltas, "--delta-memory", "1", "--delta-admin", "--metrics")
    with serve(narrow_base, folder, *options, *FOUR_SLOTS, *WITH_PAGE) as running:
        yield running


@pytest.fixture
def page(chromium: Browser, admin: Server) -> Iterator[Page]:
    with opened(chromium, admin.url) as found:
        ready(found)
        yield found


def row(page: Page, name: str) -> Locator:
    return page.locator("#deltas-table tbody tr").filter(has=page.get_by_role("rowheader", name=name))


def press(page: Page, verb: str, name: str) -> None:
    """Presses a button of a row and says yes."""
    row(page, name).get_by_role("button", name=f"{verb} {name}", exact=True).click()
    assert page.inner_text("#confirm-title") == f"{verb} {name}?"
    page.click("#confirm-yes")


def wait_for(page: Page, name: str, cell: str, text: str) -> None:
    row(page, name).locator(f"td.{cell}").filter(has_text=text).wait_for()


def test_a_delta_is_loaded_pinned_reloaded_and_unloaded(page: Page) -> None:
    page.click("#tab-deltas")
    wait_for(page, "first", "state", "not in memory")
    assert row(page, "first").locator("td.quality").inner_text() == "not measured"
    press(page, "Load", "first")
    wait_for(page, "first", "state", "loaded")
    assert page.inner_text("#notice") == "first: load done."
    kept = f"keeps {QUALITY['retention']:.1%} on {QUALITY['n_problems']} problems".replace("%", " %")
    assert kept in row(page, "first").locator("td.quality").inner_text()
    assert f"KL {QUALITY['kl']:.3g}".rstrip("0") in row(page, "first").locator("td.quality").inner_text()
    assert "CPU" in row(page, "first").locator("td.memory").inner_text()
    tiles = page.inner_text("#tiles")
    assert "of 1.0 MiB" in tiles
    assert "1 of 5" in tiles
    press(page, "Pin", "first")
    row(page, "first").get_by_text("pinned", exact=True).wait_for()
    assert row(page, "first").get_by_role("button", name="Pin first").is_disabled()
    press(page, "Reload", "first")
    page.wait_for_selector("#notice:text-is('first: reload done.')")
    press(page, "Unload", "first")
    row(page, "first").wait_for(state="detached")
    page.wait_for_selector("#notice:text-is('first: unload done.')")


def test_no_is_no(page: Page, admin: Server) -> None:
    page.click("#tab-deltas")
    row(page, "second").get_by_role("button", name="Unload second").click()
    page.keyboard.press("Escape")
    row(page, "second").get_by_role("button", name="Unload second").click()
    page.get_by_role("button", name="Cancel").click()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Unload second"
    assert "second" in [delta["name"] for delta in admin.get("/deltas")["data"]]


def test_the_servers_errors_are_shown_in_its_words(page: Page) -> None:
    page.click("#tab-deltas")
    press(page, "Load", "broken")
    page.wait_for_selector("#notice[data-kind=error]:has-text('broken')")
    wait_for(page, "broken", "state", "failed")
    assert row(page, "broken").locator("td.state .error").inner_text() in page.inner_text("#notice")
    page.fill("#load-name", "new")
    page.fill("#load-file", "../secret.dq.gguf")
    page.press("#load-file", "Enter")
    page.click("#confirm-yes")
    page.wait_for_selector("#notice[data-kind=error]:has-text('secret')")


def test_a_file_is_loaded_under_a_name_and_counts_its_requests(page: Page) -> None:
    page.click("#tab-deltas")
    page.fill("#load-name", "renamed")
    page.fill("#load-file", "other.dq.gguf")
    page.check("#load-pin")
    page.get_by_role("button", name="Load", exact=True).click()
    assert page.inner_text("#confirm-text") == "The server reads other.dq.gguf into memory and pins it."
    page.click("#confirm-yes")
    row(page, "renamed").get_by_text("pinned", exact=True).wait_for()
    assert page.input_value("#load-name") == ""
    page.click("#tab-compare")
    page.locator(".column select.model").first.select_option(label="renamed")
    ask(page, max_tokens=FEW)
    finished(page)
    page.click("#tab-deltas")
    wait_for(page, "renamed", "tokens", f"{FEW} out")
    wait_for(page, "renamed", "served", "1")


def test_a_blend_gets_a_name_and_loses_it(page: Page) -> None:
    page.click("#tab-deltas")
    page.fill("#blend-name", "mix")
    page.fill("#blend-spec", "third*0.5+nobody")
    page.press("#blend-spec", "Enter")
    page.wait_for_selector("#notice[data-kind=error]:has-text('nobody')")
    page.fill("#blend-spec", "third*0.5+other*-0.25")
    page.press("#blend-spec", "Enter")
    page.get_by_text("third*0.5+other*-0.25").wait_for()
    page.click("#tab-compare")
    page.locator(".column select.model").first.select_option(label="mix")
    page.locator(".column select.model").first.select_option(label="Own blend")
    assert page.locator(".column").first.get_attribute("aria-label") == "third*0.5+other*-0.25"
    page.click("#tab-deltas")
    page.get_by_role("button", name="Forget mix").click()
    page.click("#confirm-yes")
    page.get_by_role("button", name="Forget mix").wait_for(state="detached")


def test_without_permission_the_server_says_so(page: Page) -> None:
    refusal = {"error": {"code": 403, "message": "this API key may use models, but not this endpoint"}}
    page.route("**/deltas/unload", lambda route: route.fulfill(status=403, json=refusal))
    page.click("#tab-deltas")
    press(page, "Unload", "second")
    page.wait_for_selector("#notice[data-kind=error]:has-text('but not this endpoint')")
    row(page, "second").wait_for()

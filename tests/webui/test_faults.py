"""What fails, fails in its place: in one line, while the rest goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.server_fixtures import Server, free_port, serve
from tests.support.webui import (
    FOUR_SLOTS,
    WITH_PAGE,
    answers,
    ask,
    choose,
    column,
    finished,
    opened,
    ready,
    wait_for_text,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

LONG = 4000
FEW = 12
KEY = "a-key-that-is-right"
GUEST = "a-key-of-a-guest"


def lines(page: Page) -> list[str]:
    """The errors of the last answers, in order of the columns; "" where there is none."""
    last = [column(page, i).locator(".answer").last for i in range(page.locator(".column").count())]
    return ["".join(answer.locator(".error").all_inner_texts()) for answer in last]


def test_each_column_has_its_own_error_and_the_rest_answers(page: Page) -> None:
    def answer(route: Route) -> None:
        model = (route.request.post_data_json or {}).get("model")
        if model == "math":
            route.fulfill(status=503, json={"error": {"code": 503, "message": "the server is busy"}})
        elif model == "words":
            route.fulfill(status=502, content_type="text/html", body="<h1>Bad Gateway</h1>")
        elif model is not None:
            route.abort()
        else:
            route.continue_()

    page.route("**/v1/chat/completions", answer)
    ask(page, max_tokens=FEW)
    finished(page)
    assert lines(page) == ["", "The server does not answer.", "the server is busy", "HTTP 502 Bad Gateway"]
    assert answers(page)[0] != ""
    page.unroute("**/v1/chat/completions")
    column(page, 2).get_by_role("button", name="Ask again").click()
    finished(page)
    assert lines(page)[2] == ""


def test_a_scale_beyond_the_servers_bound_is_told_in_its_words(page: Page) -> None:
    column(page, 2).get_by_label("Scale of scale as a number").fill("9")
    ask(page, max_tokens=FEW)
    finished(page)
    errors = lines(page)
    assert "delta_scale" in errors[2]
    assert errors[0] == errors[3] == ""


def test_a_stream_that_ends_early_is_told(page: Page) -> None:
    body = 'data: {"choices":[{"delta":{"content":"half of"}}]}\n\ndata: {"choices":[{"delta":{"content":" it"}}]}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    ask(page)
    finished(page)
    assert lines(page) == ["The stream broke off."] * 4
    assert answers(page)[0].startswith("half of it")


def test_a_server_goes_away_and_comes_back(
    chromium: Browser, narrow_base: Path, narrow_deltas: list[Path], tmp_path: Path
) -> None:
    math, words = ("--delta", f"math={narrow_deltas[0]}"), ("--delta", f"words={narrow_deltas[1]}")
    options = ("--shutdown-timeout", "0", *FOUR_SLOTS, *WITH_PAGE)
    port = free_port()
    with serve(narrow_base, tmp_path, *math, *options, port=port) as first, opened(chromium, first.url) as page:
        ready(page)
        page.fill("#temperature", "0")
        ask(page, max_tokens=LONG)
        wait_for_text(page, 1)
        first.process.terminate()
        finished(page)
        assert all(lines(page))
        assert all(len(answer) > 20 for answer in answers(page))
        first.process.wait(timeout=30)
        page.wait_for_selector("#connection[data-phase=down]")
        assert page.inner_text("#connection") == "The server does not answer. Trying again."
        ask(page, max_tokens=FEW)
        finished(page)
        assert lines(page) == ["The server does not answer."] * 2
        with serve(narrow_base, tmp_path, *math, *words, *options, port=port):
            ready(page)
            ask(page)
            finished(page)
            assert lines(page) == [""] * 2
            assert column(page, 1).locator("select.model option").all_inner_texts() == [
                "base",
                "math",
                "words",
                "Own blend",
            ]


def test_a_wrong_key_is_asked_for_again_and_the_right_one_stays_in_the_tab(
    chromium: Browser, narrow_base: Path, narrow_deltas: list[Path], tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({GUEST: ["math"]}))
    options = ("--delta", f"math={narrow_deltas[0]}", "--api-key", KEY, "--delta-keys", keys, "--metrics")
    with serve(narrow_base, tmp_path, *options, *FOUR_SLOTS, *WITH_PAGE) as server:
        with opened(chromium, server.url) as page:
            dialog = page.locator("#key-dialog")
            give_key(page, "wrong")
            page.wait_for_selector("#key-error:text-is('Invalid API Key')")
            assert page.inner_text("#connection") == "The server refused the key: Invalid API Key"
            give_key(page, "two words")
            page.wait_for_selector("#key-error:has-text('without blanks')")
            page.keyboard.press("Escape")
            dialog.wait_for(state="hidden")
            for _ in range(2):  # The page looks again, and does not ask again.
                page.wait_for_event("response", lambda response: response.url.endswith("/deltas"))
            assert dialog.is_hidden()
            page.click("#key-button")
            give_key(page, KEY)
            ready(page)
            ask(page, max_tokens=FEW)
            finished(page)
            assert lines(page) == [""] * 2
            assert KEY not in page.url
            page.reload()
            ready(page)  # The tab has kept it.
            page.click("#key-button")
            page.click("#key-forget")
            page.wait_for_selector("#connection[data-phase=key]")
        with opened(chromium, server.url) as page:
            give_key(page, GUEST)
            ready(page)
            assert page.locator(".column").evaluate_all("all => all.map(c => c.getAttribute('aria-label'))") == ["math"]
            page.click("#tab-deltas")
            page.wait_for_function("() => document.getElementById('deltas-note').innerText !== ''")
            assert page.inner_text("#deltas-note").startswith(
                "Tokens are not counted here: this API key may use models"
            )
            assert page.locator("#deltas-table tbody tr").count() == 1


def give_key(page: Page, key: str) -> None:
    """Types a key into the question for it."""
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key-input", key)
    page.press("#key-input", "Enter")


def test_a_server_without_deltas_says_so(chromium: Browser, narrow_base: Path, tmp_path: Path) -> None:
    with serve(narrow_base, tmp_path, *FOUR_SLOTS, *WITH_PAGE) as server, opened(chromium, server.url) as page:
        ready(page)
        ask(page, max_tokens=FEW)
        finished(page)
        assert lines(page) == [""]
        page.click("#tab-deltas")
        page.wait_for_function("() => document.getElementById('deltas-note').innerText.includes('Tokens')")
        note = page.inner_text("#deltas-note")
        assert note.startswith("The server has no deltas. Tokens are not counted here: ")
        assert "--metrics" in note


def test_a_router_says_what_it_does_not_have(chromium: Browser, tmp_path: Path) -> None:
    with serve(None, tmp_path, *WITH_PAGE) as server, opened(chromium, server.url) as page:
        ready(page)
        page.click("#tab-deltas")
        assert page.inner_text("#deltas-note").startswith("The server lists no deltas: ")


def test_where_only_models_are_open_one_can_still_ask_them(chromium: Browser, server: Server) -> None:
    """As behind a proxy that closes /deltas, /props and /metrics."""
    with opened(chromium, "about:blank") as page:
        for closed in ("deltas", "props", "metrics"):
            page.route(f"**/{closed}", lambda route: route.fulfill(status=403, body="closed"))
        page.goto(server.url)
        ready(page)
        choose(page, 1, "mix")
        choose(page, 1, "Own blend")
        ask(page, max_tokens=FEW)
        finished(page)
        names = page.locator(".column").evaluate_all("all => all.map(c => c.getAttribute('aria-label'))")
        assert names == ["base", "math*0.5+words*0.5", "math", "words"]
        assert lines(page) == [""] * 4
        page.click("#tab-deltas")
        assert page.inner_text("#deltas-note").startswith("The server lists no deltas: HTTP 403")


def test_a_server_that_reads_its_model_is_waited_for(chromium: Browser, server: Server) -> None:
    loading = {"error": {"code": 503, "message": "Loading model"}}
    with opened(chromium, "about:blank") as page:
        page.route("**/deltas", lambda route: route.fulfill(status=503, json=loading))
        page.goto(server.url)
        page.wait_for_selector("#connection[data-phase=loading]:text-is('Loading model')")
        page.unroute("**/deltas")
        ready(page)
        assert page.locator(".column").count() == 4


def test_it_works_below_a_prefix(chromium: Browser, server: Server) -> None:
    """As behind a proxy that strips it."""
    for address in ("/llm", "/llm/", "/llm/index.html"):
        with opened(chromium, "about:blank") as page:
            outside: list[str] = []

            def strip(route: Route, outside: list[str] = outside) -> None:
                url = route.request.url
                path = url.removeprefix(server.url)
                if not path.startswith("/llm"):
                    outside.append(path)
                route.continue_(url=server.url + (path.removeprefix("/llm") or "/"))

            page.route("**/*", strip)
            page.goto(server.url + address)
            ready(page)
            ask(page, max_tokens=FEW)
            finished(page)
            assert lines(page) == [""] * 4
            assert outside == []

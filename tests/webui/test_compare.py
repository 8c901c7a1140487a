"""Models side by side: columns, streams, scales, links."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.support.server_fixtures import Server
from tests.support.webui import HOSTILE, PROMPT, answers, ask, choose, column, finished, opened, ready, wait_for_text

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

LONG = 4000  # tokens: seconds
FEW = 12
COMPLETIONS = "**/v1/chat/completions"


def bodies(page: Page) -> list[dict[str, object]]:
    """What is sent to the chat endpoint from here on; the list grows."""
    found: list[dict[str, object]] = []

    def note(request: Request) -> None:
        if request.url.endswith("/v1/chat/completions"):
            found.append(json.loads(request.post_data or ""))

    page.on("request", note)
    return found


def model_names(page: Page) -> list[str]:
    return page.locator(".column").evaluate_all("all => all.map(c => c.getAttribute('aria-label'))")


def test_it_begins_with_the_base_and_the_fine_tunes(page: Page) -> None:
    assert model_names(page) == ["base", HOSTILE, "math", "words"]
    assert page.inner_text("#send") == "Ask all 4"
    assert page.inner_text("#connection") == "Connected"


def test_four_columns_stream_at_once(page: Page) -> None:
    page.fill("#temperature", "0")
    ask(page, max_tokens=LONG)
    wait_for_text(page, 0, 1, 2, 3)
    # All four have text while none of them has ended: they are one batch.
    assert page.locator(".column[aria-busy=true]").count() == 4
    assert page.is_enabled("#stop-all")
    page.click("#stop-all")
    finished(page)
    base, _, math, words = (answer[:20] for answer in answers(page))
    assert len({base, math, words}) == 3
    for i in range(4):
        facts = column(page, i).locator(".facts").inner_text()
        assert facts.startswith("stopped · first token ")
        assert re.search(r"s · [\d,]+ tokens, [\d,.]+/s$", facts)


def test_all_get_the_same_settings_and_their_own_model(page: Page) -> None:
    sent = bodies(page)
    page.fill("#system", "be a cat")
    page.fill("#temperature", "0")
    page.fill("#top_p", "")
    page.fill("#seed", "7")
    choose(page, 1, "mix")
    choose(page, 3, "Own blend")
    column(page, 3).locator("select[aria-label='Add a delta to the blend']").select_option("math")
    column(page, 3).get_by_label("Scale of math as a number").fill("-0.5")
    column(page, 2).get_by_label("Scale of scale as a number").fill("0.25")
    ask(page, max_tokens=FEW)
    finished(page)
    own = [
        {},
        {"model": "mix"},
        {"model": "math", "delta_scale": 0.25},
        {"deltas": [{"name": "words", "scale": 1}, {"name": "math", "scale": -0.5}]},
    ]
    messages = [{"role": "system", "content": "be a cat"}, {"role": "user", "content": PROMPT}]
    shared = {"temperature": 0, "max_tokens": FEW, "seed": 7, "messages": messages}
    stream = {"stream": True, "timings_per_token": True, "return_progress": True}
    assert sent == [model | shared | stream for model in own]
    assert model_names(page) == ["base", "mix", "math*0.25", "words*1+math*-0.5"]
    assert page.locator(".answer .error").count() == 0
    assert all(answers(page))


def test_a_scale_of_0_answers_as_the_base_and_a_drag_changes_the_next_answer(page: Page) -> None:
    page.fill("#temperature", "0")
    slider = column(page, 2).locator("input[type=range]")
    ask(page, max_tokens=FEW)
    finished(page)
    base, _, tuned, _ = answers(page)
    assert tuned != base
    slider.fill("0")
    assert column(page, 2).locator("input[type=number]").input_value() == "0"
    column(page, 2).get_by_role("button", name="Ask again").click()
    finished(page)
    assert answers(page)[2] == base
    page.check("#follow")
    slider.fill("1")
    slider.dispatch_event("change")
    page.wait_for_function("text => document.querySelectorAll('.answer')[2].innerText === text", arg=tuned)


def test_a_column_keeps_its_history_and_asks_again_without_its_last_answer(page: Page) -> None:
    sent = bodies(page)
    for name in (HOSTILE, "math", "words"):
        page.get_by_role("region", name=name, exact=True).get_by_label("Take this column away").click()
    assert page.inner_text("#send") == "Ask"
    page.fill("#temperature", "0")
    ask(page, "a cat", max_tokens=FEW)
    finished(page)
    ask(page, "two cat")
    finished(page)
    column(page, 0).get_by_role("button", name="Ask again").click()
    finished(page)
    assert [body["messages"] for body in sent[1:]] == [sent[1]["messages"]] * 2
    roles = [message["role"] for message in sent[2]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert page.locator(".turn").count() == 2
    page.click("#new-chat")
    assert page.locator(".turn").count() == 0
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_stop_leaves_what_was_written_and_the_others_go_on(page: Page) -> None:
    page.fill("#temperature", "0")
    ask(page, max_tokens=LONG)
    wait_for_text(page, 0, 1, 2, 3)
    column(page, 1).get_by_role("button", name="Stop").click()
    page.wait_for_function("() => document.querySelectorAll('.column[aria-busy=true]').length === 3")
    assert column(page, 1).locator(".answer").inner_text().endswith("stopped")
    page.keyboard.press("Escape")
    finished(page)


def test_a_seventh_stream_waits_for_a_connection_and_more_than_slots_are_told(page: Page) -> None:
    """A browser opens six connections to a server over HTTP/1.1; one is left for the lists."""
    page.fill("#temperature", "0")
    for _ in range(3):
        page.click("#add-column")
    assert "answers 4 requests at a time" in page.inner_text("#queue")
    ask(page, max_tokens=LONG)
    waiting = page.get_by_text("waits for one of the browser's connections")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.answer')].filter(e => e.innerText.length > 20).length === 4"
    )
    assert waiting.count() == 2
    assert page.get_by_text("waits for a slot or a load").count() == 1
    listed = page.evaluate("fetch('v1/models').then(found => found.status)")
    assert listed == 200
    column(page, 6).get_by_role("button", name="Stop").click()
    column(page, 6).locator(".facts", has_text="stopped").wait_for()
    column(page, 0).get_by_role("button", name="Stop").click()
    waiting.first.wait_for(state="hidden")
    page.click("#stop-all")
    finished(page)


def test_over_http_2_no_stream_waits_for_a_connection(chromium: Browser, server: Server) -> None:
    with opened(chromium, "about:blank") as page:
        page.add_init_script("performance.getEntriesByType = () => [{ nextHopProtocol: 'h2' }]")
        page.goto(server.url)
        ready(page)
        for _ in range(3):
            page.click("#add-column")
        page.fill("#temperature", "0")
        ask(page, max_tokens=LONG)
        assert page.get_by_text("waits for one of the browser's connections").count() == 0
        page.click("#stop-all")
        finished(page)


def test_a_link_brings_the_set_up_and_asks_nothing(chromium: Browser, server: Server) -> None:
    with opened(chromium, server.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        ready(page)
        choose(page, 0, "Own blend")
        page.fill("#seed", "9")
        page.fill("#prompt", "größer <b>")
        page.click("#share")
        page.wait_for_selector("#notice:not([hidden])")
        link = page.evaluate("navigator.clipboard.readText()")
        names = model_names(page)
    assert link.startswith(f"{server.url}/#setup=")
    with opened(chromium, link) as page:
        sent = bodies(page)
        ready(page)
        assert model_names(page) == names
        assert page.input_value("#seed") == "9"
        assert page.input_value("#prompt") == "größer <b>"
        assert sent == []


def test_a_link_with_an_unknown_model_says_so(page: Page) -> None:
    page.evaluate(
        """() => { const setup = { columns: [{ model: "gone", scale: 1, parts: [] }], prompt: "a", system: "", parameters: {} };
        location.hash = "setup=" + btoa(JSON.stringify(setup)); }"""
    )
    page.wait_for_function("() => document.querySelectorAll('.column').length === 1")
    assert column(page, 0).locator("select.model option:checked").inner_text() == "gone (not on this server)"
    page.click("#send")
    finished(page)
    assert "model 'gone' does not exist" in column(page, 0).locator(".error").inner_text()


@pytest.mark.parametrize("fragment", ["#setup=%%%", "#setup=e30", "#setup=" + "A" * 70000])
def test_a_bad_link_is_one_line(chromium: Browser, server: Server, fragment: str) -> None:
    with opened(chromium, server.url + "/" + fragment) as page:
        ready(page)
        assert page.inner_text("#notice").startswith("This link has no set-up that can be read: ")
        assert page.locator(".column").count() == 4


def test_copy_takes_the_answer(chromium: Browser, server: Server) -> None:
    with opened(chromium, server.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        ready(page)
        fake = 'data: {"choices":[{"delta":{"content":"one\\n```c\\nint x;\\n```"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        page.route(COMPLETIONS, lambda route: route.fulfill(content_type="text/event-stream", body=fake))
        ask(page)
        finished(page)
        assert column(page, 0).locator(".answer pre code").inner_text() == "int x;"
        column(page, 0).get_by_role("button", name="Copy").click()
        page.wait_for_selector("#notice[data-kind=done]")
        assert page.evaluate("navigator.clipboard.readText()") == "one\n```c\nint x;\n```"


def test_what_a_model_and_a_name_say_stays_text(page: Page) -> None:
    said = json.dumps({"choices": [{"delta": {"content": HOSTILE, "reasoning_content": HOSTILE}}]})
    failed = json.dumps({"error": {"message": HOSTILE, "code": 500}})
    body = f"data: {said}\n\ndata: {failed}\n\n"
    page.route(COMPLETIONS, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    ask(page, HOSTILE)
    finished(page)
    texts = column(page, 1).locator(".turn p").all_inner_texts()
    assert texts == [HOSTILE] * 4  # the prompt, the thoughts, the answer, the error
    page.click("#tab-deltas")
    assert HOSTILE in page.locator("#deltas-table th .name").all_inner_texts()
    assert page.locator("img").count() == 0
    assert page.title() == "Fine-tunes side by side"


def test_the_policy_refuses_markup_and_other_hosts(chromium: Browser, server: Server) -> None:
    """It is the second lock, should the page ever make markup of a text itself."""
    with opened(chromium, server.url, expected="Content Security Policy|TrustedHTML") as page:
        ready(page)
        write = "() => { try { document.body.innerHTML = '<p>'; return ''; } catch (error) { return error.name; } }"
        assert page.evaluate(write) == "TypeError"
        assert page.evaluate("fetch('http://example.org/').then(() => 'open', () => 'closed')") == "closed"

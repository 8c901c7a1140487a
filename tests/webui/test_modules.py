"""Modules of the page by themselves, in a browser: streams cut anywhere, links, fences, metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dqrelo_gguf.webui.build import SOURCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

ORIGIN = "http://modules.test/"


@pytest.fixture(scope="module")
def modules(chromium: Browser) -> Iterator[Page]:
    """An empty page that can import the sources."""

    def give(route: Route) -> None:
        name = route.request.url.removeprefix(ORIGIN)
        if name.endswith(".js"):
            route.fulfill(content_type="text/javascript", body=(SOURCE / name).read_text(encoding="utf-8"))
        else:
            route.fulfill(content_type="text/html", body="<!DOCTYPE html>")

    page = chromium.new_page()
    page.route("**/*", give)
    page.goto(ORIGIN)
    yield page
    page.close()


def run(modules: Page, module: str, code: str, argument: Any = None) -> Any:
    """The value of `code`, an expression of the module's names `m` and the argument `a`."""
    return modules.evaluate(f"async (a) => {{ const m = await import('/{module}'); return await ({code}); }}", argument)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_events_are_whole_wherever_the_stream_is_cut(modules: Page, end: str) -> None:
    stream = f": ping{end}data: größer{end}{end}event: x{end}data: [DONE]{end}{end}"
    code = """(async () => {
      const raw = new TextEncoder().encode(a);
      const found = [];
      for (let cut = 0; cut <= raw.length; cut++) {
        const body = new ReadableStream({ start(c) { c.enqueue(raw.slice(0, cut)); c.enqueue(raw.slice(cut)); c.close(); } });
        const events = [];
        for await (const data of m.events(body)) events.push(data);
        found.push(events.join('|'));
      }
      return [...new Set(found)];
    })()"""
    assert run(modules, "sse.js", code, stream) == ["größer|[DONE]"]


def setup(**changes: Any) -> dict[str, Any]:
    column = {"model": "math", "scale": 0.5, "parts": [{"name": "ünï<b>", "scale": -1}]}
    parameters = {"temperature": 0.7, "top_p": None, "max_tokens": 5, "seed": 1}
    return {"columns": [column], "prompt": "p", "system": "", "parameters": parameters} | changes


def test_a_link_brings_back_what_it_was_made_of(modules: Page) -> None:
    assert run(modules, "link.js", "m.setupOf(m.fragment(a))", setup()) == setup()
    assert run(modules, "link.js", "m.setupOf('#deltas')") is None


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"columns": []}, "its columns are too few or too many"),
        ({"columns": setup()["columns"] * 33}, "its columns are too few or too many"),
        ({"columns": [{"model": 1, "scale": 1, "parts": []}]}, "a name is not a text"),
        (
            {"columns": [{"model": "x" * 201, "scale": 1, "parts": []}]},
            "a name is not a text of at most 200 characters",
        ),
        ({"columns": [{"model": "", "scale": None, "parts": []}]}, "a scale is not a number"),
        ({"columns": [{"model": "", "scale": 1001, "parts": []}]}, "a scale is not a number"),
        ({"columns": [{"model": "", "scale": 1, "parts": [None]}]}, "a part is not one"),
        ({"columns": [{"model": "", "scale": 1, "parts": setup()["columns"][0]["parts"] * 9}]}, "a column is not one"),
        ({"columns": [None]}, "a column is not one"),
        ({"prompt": "x" * 8001}, "the prompt is not a text"),
        ({"system": None}, "the system message is not a text"),
        ({"parameters": {"seed": "1"}}, "a parameter is not a number"),
        ({"parameters": []}, "parts are missing"),
    ],
)
def test_a_link_from_somebody_else_has_bounds(modules: Page, changes: dict[str, Any], what: str) -> None:
    code = "(() => { try { m.setupOf(m.fragment(a)); return ''; } catch (e) { return [e.constructor.name, e.message]; } })()"
    kind, message = run(modules, "link.js", code, setup(**changes))
    assert kind == "LinkError"
    assert what in message


@pytest.mark.parametrize(
    ("answer", "pieces"),
    [
        ("", []),
        (" a\nb ", ["a\nb"]),
        ("a\n```py\n  x\n\ny\n```\nb", ["a", "[  x\n\ny]", "b"]),
        ("```\nopen", ["[open]"]),
        ("a ``` b", ["a ``` b"]),
    ],
)
def test_fences_are_code(modules: Page, answer: str, pieces: list[str]) -> None:
    code = "m.pieces(a).map(p => p.isCode ? `[${p.text}]` : p.text)"
    assert run(modules, "answer.js", code, answer) == pieces


METRICS = r"""# TYPE llamacpp:delta_prompt_tokens_total counter
llamacpp:delta_prompt_tokens_total{delta="a\"b\\c"} 12
llamacpp:delta_tokens_predicted_total{delta="a\"b\\c"} 3
llamacpp:delta_loads_total{delta="x"} 1
llamacpp:tokens_predicted_total 9
"""


def test_tokens_are_read_from_metrics(modules: Page) -> None:
    found = run(modules, "metrics.js", "[...m.tokensByDelta(a)]", METRICS)
    assert found == [[r'a"b\c', {"prompt": 12, "answered": 3}]]


def test_turns_without_an_answer_are_left_out_of_the_messages(modules: Page) -> None:
    """Templates want users and assistants by turns."""
    turns = [{"prompt": "a", "answer": "b"}, {"prompt": "failed", "answer": ""}, {"prompt": "c", "answer": ""}]
    found = run(modules, "chat.js", "m.messages(a, a[2], 's').map(({ role, content }) => `${role} ${content}`)", turns)
    assert found == ["system s", "user a", "assistant b", "user c"]

"""The page for keyboards, screen readers, both themes and small screens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.server_fixtures import Server
from tests.support.webui import ask, finished, opened, ready

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Elements that one can operate without a name that a screen reader could say.
NAMELESS = """() => [...document.querySelectorAll('button, input, select, textarea, [tabindex="0"]')]
    .filter(e => e.checkVisibility() && !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.labels?.length || e.textContent.trim()))
    .map(e => e.outerHTML)"""
# Texts whose colour is too close to the one behind them: WCAG's 4.5 to 1.
FAINT = """() => {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = (colour) => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const hasText = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!hasText || e.disabled || !e.checkVisibility() || ['OPTION', 'SCRIPT', 'STYLE'].includes(e.tagName)) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push([e.tagName, e.textContent.trim().slice(0, 30), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_enough_contrast(chromium: Browser, server: Server, scheme: str) -> None:
    with opened(chromium, server.url, color_scheme=scheme) as page:
        ready(page)
        page.route(
            "**/v1/chat/completions", lambda route: route.fulfill(status=503, json={"error": {"message": "busy"}})
        )
        ask(page)
        finished(page)
        for tab in ("#tab-compare", "#tab-deltas", "#key-button"):
            page.click(tab)
            assert page.evaluate(NAMELESS) == []
            assert page.evaluate(FAINT) == []


def test_the_theme_is_the_systems_until_the_reader_chooses(chromium: Browser, server: Server) -> None:
    paper = "() => getComputedStyle(document.body).backgroundColor"
    dark, light = "rgb(20, 22, 26)", "rgb(255, 255, 255)"
    with opened(chromium, server.url, color_scheme="dark") as page:
        assert page.evaluate(paper) == dark
        page.select_option("#theme", "light")
        assert page.evaluate(paper) == light
        page.reload()
        assert page.evaluate(paper) == light
        page.select_option("#theme", "system")
        assert page.evaluate(paper) == dark


def test_the_keyboard_reaches_the_views(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#tab-compare")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#view-deltas")
    assert page.evaluate("document.activeElement.id") == "tab-deltas"
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#view-compare")
    page.fill("#prompt", "a")
    page.press("#prompt", "Shift+Enter")
    assert page.input_value("#prompt") == "a\n"


def test_answers_are_announced(page: Page) -> None:
    ask(page, max_tokens=4)
    finished(page)
    assert "first token" in page.inner_text("#announcer")


def test_a_telephone_scrolls_its_columns_and_not_the_page(chromium: Browser, server: Server) -> None:
    with opened(chromium, server.url, viewport={"width": 390, "height": 800}) as page:
        ready(page)
        for tab in ("#tab-compare", "#tab-deltas"):
            page.click(tab)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_it_does_not_run_in_a_frame(chromium: Browser, server: Server) -> None:
    """Somebody could lay it under something else and have its buttons pressed."""
    with opened(chromium, f"{server.url}/health") as page:
        page.evaluate(
            "url => { const f = document.createElement('iframe'); f.src = url; document.body.append(f); }", server.url
        )
        framed = page.frame_locator("iframe").locator("body")
        framed.get_by_text("This page does not work in a frame.").wait_for()
        assert framed.locator("button").count() == 0

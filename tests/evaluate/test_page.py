"""The page in a browser: every plot has marks, nothing fails or is loaded, and no text of a file runs."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dqrelo_gguf.evaluate.details import Details
from dqrelo_gguf.evaluate.measure import TextResult
from dqrelo_gguf.evaluate.page.render import write_page
from dqrelo_gguf.evaluate.report import Evaluation
from tests.support.browser import browser, load, screenshot
from tests.support.evaluations import with_hostile_texts

pytestmark = pytest.mark.skipif(browser() is None, reason="there is no Chromium")

PLOTS = ("kl-plot", "score-plot", "map-plot", "spectra-plot")
WIDTH, HEIGHT = 1000, 4200

# Uses the page as a reader does, and writes down what it sees.
PROBE = """
<script>
window.addEventListener("load", () => setTimeout(() => {
  const choose = (id, value) => {
    const select = document.getElementById(id);
    select.value = value;
    select.dispatchEvent(new Event("change"));
  };
  const rectangle = (id) => {
    const r = document.getElementById(id).getBoundingClientRect();
    return [r.left, r.top, r.right, r.bottom];
  };
  const selected = () => document.querySelector('.token[aria-selected="true"]').id;
  const press = (key) => document.getElementById("token-text").dispatchEvent(new KeyboardEvent("keydown", { key }));
  const found = { rectangles: PLOTS.map(rectangle), tokens: rectangle("token-text"), wide: document.documentElement.scrollWidth };
  found.colour = document.querySelector(".token").style.backgroundColor;
  press("Home");
  found.first = selected();
  press("ArrowRight");
  found.next = selected();
  found.details = document.getElementById("token-details").textContent;
  choose("tokens-model", "0");
  found.base_colour = document.querySelector(".token").style.backgroundColor;
  choose("kl-scale", "linear");
  choose("map-delta", "1");
  choose("map-figure", "ratio");
  choose("spectra-weight", "1");
  choose("score-choice", "1");
  window.dispatchEvent(new Event("beforeprint"));
  window.dispatchEvent(new Event("afterprint"));
  found.failed = !document.getElementById("failure").hidden;
  document.body.dataset.probe = JSON.stringify(found);
}, 500));
</script>
""".replace("PLOTS", json.dumps(PLOTS))


@pytest.fixture(scope="module")
def page(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(evaluation, path)
    return path


def part(document: str, name: str) -> str:
    """The document from an element's beginning to the next figure."""
    return document[document.index(f'id="{name}"') :].partition("</figcaption>")[0]


def test_every_plot_has_its_marks_and_nothing_fails(page: Path, evaluation: Evaluation) -> None:
    loaded = load(page)
    assert loaded.console == []
    assert 'id="failure" role="alert" hidden' in loaded.document
    n_models, n_deltas = len(evaluation.names) - 1, len(evaluation.facts["files"]["deltas"])
    assert (n_models, n_deltas) == (3, 2)
    for name in ("kl-plot", "score-plot"):
        own = part(loaded.document, name)
        assert len(re.findall(r'<path class="point"', own)) == n_models, name
        assert len(re.findall(r'class="errorbar"', own)) == n_models, name
        assert own.count("js-line") >= 1
    assert part(loaded.document, "map-plot").count("<image") == 1
    assert part(loaded.document, "spectra-plot").count('class="trace scatter ') == 1 + n_deltas
    for name in PLOTS:
        assert re.search(r'class="(y|x)title"', part(loaded.document, name)), name
    assert loaded.document.count('role="option"') == len(
        [t for found in evaluation.text_result.sample for t in found[0].ids]
    )


def probe(page: Path, width: int) -> dict[str, Any]:
    """What the probe found in a copy of the page whose policy lets it run."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy = page.with_name("probed.html")
    copy.write_text(text.replace("</body>", PROBE + "</body>"))
    loaded = load(copy, width)
    assert loaded.console == []
    written = re.search(r'data-probe="([^"]*)"', loaded.document)
    assert written is not None
    found: dict[str, Any] = json.loads(html.unescape(written[1]))
    return found


@pytest.fixture(scope="module")
def probed(page: Path) -> dict[str, Any]:
    return probe(page, WIDTH)


def test_choosers_and_keys_work(probed: dict[str, Any]) -> None:
    assert not probed["failed"]
    assert (probed["first"], probed["next"]) == ("token-0", "token-1")
    for word in ("P, by fine-tune", "Q, by fine", "KL, nats", "Most probable by fine-tune (P)"):
        assert word in probed["details"]
    assert probed["colour"] != probed["base_colour"]


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_no_plot_is_blank(page: Path, probed: dict[str, Any], tmp_path: Path, is_dark: bool) -> None:
    out = tmp_path / "page.png"
    screenshot(page, out, WIDTH, HEIGHT, is_dark=is_dark)
    picture = Image.open(out).convert("RGB")
    paper = picture.getpixel((2, 2))
    assert (sum(paper) < 150) == is_dark
    for name, rectangle in zip([*PLOTS, "tokens"], [*probed["rectangles"], probed["tokens"]], strict=True):
        own = picture.crop(tuple(map(int, rectangle)))
        colours = own.getcolors(own.width * own.height)
        n_marked = sum(n for n, colour in colours if colour != paper)
        # Axes and letters alone are grey: marks have a colour of their own.
        n_coloured = sum(n for n, colour in colours if max(colour) - min(colour) > 40)
        assert n_marked > 0.01 * own.width * own.height, name
        assert n_coloured > 50, name


def test_a_narrow_page_is_no_wider_than_its_window(page: Path) -> None:
    assert probe(page, 500)["wide"] <= 500


def test_hostile_texts_are_shown_and_do_not_run(evaluation: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(with_hostile_texts(evaluation), path)
    loaded = load(path)
    assert loaded.console == []  # A text that tried to run would be a violation of the policy.
    body = re.sub(r"<script.*?</script>", "", loaded.document, flags=re.DOTALL)
    assert "<title>What &lt;a href=" in body
    assert "&lt;img src=x" in part(body, "kl-plot")
    for tag in ("<img", "<svg onload", '<a href="http', 'xlink:href="http'):
        assert tag not in body
    assert "\u202e" not in body


def test_a_page_without_text_and_problems_has_no_empty_plots(evaluation: Evaluation, tmp_path: Path) -> None:
    assert evaluation.details is not None
    details = Details(evaluation.details.weights)
    interrupted = replace(
        evaluation, text=None, text_result=TextResult(), tasks=[], details=details, is_interrupted=True
    )
    path = tmp_path / "page.html"
    write_page(interrupted, path)
    loaded = load(path)
    assert loaded.console == []
    for name in ("kl", "score", "spectra", "tokens"):
        assert re.search(f'id="{name}-absent">', loaded.document), name
    assert part(loaded.document, "map-plot").count("<image") == 1

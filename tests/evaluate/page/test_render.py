"""The page as a file: nothing of it comes from elsewhere, and no text of a file is markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.page import render
from dqrelo_gguf.evaluate.report import Evaluation
from tests.support.evaluations import HOSTILE, with_hostile_texts


class Elements(HTMLParser):
    """Tags with their attributes, and the text in each script element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._is_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._is_script = tag == "script"
        if self._is_script:
            self.scripts.append("")

    def handle_endtag(self, _tag: str) -> None:
        self._is_script = False

    def handle_data(self, data: str) -> None:
        if self._is_script:
            self.scripts[-1] += data


def test_hostile_texts_add_no_element(evaluation: Evaluation) -> None:
    plain, hostile = (Elements(render.page(e)) for e in (evaluation, with_hostile_texts(evaluation)))
    kinds = [[tag for tag, _ in page.tags if tag not in ("tr", "th", "td")] for page in (plain, hostile)]
    assert kinds[0] == kinds[1]
    assert len(hostile.scripts) == 4
    assert json.loads(hostile.scripts[1])["files"]["deltas"][0]["name"] == HOSTILE[2]
    assert not any(key.startswith("on") for _, attributes in hostile.tags for key in attributes)


def test_the_policy_names_the_scripts_and_nothing_is_loaded(evaluation: Evaluation) -> None:
    found = Elements(render.page(evaluation))
    policy = next(a["content"] for t, a in found.tags if t == "meta" and a.get("http-equiv")) or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in found.scripts[2:]]
    assert re.search("script-src (.*?);", policy)[1].split() == hashes  # type: ignore[index]
    for tag, attributes in found.tags:
        assert not {"src", "srcset", "style"} & attributes.keys(), tag
        assert (attributes.get("href") or "#").startswith("#")


def test_every_slot_is_filled_once(evaluation: Evaluation) -> None:
    e = with_hostile_texts(evaluation)
    own = render.page(e)
    for name in ("policy", "style", "title", "report", "figures", "provenance"):
        assert "{{" + name + "}}" not in own
    assert own.count("{{data}}") > 0  # A text that looks like a slot stays a text.


def test_json_cannot_leave_its_element() -> None:
    value = {"x": "</script><!--<script>&\u2028\ud800"}
    text = render.json_for_html(value)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == value


def test_without_plotly_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"--html: needs the package plotly.*pip install 'dqrelo-gguf\[html\]'"):
        render.require_plotly()


def test_an_interrupted_evaluation_says_so(evaluation: Evaluation) -> None:
    notice = "Interrupted: what is below was measured until then."
    assert notice not in render.page(evaluation)
    assert notice in render.page(replace(evaluation, is_interrupted=True))

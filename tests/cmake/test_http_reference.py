"""cmake/http_reference.py: docs/http-api.md is what docs/openapi.yaml says."""

from __future__ import annotations

from pathlib import Path

import pytest

import http_reference


def test_the_page_is_that_of_the_document() -> None:
    assert http_reference.PAGE.read_text(encoding="utf-8") == http_reference.page()


def test_every_operation_and_object_is_on_the_page() -> None:
    page = http_reference.page()
    assert "### POST /deltas/load\n" in page
    assert "| `deltas` | array of [Part](#part), entries at least 1, entries at most 8 | The parts as a list. |" in page
    assert "| `delta_scale` | number or null, at least -4, at most 4, default 1 |" in page
    assert "| Unavailable | The server loads its model" in page


def test_a_page_that_is_older_than_the_document_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["http_reference.py", "check"])
    assert http_reference.main() == 0
    old = tmp_path / "http-api.md"
    old.write_text("# HTTP endpoints\n", encoding="utf-8")
    monkeypatch.setattr(http_reference, "PAGE", old)
    assert http_reference.main() == 1
    assert capsys.readouterr().out.startswith("docs/http-api.md: is not what")

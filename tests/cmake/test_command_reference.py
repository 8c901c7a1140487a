"""cmake/command_reference.py: docs/commands.md is what the commands' parsers say."""

from __future__ import annotations

import pytest

import command_reference


def test_the_page_is_that_of_the_code() -> None:
    assert command_reference.PAGE.read_text(encoding="utf-8") == command_reference.page()


def test_a_page_that_is_older_than_the_code_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["command_reference.py", "check"])
    assert command_reference.main() == 0
    monkeypatch.setattr(command_reference, "MODULES", ("convert",))
    assert command_reference.main() == 1
    assert capsys.readouterr().out.startswith("docs/commands.md: is not what")

"""Texts of files as a page shows them."""

from __future__ import annotations

import unicodedata

import pytest

from dqrelo_gguf.evaluate.page.visible import visible, visible_bytes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ünïcode 日本 🐢", "plain text, ünïcode 日本 🐢"),
        ("a\nb\tc\rd", "a↵b⇥c␍d"),
        ("\x00\x1b[2J\x7f", "␀␛[2J␡"),
        ("\u202egnp.exe", "⟨U+202E⟩gnp.exe"),
        ("a\u2066b\u200bc\ufeff", "a⟨U+2066⟩b⟨U+200B⟩c⟨U+FEFF⟩"),
        ("\u00a0\u2028\u3164", "⟨U+00A0⟩⟨U+2028⟩⟨U+3164⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("name\udcff.gguf", "name⟨FF⟩.gguf"),
        ("\u0301x", "◌\u0301x"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_named(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("raw", "shown"),
    [(b"ok", "ok"), (b"\xe2\x82", "⟨E2⟩⟨82⟩"), ("€".encode() + b"\xff", "€⟨FF⟩"), (b"\xed\xa0\x80", "⟨ED⟩⟨A0⟩⟨80⟩")],
)
def test_bytes_that_are_no_utf8_are_shown_by_number(raw: bytes, shown: str) -> None:
    assert visible_bytes(raw) == shown


def test_of_all_characters_none_is_invisible_or_turns_the_text() -> None:
    kept = visible("x" + "".join(map(chr, range(0x110000))))
    assert {unicodedata.category(c) for c in kept if c != " "}.isdisjoint(
        {"Cc", "Cf", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}
    )
    kept.encode()  # There is no half of a surrogate pair in it.

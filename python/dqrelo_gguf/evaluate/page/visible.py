"""Texts of files as a page shows them: nothing in them is invisible, turns what follows, or is taken for something else."""

from __future__ import annotations

import unicodedata

# Characters that Unicode counts as letters or symbols, and that fonts show nothing for.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_PICTURES = {"\n": "↵", "\r": "␍", "\t": "⇥", "\x7f": "␡"}


def visible(text: str) -> str:
    """A text in which what cannot be seen is named: `↵` for a new line, `⟨U+202E⟩` for a mark of direction, `⟨FF⟩` for a byte that is no text.

    A combining mark at the beginning gets a circle to stand on.
    """
    shown = "".join(map(_visible_character, text))
    return "◌" + shown if shown and unicodedata.category(shown[0]).startswith("M") else shown


def visible_bytes(raw: bytes) -> str:
    """The bytes of a token as text, those that are no UTF-8 by their numbers."""
    return visible(raw.decode("utf-8", "surrogateescape"))


def _visible_character(c: str) -> str:
    code = ord(c)
    if c in _PICTURES:
        return _PICTURES[c]
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of controls.
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte that is no UTF-8, in names of files too.
        return f"⟨{code - 0xDC00:02X}⟩"
    category = unicodedata.category(c)
    is_space = category.startswith("Z") and c != " "
    if category.startswith("C") or is_space or c in _BLANK:
        return f"⟨U+{code:04X}⟩"
    return c

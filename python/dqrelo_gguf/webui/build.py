"""Puts the page of the server together: one file with all styles and scripts, and a policy that lets nothing else in.

A server with API keys hands out `/` alone without a key, so all of the page is in that file. Run after a change in source/:

    python -m dqrelo_gguf.webui.build
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from dqrelo_gguf.webui import SITE

SOURCE = Path(__file__).resolve().parent / "source"
ENTRY = "app.js"
STYLES = ("palette.css", "page.css", "compare.css", "deltas.css")

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)
_DEFINED = re.compile(r"^(?:async )?(?:function\*?|class|const|let) +(\w+)", re.MULTILINE)
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def page(source: Path = SOURCE) -> str:
    """The page.

    Args:
        source: the folder with index.html, styles and scripts.

    Raises:
        ValueError: two modules define the same name, or a text would end its element.
    """
    slots = {"style": _inline("\n".join(_read(source / name) for name in STYLES)), "script": _inline(bundle(source))}
    slots["policy"] = policy(slots["script"], slots["style"])
    return _SLOT.sub(lambda slot: slots[slot[1]], _read(source / "index.html"))


def bundle(source: Path) -> str:
    """All modules that app.js needs as one, each behind those that it imports."""
    order: list[str] = []
    _visit(source, ENTRY, order)
    texts = {name: _EXPORT.sub("", _IMPORT.sub("", _read(source / name))) for name in order}
    owners: dict[str, str] = {}
    for name, text in texts.items():
        for defined in _DEFINED.findall(text):
            if defined in owners:
                raise ValueError(f"{name} and {owners[defined]} both define {defined}: give one another name")
            owners[defined] = name
    return "\n".join(texts.values())


def policy(script: str, style: str) -> str:
    """Content-Security-Policy: this script and this style, calls of the page's own server, and no markup made from text."""
    return (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _visit(source: Path, name: str, order: list[str]) -> None:
    for imported in _IMPORT.findall(_read(source / name)):
        if imported not in order:
            _visit(source, imported, order)
    if name not in order:
        order.append(name)


def _inline(text: str) -> str:
    if re.search(r"</(script|style)|<!--", text, re.IGNORECASE):
        raise ValueError("a text would end the element that it stands in")
    return f"\n{text}"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    (SITE / "index.html").write_text(page(), encoding="utf-8", newline="\n")

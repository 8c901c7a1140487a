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

_IMPORT = re.compile(r'^import \{[\w, ]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:function|class|const|let)\b)", re.MULTILINE)
_MODULE_WORD = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)
_DEFINED = re.compile(r"^(?:async )?(?:function\*?|class|const|let) +(\w+)", re.MULTILINE)
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def page(source: Path = SOURCE) -> str:
    """The page.

    Args:
        source: the folder with index.html, styles and scripts.

    Raises:
        ValueError: two modules define the same name or import each other, a text would end its element, or an import or export has another form
            than `import { a, b } from "./c.js";` and `export` before a function, a class, `const` or `let`.
    """
    slots = {"style": _inline("\n".join(_read(source / name) for name in STYLES)), "script": _inline(bundle(source))}
    slots["policy"] = policy(slots["script"], slots["style"])
    return _SLOT.sub(lambda slot: slots[slot[1]], _read(source / "index.html"))


def bundle(source: Path) -> str:
    """All modules that app.js needs as one, each behind those that it imports."""
    order: list[str] = []
    _visit(source, (ENTRY,), order)
    texts = {name: _plain(name, _read(source / name)) for name in order}
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


def _visit(source: Path, way: tuple[str, ...], order: list[str]) -> None:
    """Puts the last module of `way`, each of which imports the next, into the order, behind what it imports."""
    for imported in _IMPORT.findall(_read(source / way[-1])):
        if imported in way:
            raise ValueError(f"{', '.join(way)} and {imported} import each other")
        if imported not in order:
            _visit(source, (*way, imported), order)
    order.append(way[-1])


def _plain(name: str, text: str) -> str:
    """A module without its imports and exports: all names are of one module in the end."""
    plain = _EXPORT.sub(r"\1", _IMPORT.sub("", text))
    if left := _MODULE_WORD.search(plain):
        raise ValueError(f"{name}: an import or export that is not understood: {left[0]}")
    return plain


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

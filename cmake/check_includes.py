"""Checks that includes among our C++ sources go down only: a folder is a layer, and knows those below it.

check_includes.py [ROOT]    one line for each include that does not; ROOT holds cpp/ and ggml_ops/ (default: this checkout)
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# From the lowest to the highest; folders of one line do not know each other.
LAYERS = (
    ("ggml_ops",),
    ("cpp/include",),
    ("cpp/file",),
    ("cpp/memory",),
    ("cpp/context",),
    ("cpp/graph",),
    ("cpp/common",),
    ("cpp/server", "cpp/bindings"),
)
_RANKS = {folder: rank for rank, folders in enumerate(LAYERS) for folder in folders}
# The compiler has the same folders on its path.
_SEARCH_PATH = ("cpp", "cpp/include", "cpp/common", "cpp/server", "ggml_ops")
_SUFFIXES = {".c", ".cpp", ".cu", ".cuh", ".h"}
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def _layer_of(path: Path, root: Path) -> str | None:
    """The folder of LAYERS that a file lies in, at whatever depth."""
    parts = path.relative_to(root).as_posix()
    return next((folder for folder in _RANKS if parts.startswith(folder + "/")), None)


def _target(name: str, source: Path, root: Path) -> Path | None:
    """Our header that `#include "name"` in a source means, or None if it is another project's."""
    candidates = (folder / name for folder in (source.parent, *(root / path for path in _SEARCH_PATH)))
    return next((path for path in candidates if path.is_file()), None)


def upward(root: Path) -> list[str]:
    """A line for each include of a header that lies in a higher layer, or in another folder of the same one."""
    lines = []
    for file in (f for top in ("cpp", "ggml_ops") for f in sorted((root / top).rglob("*")) if f.suffix in _SUFFIXES):
        here = _layer_of(file, root)
        where = file.relative_to(root).as_posix()
        if here is None:
            lines.append(f"{where}: lies in no layer; add its folder to LAYERS in cmake/check_includes.py")
            continue
        text = file.read_text(encoding="utf-8")
        for match in _INCLUDE.finditer(text):
            target = _target(match[1], file, root)
            there = _layer_of(target, root) if target else None
            if there is not None and there != here and _RANKS[there] >= _RANKS[here]:
                number = text.count("\n", 0, match.start(1)) + 1
                lines.append(f'{where}:{number}: "{match[1]}" of {there} is not below {here}')
    return lines


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    lines = upward(root)
    print("\n".join(lines), end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

"""Writes a page of the documentation that a program makes, or compares it with the file."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(path: Path, wanted: str, source: str, script: str) -> int:
    """Does what the command line says: `write` or `check`.

    Args:
        path: the page's file.
        wanted: what it should hold.
        source: what says so, for the message.
        script: the program's name in cmake/.

    Returns:
        The exit code: 1 if the file is another one, 2 for another command line.
    """
    if sys.argv[1:] == ["write"]:
        path.write_text(wanted, encoding="utf-8")
        return 0
    if sys.argv[1:] == ["check"]:
        if path.read_text(encoding="utf-8") == wanted:
            return 0
        print(f"docs/{path.name}: is not what {source}. Run: python cmake/{script} write")
        return 1
    print(f"usage: {script} write|check", file=sys.stderr)
    return 2

"""Unified diffs, as git writes them: parse, count, apply.

Applying is strict (every context line must match at its stated line number), since a patch is made against exactly the
source it is applied to. Neither git nor patch is needed. Standard library only.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNSUPPORTED = ("rename ", "deleted file", "GIT binary patch", "Binary files", "\\ No newline")
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@")


class PatchError(Exception):
    """A patch is malformed or does not fit its source; the text is one line."""


@dataclass
class Hunk:
    """Lines `old` (which begin at 1-based line `start`) become lines `new`; each keeps its line ending."""

    start: int
    old: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    n_added: int = 0
    n_removed: int = 0


@dataclass
class FilePatch:
    """What a diff does to one file; `path` is relative to the tree's root."""

    path: str
    is_new: bool
    hunks: list[Hunk] = field(default_factory=list)

    @property
    def n_added(self) -> int:
        return sum(hunk.n_added for hunk in self.hunks)

    @property
    def n_removed(self) -> int:
        return sum(hunk.n_removed for hunk in self.hunks)

    def apply(self, source: str) -> str:
        """The patched text of `source` ("" for a new file). Raises PatchError at the first line that differs."""
        lines = _split(source)
        out: list[str] = []
        done = 0
        for hunk in self.hunks:
            first = max(hunk.start - 1, 0)
            for i, expected in enumerate(hunk.old, start=first):
                if i >= len(lines) or lines[i] != expected:
                    found = lines[i].strip() if i < len(lines) else "the end of the file"
                    raise PatchError(f"{self.path}:{i + 1}: expected {expected.strip()!r}, found {found!r}")
            out += lines[done:first] + hunk.new
            done = first + len(hunk.old)
        return "".join(out + lines[done:])


def parse(text: str) -> list[FilePatch]:
    """The file patches of a diff, in order. What hooks never need (deletions, renames, binary patches, files without a final newline) is refused."""
    patches: list[FilePatch] = []
    lines = iter(_split(text))
    old_path = ""
    for line in lines:
        if line.startswith(_UNSUPPORTED):
            raise PatchError(f"only changed and new files are supported, got: {line.strip()}")
        if line.startswith("--- "):
            old_path = line[4:].strip()
        elif line.startswith("+++ "):
            path = line[4:].strip()
            if not path.startswith("b/") or ".." in path.split("/"):
                raise PatchError(f"expected a path of the form b/..., got: {path}")
            patches.append(FilePatch(path[2:], is_new=old_path == "/dev/null"))
        elif match := _HUNK.match(line):
            if not patches:
                raise PatchError(f"a hunk comes before its file's name: {line.strip()}")
            patches[-1].hunks.append(_parse_hunk(match, lines))
    return patches


def _parse_hunk(match: re.Match[str], lines: Iterator[str]) -> Hunk:
    """Reads a hunk's body: as many lines as its header says."""
    n_old, n_new = (int(n) if n is not None else 1 for n in match.group(2, 3))
    hunk = Hunk(start=int(match[1]))
    while len(hunk.old) < n_old or len(hunk.new) < n_new:
        line = next(lines, "")
        kind, body = line[:1], line[1:]
        if kind not in {" ", "+", "-"}:
            raise PatchError(f"hunk at line {hunk.start} is cut short or malformed at: {line.strip()!r}")
        if kind in " -":
            hunk.old.append(body)
        if kind in " +":
            hunk.new.append(body)
        hunk.n_added += kind == "+"
        hunk.n_removed += kind == "-"
    return hunk


def _split(text: str) -> list[str]:
    """The lines with their endings, split at line feeds only (str.splitlines also splits at form feeds)."""
    return list(io.StringIO(text))

"""The fenced blocks of the documentation's pages: which are commands, and why some of them are not run."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from dqrelo_gguf.cli.dqrelo import COMMANDS

_MARKER = re.compile(r"<!-- not run: (.*) -->")
RUN = ("bash", "python")
# What else a block may be. Some of it can be read, and has to be readable.
READERS = {"json": json.loads, "yaml": yaml.safe_load}
OTHERS = ("text", "ini", "nginx", "caddy", "mermaid", *READERS)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    where: str  # "page.md:LINE"
    language: str
    reason: str | None  # Why it is not run, from the comment above it.
    text: str

    @property
    def runs(self) -> bool:
        return self.language in RUN and self.reason is None

    def commands(self) -> list[str]:
        """Its lines without comments; those that end in a backslash with the next."""
        lines = (line.strip() for line in self.text.replace("\\\n", " ").splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def blocks(path: Path) -> list[Block]:
    """All blocks of a page."""
    lines, found = path.read_text(encoding="utf-8").splitlines(), []
    starts = iter(range(len(lines)))
    for start in starts:
        fence = re.fullmatch(r"( *)```(\S*)", lines[start])
        if fence is None:
            continue
        end = next(i for i in range(start + 1, len(lines)) if lines[i] == f"{fence[1]}```")
        marker = _MARKER.fullmatch(lines[start - 1].strip())
        text = "\n".join(lines[start + 1 : end])
        found.append(Block(f"{path.name}:{start + 1}", fence[2], marker[1] if marker else None, text))
        for _ in range(end - start):
            next(starts)
    return found


def fault_of(block: Block) -> str | None:
    """What is missing: a block has a language and is of it, and one of commands is run or says why not."""
    if block.language not in (*RUN, *OTHERS):
        return f"{block.where}: the block has the language {block.language!r}, expected one of {', '.join((*RUN, *OTHERS))}"
    if block.reason is not None and (block.language not in RUN or not block.reason.strip()):
        return f"{block.where}: 'not run' stands above commands, with a reason"
    if block.language in READERS:
        try:
            READERS[block.language](block.text)
        except (ValueError, yaml.YAMLError) as error:
            return f"{block.where}: the block is no {block.language}: {error}"
    return None


def own_commands(line: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of this package in a line: the module of each, and its words."""
    words = shlex.split(line, comments=True)
    for i, word in enumerate(words):
        name = Path(word).name
        if name in ("dqrelo", "dqrelo-lm-eval") or name.removeprefix("dqrelo-") in ("server", *COMMANDS):
            rest = words[i + 1 :]
            command = name.removeprefix("dqrelo-")
            if command == "dqrelo":
                if not rest or rest[0] not in COMMANDS:
                    continue
                command, rest = rest[0], rest[1:]
            yield {"serve": "server"}.get(command, command.replace("-", "_")), rest


def options_of(module: str) -> set[str]:
    """The names of the options of a command that has a parser; `sweep` of dqrelo-lm-eval has its own."""
    found = importlib.import_module(f"dqrelo_gguf.cli.{module}")
    return set(_options(found._parser()))


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Of a parser, and of the commands that it has."""
    yield from parser._option_string_actions
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _options(inner)

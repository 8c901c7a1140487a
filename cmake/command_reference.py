"""Writes docs/commands.md, the options of all commands, from their argparse parsers.

command_reference.py write    writes it
command_reference.py check    one line if it is not what it would be
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator

import written_page
from dqrelo_gguf.cli.dqrelo import COMMANDS

PAGE = written_page.ROOT / "docs" / "commands.md"
# The modules of dqrelo_gguf.cli whose commands have options of their own; dqrelo-server's are llama-server's.
MODULES = tuple(module for module, _ in COMMANDS.values() if module != "server")
_INNER = argparse._SubParsersAction  # noqa: SLF001 - what add_subparsers makes
_INTRODUCTION = """# Commands

All options of the commands, as `--help` lists them. `dqrelo-server` takes those of `llama-server`, and the ones for deltas that
[Serving](serving.md) describes.
Written by `cmake/command_reference.py` from the code; `make lint` compares.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *(line for module in MODULES for line in _command(module))])


def _command(module: str) -> Iterator[str]:
    yield from _section(importlib.import_module(f"dqrelo_gguf.cli.{module}")._parser(), "##")  # noqa: SLF001


def _section(parser: argparse.ArgumentParser, heading: str) -> Iterator[str]:
    """A command with its options, and below it the commands that it has."""
    inner: list[argparse.ArgumentParser] = []
    yield f"{heading} {parser.prog}\n"
    yield f"{_expanded(parser, parser.description or '')}\n"
    for group in parser._action_groups:  # noqa: SLF001
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS and "--help" not in a.option_strings]  # noqa: SLF001
        inner += [command for a in actions if isinstance(a, _INNER) for command in a.choices.values()]
        actions = [a for a in actions if not isinstance(a, _INNER)]
        if not actions:
            continue
        yield f"| {group.title} | |\n|---|---|"
        yield from (f"| `{_syntax(action)}` | {_help(parser, action)} |" for action in actions)
        yield ""
    if parser.epilog:
        yield f"{_expanded(parser, parser.epilog)}\n"
    for command in inner:
        yield from _section(command, f"{heading}#")


def _syntax(action: argparse.Action) -> str:
    """`-m FILE, --model FILE` as `-m`, `--model FILE`; a positional argument by its name."""
    value = _value(action)
    if not action.option_strings:
        return value
    return ", ".join(action.option_strings) + (f" {value}" if value else "")


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if action.choices and not action.metavar:
        name = f"{{{','.join(map(str, action.choices))}}}"
    text = " ".join(name) if isinstance(name, tuple) else name
    several = {"+": f"{text} ...", "*": f"[{text} ...]", "?": f"[{text}]"}
    text = several.get(str(action.nargs), text)
    return text.replace("|", "\\|")


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return _expanded(parser, text).replace("|", "\\|").replace("<", "&lt;")


def _expanded(parser: argparse.ArgumentParser, text: str) -> str:
    return " ".join(text.replace("%(prog)s", parser.prog).split())


def main() -> int:
    """Runs the command; returns its exit code."""
    return written_page.run(PAGE, page(), "the commands' parsers say", "command_reference.py")


if __name__ == "__main__":
    sys.exit(main())

"""The arguments of llama.cpp's programs, with paths in the place of addresses: the programs themselves download nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.parse import is_address
from dqrelo_gguf.address.resolve import local

_DELTAS = "--delta"
# Options that take a file, with what it is wanted for.
_OPTIONS = {
    "-m": Kind.MODEL,
    "--model": Kind.MODEL,
    "-md": Kind.MODEL,
    "--model-draft": Kind.MODEL,
    "--spec-draft-model": Kind.MODEL,
    "-mm": Kind.FILE,
    "--mmproj": Kind.FILE,
    "--delta-keys": Kind.FILE,
    _DELTAS: Kind.DELTA,
}
# The same as environment variables.
_VARIABLES = {
    "LLAMA_ARG_MODEL": "--model",
    "LLAMA_ARG_MMPROJ": "--mmproj",
    "LLAMA_ARG_DELTA": _DELTAS,
}


def with_paths(args: Sequence[str]) -> list[str]:
    """Arguments in which every address that an option takes is fetched, and is a path.

    Raises:
        InputError, DiskFullError: one cannot be had.
    """
    found = list(args)
    for i in range(1, len(found)):
        if found[i - 1] in _OPTIONS:
            found[i] = _value(found[i - 1], found[i])
    return found


def environment_with_paths(environment: Mapping[str, str]) -> dict[str, str]:
    """The same for environment variables."""
    return {name: _value(_VARIABLES[name], text) if name in _VARIABLES else text for name, text in environment.items()}


def _value(option: str, text: str) -> str:
    if option == _DELTAS:
        return text if "://" not in text else ",".join(map(_delta, _items(text)))
    return str(local(text, _OPTIONS[option])) if is_address(text) else text


def _delta(item: str) -> str:
    """An item of a list, [NAME=]PATH, quoted where that is needed."""
    name, equals, path = item.partition("=")
    if not equals or "/" in name or "\\" in name:
        name, equals, path = "", "", item
    made = f"{name}{equals}{local(path, Kind.DELTA) if is_address(path) else path}"
    return f'"{made}"' if "," in made else made


def _items(text: str) -> list[str]:
    """Splits at commas outside of quotes, as the server does (cpp/common/delta-args.cpp)."""
    items, quoted = [""], False
    for character in text:
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            items.append("")
        else:
            items[-1] += character
    return items

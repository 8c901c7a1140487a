"""Which files of a repository are meant where none is named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum

from dqrelo_gguf.errors import InputError, NotThereError, shown

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<n>\d{5})\.gguf")
_DELTA = ".dq.gguf"
SHARDS = ".safetensors"
_SHOWN_NAMES = 20
_CONFIGS = ("config.json", "adapter_config.json")
# What a conversion reads of a directory besides its weights: configurations, tokenizers, templates, the model card.
_DESCRIPTIONS = (".json", ".txt", ".model", ".jinja", "README.md")
_MAX_SHARDS = 1000


class Kind(Enum):
    """What a file is wanted for; the value is its name in messages."""

    MODEL = "GGUF model"
    TUNED = "fine-tune"
    DELTA = "delta"
    FILE = "file"


def choose(names: Iterable[str], path: str, kind: Kind, label: str) -> tuple[list[str], bool]:
    """The files that are meant, and whether they are wanted as a directory.

    Args:
        names: of all files in the repository.
        path: of a file or a folder in it; empty for all of it.
        kind: what is looked for.
        label: the address, for messages.

    Returns:
        Names in order; of a split model the first part comes first.

    Raises:
        InputError: nothing fits, or several things do.
    """
    names = sorted(names)
    if path in names:
        return with_shards(path, names, label), False
    inside = [name for name in names if not path or name.startswith(f"{path}/")]
    if not inside:
        raise NotThereError(f"{label}: the repository has no file {shown(path)}. It has {_listed(names)}")
    if kind == Kind.TUNED:
        directory = _model_directory(inside, path)
        if directory:
            return directory, True
    fitting = [name for name in inside if _fits(name, kind)]
    first_parts = [name for name in fitting if _is_first(name)]
    if len(first_parts) == 1:
        return with_shards(first_parts[0], names, label), False
    if not first_parts:
        raise NotThereError(f"{label}: has no {kind.value}. It has {_listed(inside)}")
    raise InputError(f"{label}: has {len(first_parts)} files that may be meant, name one: {_listed(first_parts)}")


def no_shards(label: str, names: Sequence[str]) -> str:
    """The message about a fine-tune of another form than safetensors."""
    return f"{label}: --stream reads safetensors by ranges, and here is {shown(names[0])}. Leave out --stream: it is then downloaded"


def with_shards(name: str, names: Sequence[str], label: str) -> list[str]:
    """A file, or all parts of the split model that it is a part of, the given one first.

    Raises:
        InputError: a part is missing.
    """
    parts = shard_names(name, label)
    missing = [part for part in parts if part not in names]
    if missing:
        raise NotThereError(f"{label}: the repository has no file {shown(missing[0])}, a part of {shown(name)}")
    return parts


def shard_names(name: str, label: str) -> list[str]:
    """A file's name, or those of all parts of the split model that it is a part of, the given one first.

    Raises:
        InputError: it is a part of more than 1000.
    """
    found = _SHARD.fullmatch(name)
    if found is None:
        return [name]
    n = int(found["n"])
    if n > _MAX_SHARDS:
        raise InputError(f"{label}: is a part of {n}, expected at most {_MAX_SHARDS}")
    parts = [f"{found['stem']}-{i:05d}-of-{n:05d}.gguf" for i in range(1, n + 1)]
    return [name, *(part for part in parts if part != name)]


def _is_first(name: str) -> bool:
    found = _SHARD.fullmatch(name)
    return found is None or int(found["number"]) == 1


def _fits(name: str, kind: Kind) -> bool:
    if kind == Kind.DELTA:
        return name.endswith(_DELTA)
    is_projector = name.rpartition("/")[2].startswith("mmproj")
    return name.endswith(".gguf") and not name.endswith(_DELTA) and not is_projector


def _model_directory(inside: Sequence[str], path: str) -> list[str]:
    """The files of a model directory or an adapter; none where there is no configuration."""
    prefix = f"{path}/" if path else ""
    here = [name for name in inside if "/" not in name.removeprefix(prefix)]
    if not any(f"{prefix}{config}" in here for config in _CONFIGS):
        return []
    weights = [name for name in here if name.endswith(SHARDS)]
    weights = weights or [name for name in here if name.endswith(".bin")]
    return [name for name in here if name in weights or name.endswith(_DESCRIPTIONS)] if weights else []


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(map(shown, names[:_SHOWN_NAMES])) + more if names else "no files"

"""The one way from what a user gives to a path: an address is fetched, and a path is what it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dqrelo_gguf.address import cache, hub
from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.parse import Address, HubAddress, parse
from dqrelo_gguf.errors import printable


def local(path: str | os.PathLike[str], kind: Kind) -> Path:
    """The path of what an address or a path names. What was fetched, and of which version, is said on stderr.

    Args:
        path: an address (docs/addresses.md), or a path, which need not exist.
        kind: what it is wanted for; it decides what of a repository is meant.

    Raises:
        InputError: it is no address, or cannot be had.
        DiskFullError: the cache has no room for it.
    """
    found = parse(path)
    return found if isinstance(found, Path) else fetched(found, kind)[0]


def fetched(address: Address, kind: Kind) -> tuple[Path, str]:
    """The path of what an address names, and the address with its version, which is said on stderr.

    Raises:
        InputError, DiskFullError: it cannot be had.
    """
    target, pinned = hub.fetch(address, kind) if isinstance(address, HubAddress) else cache.fetch(address)
    print(f"{printable(pinned)}: {printable(str(target))}", file=sys.stderr, flush=True)
    return target, pinned


def all_local(paths: Sequence[str | os.PathLike[str]], kind: Kind) -> list[Path]:
    """`local` of each."""
    return [local(path, kind) for path in paths]

"""What environment variables say about downloads."""

from __future__ import annotations

import os
from pathlib import Path

from dqrelo_gguf.errors import InputError, shown

CACHE = "DQRELO_CACHE"
OFFLINE = "DQRELO_OFFLINE"
HUB_OFFLINE = "HF_HUB_OFFLINE"
ALLOW_HTTP = "DQRELO_ALLOW_HTTP"
MAX_DOWNLOAD = "DQRELO_MAX_DOWNLOAD"
CACHE_MAX = "DQRELO_CACHE_MAX"

# GiB of one address. The largest open models have more in 16 bits; a mistake or a hostile server should not fill a disk.
_MOST_GIB = 512
_TRUE = frozenset({"1", "on", "yes", "true"})


def cache_folder() -> Path:
    """Where files from anywhere but the Hub are kept, and the folders that are put together of files from the Hub."""
    given = os.environ.get(CACHE)
    return Path(given).expanduser().absolute() if given else Path("~/.cache/dqrelo").expanduser()


def is_offline() -> bool:
    """True if nothing may be asked for over the network."""
    return _is_set(OFFLINE) or _is_set(HUB_OFFLINE)


def allows_http() -> bool:
    """True if HTTP without TLS is allowed to other machines."""
    return _is_set(ALLOW_HTTP)


def max_bytes() -> int:
    """The most bytes that one address may need.

    Raises:
        InputError: the variable is no number of GiB.
    """
    return _gib(MAX_DOWNLOAD, os.environ.get(MAX_DOWNLOAD) or str(_MOST_GIB))


def cache_max_bytes() -> int | None:
    """The most bytes that the cache keeps after a download; None where it keeps everything.

    Raises:
        InputError: the variable is no number of GiB.
    """
    text = os.environ.get(CACHE_MAX)
    return _gib(CACHE_MAX, text) if text else None


def _gib(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10) or not 1 <= int(text) <= 1 << 20:
        raise InputError(f"{name}={shown(text)}: expected a whole number of GiB from 1 to {1 << 20}")
    return int(text) << 30


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in _TRUE

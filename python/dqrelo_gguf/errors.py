"""What can go wrong with the user's input: one exception class per cause.

Messages have the form `where: what is wrong, got X, expected Y. Hint.`, on one line.
"""

from __future__ import annotations

import errno
import re
from typing import NoReturn

# The disk is full, the quota is used up, or the file system cannot hold a file of this size.
_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class DqreloError(Exception):
    """Base class of every error that is the input's fault, not ours."""


class PinError(DqreloError):
    """The pinned gguf-py or conversion package is missing, or another one was imported first."""


class FormatError(DqreloError):
    """A file is not what docs/format.md (or GGUF) says it must be."""


class BaseMismatchError(DqreloError):
    """The delta was made for another base model."""


class ShapeError(DqreloError):
    """Two shapes that must agree do not."""


class InputError(DqreloError):
    """A file or an option that was given cannot be used."""


class NotAllowedError(InputError):
    """An address, or what it is redirected to, is none that may be asked (address/reach.py)."""


class NotThereError(InputError):
    """An address leads to nothing: the server, the store or the Hub has no such file."""


class TooLargeError(InputError):
    """A file elsewhere is larger than the limit.

    Args:
        text: how large.
        hint: what the user of a command can do; who asks a server cannot.
    """

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(f"{text}{hint}")
        self.text = text


class OutputExistsError(DqreloError):
    """The output exists and overwriting was not asked for."""


class NonFiniteError(DqreloError):
    """A tensor holds NaN or infinity, or a value too large for the type it is stored in."""


class CommandError(DqreloError):
    """A program that was started for a part of the work failed."""


class DiskFullError(DqreloError):
    """The output does not fit on its disk."""


def printable(text: str) -> str:
    """Text from a file as one line that cannot steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


# What a terminal shows nothing for, or turns what follows: controls, line and paragraph separators, marks and overrides of
# the writing direction, and everything else that Unicode calls a format character. The C++ reader has the same list.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
_SHOWN_BYTES = 120


def shown(text: str) -> str:
    """A text of a file as messages quote it: what cannot be seen is '?', and at most 120 bytes of UTF-8 are there."""
    visible = _INVISIBLE.sub("?", text[: _SHOWN_BYTES + 1])
    raw = visible.encode("utf-8", "surrogatepass")
    return visible if len(raw) <= _SHOWN_BYTES else raw[:_SHOWN_BYTES].decode("utf-8", "ignore") + "..."


def is_disk_full(error: OSError) -> bool:
    """True if a write failed for want of space."""
    return error.errno in _FULL_ERRNOS


def raise_os_error(error: OSError, where: str) -> NoReturn:
    """Raises the DqreloError that stands for a failed system call on the file `where`."""
    if is_disk_full(error):
        raise DiskFullError(f"{where}: the disk is full. Nothing was written; free some space and run again") from error
    raise InputError(f"{where}: {(error.strerror or str(error)).lower()}") from error

"""What the server and its resolver say to each other about one address: a line asks, a few lines answer.

    ask       ADDRESS
    answer    200, PATH, ADDRESS WITH ITS VERSION
    answer    STATUS, WHY

Each of these is a line with its end. The statuses are those of the HTTP answer that the server's client gets; cpp/server/delta-address.cpp
reads the answers.
"""

from __future__ import annotations

from dqrelo_gguf.errors import printable

MAX_ASK_BYTES = 8192  # of a line; an address has at most 4096 characters
MAX_ANSWER_BYTES = 16384

OK = 200
BAD_ADDRESS = 400
NOT_ALLOWED = 403
NOT_THERE = 404
TOO_LARGE = 413
SOURCE_FAILED = 502
UNAVAILABLE = 503
OUT_OF_TIME = 504


def found(path: str, address: str) -> bytes:
    """The answer with a file."""
    return _lines(OK, path, printable(address))


def refused(status: int, why: str) -> bytes:
    """The answer without one; why not, without credentials."""
    return _lines(status, printable(why)[: MAX_ANSWER_BYTES // 8])


def _lines(status: int, *lines: str) -> bytes:
    return "".join(f"{line}\n" for line in (status, *lines)).encode("utf-8", "surrogateescape")

"""Fetches one address for a server's client, in a process that ends with it: `python -m dqrelo_gguf.address.worker MAX_GIB PREFIX...`

The address comes on stdin, the answer goes to stdout (wire.py). The process ends when stdin does: then nobody waits any more. What is
here of a file by then stays, and the next process goes on with it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

from dqrelo_gguf.address import hub, settings, wire
from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.parse import Address, parse
from dqrelo_gguf.address.reach import REACH, AllowList, prefix_of, rule_for
from dqrelo_gguf.address.resolve import fetched
from dqrelo_gguf.errors import DiskFullError, InputError, NotAllowedError, NotThereError, TooLargeError


def answer_to(text: str, allowed: AllowList) -> bytes:
    """Fetches what an address names, if it is allowed. Whatever goes wrong is in the answer."""
    try:
        address = _address(text)
    except InputError as e:
        return wire.refused(wire.BAD_ADDRESS, str(e))
    try:
        allowed.require(address)
        REACH.confine(rule_for(address, allowed, hub.endpoint))
        path, pinned = fetched(address, Kind.DELTA)
        return wire.found(os.fspath(path.absolute()), pinned)
    except NotAllowedError as e:
        return wire.refused(wire.NOT_ALLOWED, str(e))
    except NotThereError as e:
        return wire.refused(wire.NOT_THERE, str(e))
    except TooLargeError as e:
        return wire.refused(wire.TOO_LARGE, f"{e.text}. --load-max-size of the server decides")
    except DiskFullError as e:
        return wire.refused(wire.UNAVAILABLE, str(e))
    except InputError as e:
        return wire.refused(wire.SOURCE_FAILED, str(e))
    except Exception as e:  # noqa: BLE001 - the text of what nobody foresaw may hold the query of the address
        return wire.refused(wire.SOURCE_FAILED, f"{address.label}: could not be fetched ({type(e).__name__})")


def _address(text: str) -> Address:
    """An address of a place elsewhere.

    Raises:
        InputError: it is none that is read, or names a file of this machine.
    """
    found = parse(text)
    if isinstance(found, Address):
        return found
    raise InputError("file:// names files of the server's own machine, and is not loaded by address")


def main(argv: Sequence[str]) -> None:
    """Runs the process."""
    answers = os.dup(1)
    os.dup2(2, 1)  # What a library prints is no answer.
    os.environ[settings.MAX_DOWNLOAD] = argv[0]
    allowed = AllowList(tuple(map(prefix_of, argv[1:])))
    text = sys.stdin.buffer.readline(wire.MAX_ASK_BYTES).decode("utf-8", "surrogateescape").removesuffix("\n")
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    os.write(answers, answer_to(text, allowed))
    os._exit(0)  # Threads of libraries may still wait for something.


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])

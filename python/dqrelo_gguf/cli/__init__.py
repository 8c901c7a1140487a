"""The commands. One file a command; this one holds what they share: how a command ends."""

from __future__ import annotations

import codecs
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from dqrelo_gguf.errors import DqreloError, is_disk_full, printable
from dqrelo_gguf.output import new_file

# A character that the terminal's or the pipe's encoding lacks is written as JSON escapes it: output is text or JSON.
ESCAPING = "dqrelo-escape"

# Behind the description of every command that takes models or deltas.
ADDRESSES = " Models and deltas may be addresses, such as hf://owner/repo/file@revision, s3:// and https:// (docs/addresses.md)."

EXIT_OK = 0
EXIT_FAILED = 1  # The module argparse itself exits with 2 on a usage error.


def run(main_fn: Callable[[], int | None], prog: str) -> int:
    """Runs a command and turns what is not our own bug into one line on stderr.

    Args:
        main_fn: the command; returns an exit code, None for 0.
        prog: the command's name, first word of the line.

    Returns:
        The exit code: 0, 1 after an error or an interrupt, or what main_fn returned.
    """
    _escape_what_streams_lack()
    try:
        with _terminate_like_interrupt():
            code = main_fn()
            sys.stdout.flush()
        return EXIT_OK if code is None else code
    except DqreloError as e:
        message = str(e)
    except KeyboardInterrupt:
        message = "interrupted, no output was left behind"
    except BrokenPipeError:
        # The reader of stdout has gone (`| head`). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except MemoryError:
        message = "out of memory"
    except OSError as e:
        message = _describe(e)
    print(f"{prog}: error: {printable(message)}", file=sys.stderr)
    return EXIT_FAILED


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """The handler of encoding errors: JSON's escape of every UTF-16 unit, half of a surrogate pair included."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)), error.end


def _escape_what_streams_lack() -> None:
    """Lets stdout and stderr take every name: a finished command must not fail because of where its report goes."""
    codecs.register_error(ESCAPING, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A caller may have put something else there.
            stream.reconfigure(errors=ESCAPING)


def json_text(document: dict[str, Any]) -> str:
    """A report as JSON, which has no NaN and no infinities."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(document: dict[str, Any], target: str, force: bool) -> None:
    """Writes a report to a file, or to stdout where the target is `-`.

    Args:
        document: the report.
        target: the file, checked before the work, or `-`.
        force: replace a file that is there.
    """
    if target == "-":
        sys.stdout.write(json_text(document))
        return
    with new_file(Path(target), force) as file:
        file.write(json_text(document).encode(errors=ESCAPING))


def _describe(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if is_disk_full(error):
        return f"{where}the disk is full"
    return f"{where}{(error.strerror or str(error)).lower()}"


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Lets SIGTERM unwind like Ctrl-C does, so that a half-written output is removed."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)

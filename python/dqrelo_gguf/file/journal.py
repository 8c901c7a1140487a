"""What is finished of a delta file, so that an interrupted conversion goes on after its last whole weight.

    NAME.dq.gguf.partial        the file as far as it is written
    NAME.dq.gguf.partial.log    a line with what the file is made of, one with its plan, and one for each weight that is on the disk

Each line begins with a checksum of the rest. The first one that is torn, or whose weight the file does not hold, ends the list.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from dqrelo_gguf.errors import InputError, OutputExistsError, shown
from dqrelo_gguf.file.open_file import NOT_REGULAR

_N_CHECK = 16  # hexadecimal digits of a line's checksum
_MAX_LOG_BYTES = 256 << 20


@dataclass(frozen=True)
class Finished:
    """A weight that is on the disk.

    Args:
        sha256: of each of its tensors.
        error_delta: WeightData's, as the two below.
        error_weight: see above.
        error_outputs: see above.
    """

    sha256: tuple[str, ...]
    error_delta: float
    error_weight: float
    error_outputs: float | None = None


class Journal:
    """The files beside a delta file that is being written.

    Args:
        outfile: the delta file.
        facts: what it is made of and how, by the name that a message gives it.
        resume: go on with what is there, and keep what is finished when the work ends early.
    """

    def __init__(self, outfile: Path, facts: Mapping[str, str], resume: bool = False) -> None:
        self.data_path = outfile.with_name(f"{outfile.name}.partial")
        self.resume = resume
        self._log_path = outfile.with_name(f"{outfile.name}.partial.log")
        self._facts = dict(facts)
        self._log: BinaryIO | None = None

    def check(self, force: bool) -> None:
        """Looks, before the work, at what an earlier conversion left.

        Args:
            force: throw it away, unless it is to go on.

        Raises:
            OutputExistsError: something is there, and nobody said what is to become of it.
            InputError: it was made of something else; the message says what.
        """
        found = [path for path in (self._log_path, self.data_path) if os.path.lexists(path)]
        if not found:
            return
        for path in found:
            if not stat.S_ISREG(path.lstat().st_mode):  # A pipe would be waited for, and a link leads elsewhere.
                raise InputError(f"{path}: {NOT_REGULAR}, expected what an interrupted conversion left. Remove it")
        if not self.resume and not force:
            raise OutputExistsError(
                f"{self.data_path}: is left of an interrupted conversion. Go on with --resume, or begin anew with --force"
            )
        with self._log_path.open("ab") as log:
            self._take(log)
        lines = self._lines()
        if self.resume and lines:
            self._check_facts(lines[0])
        if not self.resume or not lines:
            self.discard()

    def _check_facts(self, before: Any) -> None:
        before = before if isinstance(before, dict) else {}
        for name in sorted({*before, *self._facts}):
            then, now = before.get(name), self._facts.get(name)
            if then != now:
                raise InputError(
                    f"{self.data_path}: was begun with another {name} ({shown(str(then))}, now {shown(str(now))}). "
                    "Give what it was begun with, or leave out --resume and begin anew with --force"
                )

    def begin(self, plan: str, n_header_bytes: int, sizes: list[list[tuple[int, int]]]) -> list[Finished]:
        """Opens the log; what it says of weights that the file does not hold is dropped.

        Args:
            plan: a digest of what will be written; what belongs to another plan is thrown away.
            n_header_bytes: where the first weight begins.
            sizes: of each weight's tensors (bytes, padded bytes), in the order in which they are written.

        Returns:
            The weights that are there, in order.
        """
        self._log = self._log_path.open("ab")
        self._take(self._log)
        lines = self._lines()
        is_same = lines[:2] == [self._facts, plan]
        finished = list(self._held(lines[2:], n_header_bytes, sizes)) if is_same else []
        if not finished:
            self.data_path.unlink(missing_ok=True)
        self._log.truncate(0)
        for line in [self._facts, plan, *(asdict(f) for f in finished)]:
            self._append(line)
        return finished

    def _take(self, log: BinaryIO) -> None:
        """Makes sure that no other process writes this file; the system gives back what a killed one had taken."""
        if fcntl is None:
            return
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise InputError(f"{self.data_path}: is being written by another conversion. Wait for it") from e

    def _held(self, lines: list[Any], offset: int, sizes: list[list[tuple[int, int]]]) -> Iterator[Finished]:
        """The weights of these lines whose bytes the file holds, up to the first that it does not."""
        try:
            file = self.data_path.open("rb")
        except OSError:
            return
        with file:
            file.seek(offset)
            for line, tensors in zip(lines, sizes, strict=False):
                found = _finished(line)
                if found is None or len(found.sha256) != len(tensors):
                    return
                for sha256, (n_bytes, n_padded) in zip(found.sha256, tensors, strict=True):
                    raw = file.read(n_padded)
                    if len(raw) != n_padded or hashlib.sha256(memoryview(raw)[:n_bytes]).hexdigest() != sha256:
                        return
                yield found

    def add(self, finished: Finished, file: BinaryIO) -> None:
        """Notes a weight, once its bytes are on the disk."""
        file.flush()
        os.fsync(file.fileno())
        self._append(asdict(finished))

    def _append(self, line: Any) -> None:
        assert self._log is not None
        text = json.dumps(line).encode()
        self._log.write(hashlib.sha256(text).hexdigest()[:_N_CHECK].encode() + b" " + text + b"\n")
        self._log.flush()

    def _lines(self) -> list[Any]:
        """What the log says, up to the first torn line."""
        try:
            if self._log_path.stat().st_size > _MAX_LOG_BYTES:
                return []
            raw = self._log_path.read_bytes()
        except OSError:
            return []
        found = []
        for line in raw.split(b"\n")[:-1]:  # Behind the last end of a line there is nothing, or half a line.
            check, _, text = line.partition(b" ")
            if hashlib.sha256(text).hexdigest()[:_N_CHECK].encode() != check:
                break
            try:
                found.append(json.loads(text))
            except (ValueError, RecursionError):  # The checksum keeps off accidents alone.
                break
        return found

    def close(self, keep: bool) -> None:
        """Ends the work: both files stay if they are to be gone on with."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if not keep:
            self.discard()

    def discard(self) -> None:
        """Removes both files."""
        for path in (self._log_path, self.data_path):
            with contextlib.suppress(OSError):
                path.unlink()


def _finished(line: Any) -> Finished | None:
    try:
        return Finished(tuple(line["sha256"]), line["error_delta"], line["error_weight"], line["error_outputs"])
    except (KeyError, TypeError):
        return None

"""Writes a delta file, one weight at a time.

The header's size does not depend on what is learned while writing (digests, errors), so it is written with placeholders
first and again at the end; the data in between is streamed. The file grows under a temporary name beside the target and
is renamed when whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from dqrelo_gguf.errors import FormatError, ShapeError, raise_os_error
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import pack_header
from dqrelo_gguf.file.journal import Finished, Journal
from dqrelo_gguf.file.layout import WeightSpec, delta_ratio, padded_bytes
from dqrelo_gguf.file.metadata import DeltaMeta, metadata_fields
from dqrelo_gguf.file.weight_data import Pack, WeightData, packed
from dqrelo_gguf.output import NewFile, check_target


class DeltaWriter:
    """Writes the delta file `path`; a context manager.

    Entering creates a temporary file beside the target; leaving completes it and renames it, or removes it after an
    exception. The same arguments and data give the same bytes.

    Args:
        path: the target.
        meta: the file's metadata.
        specs: the weights in the order in which they will be written.
        force: replace an existing target.
        journal: notes each finished weight, and has those of an earlier, interrupted writer; None for none.

    Raises:
        OutputExistsError, InputError, DiskFullError, FormatError, ShapeError, NonFiniteError: before anything is written.

    Example:
        >>> with DeltaWriter("ft.dq.gguf", meta, specs) as writer:    # doctest: +SKIP
        ...     for spec in specs:
        ...         writer.write(compress(spec))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        meta: DeltaMeta,
        specs: Sequence[WeightSpec],
        force: bool = False,
        journal: Journal | None = None,
    ) -> None:
        self.path = Path(path)
        self._meta = meta
        self._specs = list(specs)
        _check_specs(self._specs)
        self._sha256: list[str] = []  # They are those of the tensors written.
        self._errors: list[tuple[float, float]] = []  # (error_delta, error_weight) of each weight written
        self._n_header_bytes = len(self._header())
        check_target(self.path, force, self.n_file_bytes)
        self._journal = journal
        self._new = NewFile(self.path, force, None if journal is None else journal.data_path)
        self._file: BinaryIO | None = None
        self.finished: list[Finished] = []  # The weights that an interrupted writer has left, known once it is entered.

    @property
    def n_file_bytes(self) -> int:
        """Bytes that the finished file will have."""
        return self._n_header_bytes + sum(spec.n_file_bytes for spec in self._specs)

    @property
    def ratio(self) -> float:
        return delta_ratio(self._specs)

    def __enter__(self) -> Self:
        try:
            self._file = self._open()
        except OSError as e:
            self._discard(keep=self._keeps)
            raise_os_error(e, str(self.path))
        except BaseException:
            self._discard(keep=self._keeps)
            raise
        return self

    @property
    def _keeps(self) -> bool:
        """True if what is finished stays where the work ends early."""
        return self._journal is not None and self._journal.resume

    def _open(self) -> BinaryIO:
        """The file, at the place where the next weight is written."""
        header = self._header()
        if self._journal is not None:
            sizes = [[(t.n_bytes, padded_bytes(t.n_bytes)) for t in spec.tensors()] for spec in self._specs]
            self.finished = self._journal.begin(hashlib.sha256(header).hexdigest(), len(header), sizes)
        file = self._new.open(again=bool(self.finished))
        if not self.finished:
            file.write(header)
            return file
        self._sha256 = [sha256 for f in self.finished for sha256 in f.sha256]
        self._errors = [(f.error_delta, f.error_weight) for f in self.finished]
        file.seek(len(header) + sum(spec.n_file_bytes for spec in self._specs[: len(self.finished)]))
        file.truncate()
        return file

    def _discard(self, keep: bool) -> None:
        """Removes what is not finished, or leaves it to be gone on with."""
        if keep:
            self._new.close()
        else:
            self._new.discard()
        if self._journal is not None:
            self._journal.close(keep)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except OSError as e:
            raise_os_error(e, str(self.path))
        finally:
            self._file = None
            self._discard(keep=kind is not None and self._keeps)

    def write(self, data: WeightData | Pack) -> None:
        """Writes the next weight.

        Raises:
            ShapeError: an array does not fit the weight's spec.
            NonFiniteError: an array holds NaN or infinity, or overflows its stored type.
            DiskFullError: the disk is full.
        """
        file = self._open_file()
        if len(self._errors) == len(self._specs):
            raise FormatError(f"{self.path}: all {len(self._specs)} weights are written already")
        spec = self._specs[len(self._errors)]
        pack = data if isinstance(data, Pack) else packed(spec, data)
        _check_sizes(spec, pack)
        n_before = len(self._sha256)
        try:
            for raw in pack.tensors:
                self._sha256.append(hashlib.sha256(raw.data).hexdigest())
                file.write(raw.data)
                file.write(bytes(padded_bytes(raw.size) - raw.size))
            errors = pack.error_delta, pack.error_weight
            if self._journal is not None:
                self._journal.add(Finished(tuple(self._sha256[n_before:]), *errors, pack.error_outputs), file)
        except OSError as e:
            raise_os_error(e, str(self.path))
        self._errors.append(errors)

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("DeltaWriter is used outside its with block")
        return self._file

    def _finish(self) -> None:
        file = self._open_file()
        if len(self._errors) != len(self._specs):
            raise FormatError(f"{self.path}: {len(self._errors)} of {len(self._specs)} weights were written")
        file.seek(0)
        file.write(self._header())
        self._new.finish()

    def _header(self) -> bytes:
        """The header as it is after what was written so far; always of the same size."""
        fields = metadata_fields(self._meta, self._specs, self._sha256, self._errors)
        return pack_header(fields, [(t.name, t.ne, t.type) for spec in self._specs for t in spec.tensors()])


def _check_sizes(spec: WeightSpec, pack: Pack) -> None:
    expected, got = [tensor.n_bytes for tensor in spec.tensors()], [raw.size for raw in pack.tensors]
    if got != expected:
        raise ShapeError(f"{spec.name}: its tensors have {got} bytes, expected {expected}")


def _check_specs(specs: Sequence[WeightSpec]) -> None:
    if not specs:
        raise FormatError("delta: has no weights, expected at least one. Is the fine-tune the base itself?")
    seen = set()
    for spec in specs:
        spec.check()
        if spec.name in seen:
            raise FormatError(f"{spec.name}: occurs twice")
        seen.add(spec.name)
        for tensor in spec.tensors():
            if len(tensor.name.encode("utf-8")) > fmt.MAX_NAME_BYTES:
                raise FormatError(f"{tensor.name}: name is longer than {fmt.MAX_NAME_BYTES} bytes, ggml's limit")

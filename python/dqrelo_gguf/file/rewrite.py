"""A delta file with other metadata and the same tensors, in place of itself."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from dqrelo_gguf.errors import FormatError
from dqrelo_gguf.file.container import pack_header
from dqrelo_gguf.file.quality import PREFIX, quality_fields
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.output import check_target, new_file

_COPY_BYTES = 1 << 22


def stamp_quality(path: Path, record: dict[str, object], content_hash: str) -> None:
    """Writes a quality record into a delta file; one that it has is replaced.

    The file is replaced by a new one when that is whole, with its permissions; of a link, the file that it leads to. Content
    hash and tensors stay.

    Args:
        path: the file.
        record: names of fields and values (quality.RULES).
        content_hash: what was measured.

    Raises:
        FormatError: the file is no sound delta, or another one by now.
        DiskFullError: there is no room for it twice.
        InputError: it cannot be written.
    """
    target = path.resolve()
    reader = DeltaReader(target)
    if reader.content_hash != content_hash:
        raise FormatError(f"{path}: is another delta by now than was measured. Measure it again")
    fields = [(key, value) for key, value in reader.fields().items() if not key.startswith(PREFIX)]
    fields += quality_fields(dict(record))
    tensors = [(info.name, info.ne, info.type) for info in reader.tensor_infos]
    check_target(target, force=True, n_bytes=target.stat().st_size)
    with new_file(target, force=True) as out:
        _take_over_access(out.fileno(), target)
        out.write(pack_header(fields, tensors))
        with target.open("rb") as old:
            old.seek(reader.data_start)
            shutil.copyfileobj(old, out, _COPY_BYTES)


def _take_over_access(fd: int, target: Path) -> None:
    status = target.stat()
    if hasattr(os, "fchown"):
        with contextlib.suppress(PermissionError):  # Only root gives files away; its group may be another one of ours.
            os.fchown(fd, status.st_uid, status.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(fd, status.st_mode & 0o7777)

"""Writing GGUF files with gguf's writer: its last calls, and the metadata of a file that is copied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqrelo_gguf._pin import gguf


def finish(writer: gguf.GGUFWriter, path: Path | None = None) -> None:
    """Writes the file; `path` is for a writer that was made without one."""
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_metadata(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, changes: Mapping[str, Any] | None = None) -> None:
    """Gives a new writer the metadata of a file, with other values for the keys of `changes`; None leaves one out."""
    writer.kv_data[0].clear()
    for key, field in reader.fields.items():
        value = (changes or {}).get(key, field.contents())
        if key.startswith("GGUF.") or value is None or value == []:
            # The writer counts the first kind itself, and refuses empty arrays.
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, field.types[0], sub_type=sub_type)

"""Checks of a Hugging Face directory's weight files, before anything is read from them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dqrelo_gguf.errors import InputError

_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.safetensors)")


def check_weight_files(path: Path) -> None:
    """Checks that every safetensors file that the directory speaks of is there and whole.

    Raises:
        InputError: names the file that is missing, truncated or no safetensors file.
    """
    names = _from_index(path)
    if names is None:
        names = sorted(p.name for p in path.glob("model*.safetensors"))
        names = sorted({n for name in names for n in _siblings(name)})
    if not names and (path / "adapter_config.json").is_file():
        raise InputError(f"{path}: is a LoRA adapter, expected a full fine-tune. Merge it into its base first")
    if not names and not any(path.glob("pytorch_model*.bin")):
        raise InputError(f"{path}: has no model*.safetensors, expected a Hugging Face model directory")
    for name in names:
        _check_file(path / name, len(names))


def _from_index(path: Path) -> list[str] | None:
    """The files that the index names, or None without an index."""
    index = path / _INDEX
    if not index.is_file():
        return None
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as e:
        raise InputError(f"{index}: is not an index of safetensors files. Truncated download?") from e


def _siblings(name: str) -> list[str]:
    """`model-00001-of-00003.safetensors` has three siblings, itself among them."""
    m = _SHARD.fullmatch(name)
    if m is None:
        return [name]
    return [f"{m[1]}-{i + 1:05d}-of-{m[3]}{m[4]}" for i in range(int(m[3]))]


def _check_file(path: Path, n_files: int) -> None:
    if not path.is_file():
        raise InputError(
            f"{path.parent}: shard '{path.name}' is missing, expected {n_files} files. Incomplete download?"
        )
    n_file_bytes = path.stat().st_size
    with path.open("rb") as f:
        n_header = int.from_bytes(f.read(8), "little")
        if n_file_bytes < 8 or n_header > n_file_bytes - 8:
            raise InputError(
                f"{path}: has {n_file_bytes} bytes, its header alone needs {8 + n_header}. Truncated download?"
            )
        header = _parse_header(path, f.read(n_header))
    n_expected = 8 + n_header + max((t["data_offsets"][1] for t in header), default=0)
    if n_file_bytes != n_expected:
        raise InputError(f"{path}: has {n_file_bytes} bytes, its header says {n_expected}. Truncated download?")


def _parse_header(path: Path, raw: bytes) -> list[dict[str, Any]]:
    try:
        header = json.loads(raw)
        tensors = [t for name, t in header.items() if name != "__metadata__"]
        if all(len(t["data_offsets"]) == 2 for t in tensors):
            return tensors
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise InputError(f"{path}: is not a safetensors file, its header cannot be read")

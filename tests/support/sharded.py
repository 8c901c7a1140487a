"""Directories of several shards, and the bytes of what lies in a directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.web_server import Served, WebServer, serving


def write_sharded(source: Path, target: Path, n_shards: int = 3) -> Path:
    """A copy of a model directory whose weights are spread over shards, with an index."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(source / "model.safetensors")
    weight_map = {}
    for i in range(n_shards):
        file = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        own = {name: weights[name] for name in sorted(weights)[i::n_shards]}
        save_file(own, target / file, {"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder on a web server of this machine; its address."""
    with serving(WebServer()) as web:
        web.files |= {f"/{folder.name}/{name}": Served.of(data) for name, data in contents(folder).items()}
        yield f"{web.url}/{folder.name}"


def disk_bytes(*folders: Path) -> int:
    """What lies below some folders; links count for nothing."""
    return sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file() and not p.is_symlink())

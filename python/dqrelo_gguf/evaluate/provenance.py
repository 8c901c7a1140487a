"""What a figure was measured with and on: versions, commits, machine, files."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqrelo_gguf.errors import raise_os_error
from dqrelo_gguf.file.model_file import shards
from dqrelo_gguf.model.weight_files import find_weight_files
from dqrelo_gguf.native import core
from dqrelo_gguf.progress import Phases
from dqrelo_gguf.version import __version__

_PIECE_BYTES = 1 << 22


@dataclass(frozen=True)
class FileFacts:
    """A file, and the SHA-256 of its bytes."""

    path: str
    n_bytes: int
    sha256: str


def program_name() -> str:
    """Program and version."""
    return f"dqrelo-eval {__version__}"


def software() -> dict[str, Any]:
    """Versions and commits."""
    import numpy
    import torch

    machine = core.machine()
    return {
        "program": program_name(),
        "commit": _commit(),
        "llama_cpp_commit": machine["build_commit"],
        "llama_cpp_build": machine["build_number"],
        "numpy": numpy.__version__,
        "torch": torch.__version__,
    }


def hardware() -> dict[str, Any]:
    """The machine."""
    machine = core.machine()
    return {name: machine[name] for name in ("cpu_info", "gpu_info", "backends", "isa")}


def model_files(path: Path) -> list[Path]:
    """The files of a model: of a GGUF all shards, of a directory those that decide what it computes."""
    if path.is_dir():
        weights = {path / name for name in find_weight_files(path).names}
        return sorted(weights.union(*(path.glob(kind) for kind in ("*.json", "*.model", "*.jinja"))))
    return shards(path)


def hashed(paths: list[Path], phases: Phases) -> list[FileFacts]:
    """Reads files whole for their SHA-256.

    Args:
        paths: the files.
        phases: shows the progress.
    """
    sizes = [path.stat().st_size for path in paths]
    facts = []
    with phases("hashing", sum(sizes)) as progress:
        for path, n_bytes in zip(paths, sizes, strict=True):
            digest = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while piece := file.read(_PIECE_BYTES):
                        digest.update(piece)
                        progress.step(len(piece), path.name)
            except OSError as e:
                raise_os_error(e, str(path))
            facts.append(FileFacts(str(path), n_bytes, digest.hexdigest()))
    return facts


def joint_sha256(digests: list[str]) -> str:
    """Of one file its own; of several the SHA-256 of theirs, one hex digest a line, in order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(f"{d}\n" for d in digests).encode()).hexdigest()


def _commit() -> str | None:
    """The source tree's commit, with `+` where it was changed; None where the package is installed."""
    root = Path(__file__).resolve().parents[3]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--exclude=*", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None

"""Do a worker and the conversion see the same files, with the same programs? If not, its bytes would be others.

A file is known by its size and by blocks of it at equal distances. Its time does not count: a copy on the disk of another
machine has another one.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import dqrelo_gguf.convert
from dqrelo_gguf.convert.facts import sample_of
from dqrelo_gguf.convert.sources import Sources
from dqrelo_gguf.errors import InputError, shown
from dqrelo_gguf.version import __version__

# The program, by the name that messages give it.
_OURS = "dqrelo-gguf"


@dataclass(frozen=True)
class View:
    """What a process sees and is.

    Args:
        files: a digest of each file, by input and file name.
        programs: the version of each program that decides the bytes.
        processor: which instructions its arithmetic uses.
        missing: the first input that is not there, with its path; None where all are.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)
    processor: str = ""
    missing: str | None = None


def view_of(sources: Sources) -> View:
    """What this process sees of the inputs of a conversion."""
    files = {}
    for name, paths in sources.files().items():
        for path in paths:
            if path.name.startswith(".") or (path.exists() and not path.is_file()):
                continue  # Nobody reads such an entry of a directory.
            try:
                files[f"{name} {path.name}"] = sample_of(path)
            except OSError:
                return View(missing=f"{name} {path}", programs=programs(), processor=_processor())
    return View(files, programs(), _processor())


def require_same(node: str, theirs: View, ours: View) -> None:
    """Compares a worker with this process.

    Args:
        node: what messages call its machine.
        theirs: what the worker sees.
        ours: what this process sees.

    Raises:
        InputError: another file, or another version of a program.
    """
    for program, wanted in ours.programs.items():
        found = theirs.programs.get(program, "none")
        if found != wanted:
            raise InputError(
                f"{node}: has {program} {shown(found)}, this machine {wanted}: deltas could have other bytes. "
                "Install the same version on all machines"
            )
    if theirs.missing is not None:
        raise InputError(
            f"{node}: does not have {shown(theirs.missing)}. Every machine must see the same files at the same paths"
        )
    for name in sorted({*ours.files, *theirs.files}):
        if ours.files.get(name) != theirs.files.get(name):
            problem = (
                "lacks"
                if name not in theirs.files
                else "sees another"
                if name in ours.files
                else "sees, and this machine does not,"
            )
            raise InputError(f"{node}: {problem} {shown(name)}. Every machine must see the same files")


def processor_note(node: str, theirs: View, ours: View) -> str | None:
    """What the report says of a worker with another kind of processor; None where it has the same."""
    if theirs.processor == ours.processor:
        return None
    return (
        f"{node}: computes with {theirs.processor}, this machine with {ours.processor}: bytes of the delta may differ "
        "from those of a conversion here"
    )


@cache
def programs() -> dict[str, str]:
    """The version of each program that decides the bytes. A version that was not raised would not show another source, so the sources count, too."""
    return {
        _OURS: f"{__version__} ({_digest_of_sources()})",
        "numpy": np.__version__,
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
    }


def _digest_of_sources() -> str:
    made = hashlib.sha256()
    root = Path(dqrelo_gguf.convert.__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        made.update(f"{path.relative_to(root).as_posix()}\0".encode())
        made.update(path.read_bytes())
    return made.hexdigest()[:8]


def _processor() -> str:
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"

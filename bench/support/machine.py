"""What a figure was measured on: command, commit, processor, instruction set, base."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def commit() -> str:
    """The commit that is measured; `+` marks uncommitted changes."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def isa(program: Path) -> str:
    """The instruction set that the operator of `program` takes on this machine, asked of the library beside it."""
    folders = (program.parent, program.parent.parent / "lib")
    libraries = [folder / "libggml-base.so" for folder in folders if (folder / "libggml-base.so").is_file()]
    if not libraries:
        return "unknown"
    library = ctypes.CDLL(str(libraries[0].resolve()))
    library.dqrelo_isa_name.restype = ctypes.c_char_p
    text: bytes = library.dqrelo_isa_name(library.dqrelo_isa_chosen())
    return text.decode()


def facts_of(program: Path, base: Path, n_threads: int) -> dict[str, object]:
    """What every report of this process begins with; `program` runs `base`."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "cpu": cpu(),
        "isa": isa(program),
        "threads": n_threads,
        "base": f"{base.name}, {base.stat().st_size:,} bytes",
    }


def heading(facts: Mapping[str, object]) -> str:
    """The facts, a line each, above a report's tables."""
    return "\n".join(f"# {name}: {value}" for name, value in facts.items())

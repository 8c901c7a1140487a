"""What a conversion is made of, by the names that messages give it: a resumed one must be made of the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.version import __version__

# A file is known by its size, its time, and blocks of it that lie at equal distances.
_N_BLOCKS = 64
_BLOCK_BYTES = 4096


def facts(inputs: Mapping[str, Iterable[Path]], texts: Mapping[str, str | None], options: Options) -> dict[str, str]:
    """What decides the bytes of a delta.

    Args:
        inputs: the files of each input, by its name.
        texts: options that are no files.
        options: the method.
    """
    found = {"version of dqrelo-gguf": __version__, "method": options.method_name}
    found |= {name: _digest(paths) for name, paths in inputs.items()}
    found |= {name: str(text) for name, text in texts.items()}
    return found | {f"--{name.replace('_', '-')}": str(value) for name, value in options.as_metadata().items()}


def _digest(paths: Iterable[Path]) -> str:
    made = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        if path.is_file():
            made.update(f"{path.name}\0".encode("utf-8", "surrogateescape"))
            made.update(f"{path.stat().st_mtime_ns} {sample_of(path)}\0".encode())
    return made.hexdigest()[:16]


def sample_of(path: Path) -> str:
    """A digest of a file's size and blocks.

    Raises:
        OSError: it cannot be read.
    """
    made = hashlib.sha256()
    with path.open("rb") as file:
        n_bytes = path.stat().st_size
        made.update(f"{n_bytes}\0".encode())
        for i in range(_N_BLOCKS):
            file.seek(n_bytes * i // _N_BLOCKS)
            made.update(file.read(_BLOCK_BYTES))
    return made.hexdigest()[:16]

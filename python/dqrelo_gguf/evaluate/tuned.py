"""The fine-tune as a GGUF that runs: a file as it is, a Hugging Face directory converted into a temporary folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

from dqrelo_gguf.errors import BaseMismatchError, DiskFullError, InputError
from dqrelo_gguf.file.layout import ne_text
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.checkpoint import HfCheckpoint
from dqrelo_gguf.model.vocabulary import BY_TOKEN, token_problem
from dqrelo_gguf.sizes import bytes_text

_HEADER_BYTES = 16 << 20  # metadata and vocabulary of a converted model, at most


@contextmanager
def runnable(tuned: Path, base: GgufModel, folder: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """The path of the fine-tune's GGUF, which is gone afterwards if it was made here.

    Args:
        tuned: a directory or a GGUF.
        base: its base.
        folder: where a converted one may lie.
        say: tells what is done.

    Raises:
        InputError: it is neither, or cannot be converted.
        DiskFullError: there is no room for the converted one.
    """
    if tuned.is_file():
        yield tuned
        return
    if not tuned.is_dir():
        raise InputError(f"{tuned}: no such file or directory, expected a Hugging Face directory or a GGUF file")
    checkpoint = HfCheckpoint(tuned, base)
    n_bytes = 2 * sum(prod(ne) for ne in checkpoint.shapes.values()) + _HEADER_BYTES
    free = shutil.disk_usage(folder).free
    say(f"converting {tuned} to F16 in {folder}: takes about {bytes_text(n_bytes)} of {bytes_text(free)} free")
    if n_bytes > free:
        raise DiskFullError(
            f"{folder}: needs {n_bytes} bytes for the converted fine-tune, has {free} free. Set TMPDIR, or give a GGUF"
        )
    with TemporaryDirectory(prefix=".dqrelo-eval-", dir=folder) as name:
        out = Path(name) / f"{tuned.resolve().name}-f16.gguf"
        checkpoint.write_gguf(out)
        yield out


def check_pair(base: GgufModel, tuned: GgufModel) -> None:
    """Checks that probabilities of both can be compared.

    Raises:
        BaseMismatchError: another architecture, other shapes, or another vocabulary.
    """
    if tuned.architecture != base.architecture:
        raise BaseMismatchError(
            f"{tuned.label}: its architecture is {tuned.architecture}, that of base {base.label} is {base.architecture}"
        )
    for name, ne in base.shapes.items():
        own = tuned.shapes.get(name, ne)
        if own[:-1] != ne[:-1] or (own != ne and name not in BY_TOKEN):
            raise BaseMismatchError(
                f"{tuned.label}: is no fine-tune of base {base.label}: weight '{name}' is {ne_text(own)}, "
                f"expected {ne_text(ne)}"
            )
    problem = token_problem(base, tuned)
    if problem is not None:
        raise BaseMismatchError(
            f"{tuned.label}: is a fine-tune of another vocabulary than base {base.label}: {problem}"
        )


def end_token(model: GgufModel) -> int | None:
    """The token that ends a text."""
    field = model.field("tokenizer.ggml.eos_token_id")
    return None if field is None else int(field.value)

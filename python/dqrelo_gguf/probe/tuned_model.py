"""The fine-tune as a plain GGUF for the time of a measurement, and text that the models write themselves."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.convert.plain_model import write_plain
from dqrelo_gguf.convert.work import Work
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.layout import Type
from dqrelo_gguf.memory import available_bytes
from dqrelo_gguf.runtime.session import Runtime

Tokens = npt.NDArray[np.int32]

# Room that must be free beside what is counted.
SPARE_BYTES = 1 << 30
# What is read together, at most: texts, and tokens unless one text has more.
N_GRAPH_TEXTS, N_GRAPH_TOKENS = 16, 512
# With flash attention sums are split by the number of threads.
_FLASH_ATTN = "off"


@contextmanager
def plain_tuned(work: Work, what: str, n_disk: int, n_memory: int) -> Iterator[Path]:
    """The fine-tune in F16 in a temporary folder, where more files may be put; all of it goes at the end.

    Args:
        work: the conversion's inputs.
        what: is measured, for messages.
        n_disk: bytes of the disk that will be needed beside it.
        n_memory: the same of memory.

    Raises:
        InputError: there is no room.
    """
    n_own = 2 * sum(prod(ne) for ne in work.base.shapes.values())
    _check_room(what, n_own + n_disk, n_own + n_memory, work.folder)
    with tempfile.TemporaryDirectory(prefix=".dqrelo-probe-", dir=work.folder) as name:
        path = Path(name) / "tuned.gguf"
        write_plain(path, work.base, work.tuned_values, Type.F16)
        yield path


def _check_room(what: str, n_disk: int, n_memory: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < n_disk + SPARE_BYTES:
        raise InputError(f"{what} needs {n_disk} bytes in {folder}, which has {free} free")
    available = available_bytes()
    if available is not None and available < n_memory + SPARE_BYTES:
        raise InputError(f"{what} needs {n_memory} bytes of memory, {available} are free")


def open_plain(path: Path, n_seq: int, n_tokens: int, n_threads: int) -> Runtime:
    """A runtime for so many sequences of so many tokens, with the same results for any number of threads."""
    return Runtime(
        path,
        n_ctx=n_seq * n_tokens,
        n_seq_max=n_seq,
        n_threads=n_threads,
        flash_attn=_FLASH_ATTN,
        n_gpu_layers=0,
        kv_unified=False,  # A sequence attends to its own cells alone, and reads no others.
    )


def open_watched(path: Path, n_tokens: int, n_threads: int, *, changes: bool = False) -> Runtime:
    """A runtime for `visit_inputs`, with the same results for any number of threads.

    Args:
        path: the model.
        n_tokens: of the longest text.
        n_threads: of the CPU.
        changes: its weights can be set.
    """
    n_graph = max(n_tokens, N_GRAPH_TOKENS)
    return Runtime(
        path,
        n_ctx=n_graph,
        n_ubatch=n_graph,
        n_seq_max=N_GRAPH_TEXTS,
        n_threads=n_threads,
        flash_attn=_FLASH_ATTN,
        n_gpu_layers=0,
        use_mmap=not changes,
        watch=True,
    )


def start_of_text(rt: Runtime) -> Tokens:
    """The token that begins a text.

    Raises:
        InputError: the model has none.
    """
    start = rt.start_token
    if start is None:
        raise InputError("the model has no token that begins a text")
    return np.array([start], np.int32)


def drawn_texts(rt: Runtime, n_seq: int, n_tokens: int, seed: int) -> list[Tokens]:
    """Texts that a model writes from the beginning, each with its first token; those without any more are left out.

    Args:
        rt: the model.
        n_seq: how many.
        n_tokens: of each, at most.
        seed: text i is drawn with seed + i.
    """
    start = start_of_text(rt)
    drawn = rt.generate_tokens([start] * n_seq, max_tokens=n_tokens, temperature=1.0, seed=seed)
    return [np.concatenate([start, tokens]) for tokens in drawn if len(tokens) > 0]

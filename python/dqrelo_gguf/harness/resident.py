"""A base in memory with a context, for one model of the harness after another."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.room import Shape
from dqrelo_gguf.evaluate.tuned import end_token
from dqrelo_gguf.harness.arguments import Arguments
from dqrelo_gguf.memory import available_bytes
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from dqrelo_gguf.sizes import bytes_text

MAX_LENGTH = 4096  # tokens that a model reads, where nobody says more and it was trained on more
_CELLS_BYTES = 192 << 20  # of keys and values, if one sequence needs no more
_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"


class Resident:
    """A base in memory. A context manager.

    Args:
        arguments: which base, and how it runs; the delta in them is not loaded.

    Raises:
        InputError: the file is missing or none that runs, or its context does not fit into memory.
        FormatError: it is damaged.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        header = GgufModel(arguments.base)
        shape = Shape.of(header)
        n_train = header.field(f"{header.architecture}.context_length")
        self.max_length = arguments.n_ctx or min(MAX_LENGTH, MAX_LENGTH if n_train is None else int(n_train.value))
        self.end_token = end_token(header)
        self.has_space_prefix = _has_space_prefix(header)
        longest = self.max_length + 1  # The last token is scored, and not read.
        n_cells = max(longest, min(arguments.n_seq * longest, _CELLS_BYTES // max(shape.cell_bytes, 1)))
        _check_memory(n_cells * shape.cell_bytes, self.max_length)
        self.runtime = Runtime(
            arguments.base,
            n_ctx=n_cells,
            n_seq_max=arguments.n_seq,
            n_batch=shape.n_ubatch(1),
            n_ubatch=shape.n_ubatch(1),
            n_threads=arguments.n_threads,
            n_gpu_layers=arguments.n_gpu_layers,
            flash_attn=arguments.flash_attn,
            type_k=arguments.type_k,
            type_v=arguments.type_v,
            allow_other_base=arguments.allow_other_base,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.runtime.close()

    def load(self, path: Path) -> Delta:
        """A delta of the base.

        Raises:
            InputError: it is missing, damaged or of another base.
        """
        return self.runtime.load_delta(path)

    def token_text(self, token: int | None) -> str:
        """A token as templates write it; no text where there is no token."""
        return "" if token is None else self.runtime.detokenize(np.array([token], np.int32), special=True)


def _check_memory(n_bytes: int, max_length: int) -> None:
    available = available_bytes()
    if available is not None and n_bytes > available:
        raise InputError(
            f"a context of {max_length} tokens needs {bytes_text(n_bytes)} of memory, {bytes_text(available)} are free. "
            "Use a smaller n_ctx"
        )


def _has_space_prefix(header: GgufModel) -> bool:
    """Whether the tokenizer puts a space before a text, and takes it off when it decodes one."""
    stated = header.field(_SPACE_PREFIX)
    if stated is not None:
        return bool(stated.value)
    kind = header.field("tokenizer.ggml.model")
    return kind is not None and kind.value == "llama"

"""One base GGUF and many deltas of it, from Python: logits, log-likelihoods and text, mixed in one batch.

>>> with Runtime("base.gguf") as rt:                             # doctest: +SKIP
...     math = rt.load_delta("math.dq.gguf")
...     rt.generate(["2 + 2 =", "2 + 2 ="], delta=[None, math])  # the base, and the fine-tune
"""

from __future__ import annotations

import os
from typing import Self

import numpy as np

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.native import core
from dqrelo_gguf.runtime import process
from dqrelo_gguf.runtime.arguments import count, existing_file, number
from dqrelo_gguf.runtime.calls import Calls
from dqrelo_gguf.runtime.deltas import Delta

LARGEST_F32 = float(np.finfo(np.float32).max)


class Runtime(Calls):
    """A base model in memory. Deltas are loaded for it, and every call says which sequence runs on which delta.

    A call evaluates its sequences together, up to `n_seq_max` and `n_ctx` tokens of them at a time, and leaves nothing
    behind: each starts from an empty memory. Calls release the GIL; calls on one Runtime from several threads wait for
    each other. Ctrl-C ends a running call. Close it, or use it in a `with` statement.

    Args:
        base: the base GGUF; of a split file, the first part. It may be an address (docs/addresses.md), which is fetched first.
        n_ctx: tokens that the sequences evaluated together may hold in all; 0 takes the model's training length.
        n_batch: tokens that are submitted at once, `n_ubatch` of them a graph.
        n_ubatch: see `n_batch`.
        n_seq_max: sequences that are evaluated together, at most 256.
        n_threads: CPU threads; None takes all.
        n_gpu_layers: layers kept on a GPU, where there is one; -1 means all.
        flash_attn: "auto", "on" or "off".
        type_k: type of the cached keys: f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0 or q5_1.
        type_v: type of the cached values, one of the same.
        use_mmap: map the base file instead of reading it.
        repack: let the CPU backend keep some weights in a layout of its own.
        kv_unified: False gives each sequence a memory of its own, of n_ctx / n_seq_max tokens.
        allow_other_base: accept deltas that were made from another quantisation of this base.
        verify: check the digests of a delta at every load; otherwise once for a file, until it changes.
        max_scale: the largest absolute value of a `scale`: larger ones make a model's numbers overflow.
        watch: let `visit_inputs` be called. Each operation of a graph is computed by itself then, which is slower; a model with
            recurrent layers has one sequence at a time (n_seq_max is 1).
        verbose: print llama.cpp's log to stderr (for the whole process).

    Raises:
        InputError: the file cannot be loaded or an option has a bad value.
    """

    def __init__(
        self,
        base: str | os.PathLike[str],
        *,
        n_ctx: int = 4096,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_seq_max: int = 8,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
        flash_attn: str = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        use_mmap: bool = True,
        repack: bool = True,
        kv_unified: bool = True,
        allow_other_base: bool = False,
        verify: bool = False,
        max_scale: float = 4.0,
        watch: bool = False,
        verbose: bool = False,
    ) -> None:
        params = core.SessionParams()
        params.n_ctx = count("n_ctx", n_ctx, 0)
        params.n_batch = count("n_batch", n_batch, 1)
        params.n_ubatch = count("n_ubatch", n_ubatch, 1)
        params.n_seq_max = count("n_seq_max", n_seq_max, 1)
        params.n_threads = 0 if n_threads is None else count("n_threads", n_threads, 1)
        params.n_gpu_layers = count("n_gpu_layers", n_gpu_layers, -1)
        params.flash_attn = flash_attn
        params.type_k = type_k
        params.type_v = type_v
        params.use_mmap = use_mmap
        params.repack = repack
        params.kv_unified = kv_unified
        params.watch = watch
        params.verbose = verbose
        self._allow_other_base = allow_other_base
        self._verify = verify
        super().__init__(
            core.Session(existing_file(local(base, Kind.MODEL)), params),
            number("max_scale", max_scale, 1.0, LARGEST_F32),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._session.closed else self._session.description
        return f"Runtime({self._session.path!r}, {state})"

    def close(self) -> None:
        """Frees the deltas, the context and the model, once no call runs any more. Later calls raise InputError.

        In a forked child it does nothing: the memory is the parent's.
        """
        if process.is_own(self):
            self._close()

    @process.native_call
    def _close(self) -> None:
        self._session.close()

    @property
    def path(self) -> str:
        """The base file."""
        return self._session.path

    @property
    def description(self) -> str:
        """Architecture, size and type of the base, as llama.cpp words it."""
        return self._session.description

    @property
    def chat_template(self) -> str | None:
        """The base's chat template (Jinja), None where it has none."""
        return self._session.chat_template or None

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary: the length of a row of logits."""
        return self._session.n_vocab

    @property
    def n_embd(self) -> int:
        """Width of the hidden state."""
        return self._session.n_embd

    @property
    def n_layer(self) -> int:
        """Layers of the base."""
        return self._session.n_layer

    @property
    def n_ctx(self) -> int:
        """Tokens that the sequences evaluated together may hold in all."""
        return self._session.n_ctx

    @property
    def n_ctx_train(self) -> int:
        """Tokens of the longest sequence in the base's training."""
        return self._session.n_ctx_train

    @property
    def n_ubatch(self) -> int:
        """Tokens a graph."""
        return self._session.n_ubatch

    @property
    def n_seq_max(self) -> int:
        """Sequences that are evaluated together."""
        return self._session.n_seq_max

    @property
    def n_evaluated(self) -> int:
        """Tokens that calls have evaluated since this runtime was opened, without those of calls that failed."""
        return self._session.n_evaluated

    @property
    def n_threads(self) -> int:
        """CPU threads."""
        return self._session.n_threads

    @process.native_call
    def load_delta(
        self,
        path: str | os.PathLike[str],
        *,
        allow_other_base: bool | None = None,
        verify: bool | None = None,
    ) -> Delta:
        """Loads a delta file for this base, and checks that the model's graphs can apply all of it.

        Args:
            path: the `.dq.gguf` file, or an address of one. It is read into memory, and may change or go once it is loaded.
            allow_other_base: as in the constructor, whose value None takes.
            verify: as in the constructor, whose value None takes.

        Returns:
            The delta: `name`, `content_hash`, `ratio`, `n_bytes`, `n_weights`, `inert` (weights that no graph of this
            runtime reads), `chat_template`, `eog_tokens`, `same_base_file`, `meta(key)`, `close()`. It is freed by
            `close()`, by the end of a `with` statement, with its last reference, or with the runtime.

        Raises:
            InputError: the file is damaged, made for another base, or changes a weight that cannot be applied.
        """
        return self._session.load_delta(
            existing_file(local(path, Kind.DELTA)),
            self._allow_other_base if allow_other_base is None else allow_other_base,
            self._verify if verify is None else verify,
            self._max_scale,
        )

"""One base GGUF and many deltas of it, from Python: logits, log-likelihoods and text, mixed in one batch.

>>> with Runtime("base.gguf") as rt:                             # doctest: +SKIP
...     math = rt.load_delta("math.dq.gguf")
...     rt.generate(["2 + 2 =", "2 + 2 ="], delta=[None, math])  # the base, and the fine-tune
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

import dqrelo_gguf
from dqrelo_gguf.errors import InputError

# A C++ build beside a source tree has the native module in a directory of its own.
_CORE_DIR = os.environ.get("DQRELO_CORE_DIR")
if _CORE_DIR:
    dqrelo_gguf.__path__.append(_CORE_DIR)
try:
    from dqrelo_gguf import _core
except ImportError as error:
    raise ImportError(
        f"dqrelo_gguf._core: {error}. Install the wheel, or set DQRELO_CORE_DIR to a C++ build's directory that has it"
    ) from error

Delta = _core.Delta

Tokens: TypeAlias = NDArray[np.integer] | Sequence[int]
"""Token ids of one sequence: a 1-D integer array or a list of ints."""

Prompt: TypeAlias = str | Tokens
"""A text, which is tokenized with the special tokens that its model wants in front, or tokens as they are."""

_INT32 = np.iinfo(np.int32)


class Runtime:
    """A base model in memory. Deltas are loaded for it, and every call says which sequence runs on which delta.

    A call evaluates its sequences together, up to `n_seq_max` and `n_ctx` tokens of them at a time, and leaves nothing
    behind: each starts from an empty memory. Calls release the GIL; calls on one Runtime from several threads wait for
    each other. Ctrl-C ends a running call. Close it, or use it in a `with` statement.

    Args:
        base: the base GGUF; of a split file, the first part.
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
        verify: check the digest of every tensor of a delta when it is loaded.
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
        verbose: bool = False,
    ) -> None:
        params = _core.SessionParams()
        params.n_ctx = _count("n_ctx", n_ctx, 0)
        params.n_batch = _count("n_batch", n_batch, 1)
        params.n_ubatch = _count("n_ubatch", n_ubatch, 1)
        params.n_seq_max = _count("n_seq_max", n_seq_max, 1)
        params.n_threads = 0 if n_threads is None else _count("n_threads", n_threads, 1)
        params.n_gpu_layers = _count("n_gpu_layers", n_gpu_layers, -1)
        params.flash_attn = flash_attn
        params.type_k = type_k
        params.type_v = type_v
        params.use_mmap = use_mmap
        params.repack = repack
        params.kv_unified = kv_unified
        params.verbose = verbose
        self._allow_other_base = allow_other_base
        self._verify = verify
        self._session = _core.Session(_existing_file(base), params)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._session.closed else self._session.description
        return f"Runtime({self._session.path!r}, {state})"

    def close(self) -> None:
        """Frees the deltas, the context and the model, once no call runs any more. Later calls raise InputError."""
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
    def n_threads(self) -> int:
        """CPU threads."""
        return self._session.n_threads

    def load_delta(
        self,
        path: str | os.PathLike[str],
        *,
        allow_other_base: bool | None = None,
        verify: bool | None = None,
    ) -> Delta:
        """Loads a delta file for this base, and checks that the model's graphs can apply all of it.

        Args:
            path: the `.dq.gguf` file. It is mapped: keep it in place while the delta is in use.
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
            _existing_file(path),
            self._allow_other_base if allow_other_base is None else allow_other_base,
            self._verify if verify is None else verify,
        )

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True, delta: Delta | None = None
    ) -> NDArray[np.int32]:
        """The tokens of a text.

        Args:
            text: any text.
            add_special: add BOS and EOS where the model asks for them.
            parse_special: read special tokens written in the text as such.
            delta: whose BOS and EOS; None means the base's.

        Returns:
            int32 [n_tokens].
        """
        return self._session.tokenize(text, add_special, parse_special, delta)

    def detokenize(self, tokens: Tokens, *, special: bool = False) -> str:
        """The text of tokens ([n_tokens]).

        With `special`, control tokens are written out. Broken UTF-8 becomes U+FFFD.
        """
        return self._session.detokenize(_token_array(tokens), special).decode("utf-8", errors="replace")

    # A str is a sequence of str too, so the overloads overlap; the first that fits is meant.
    @overload
    def logits(  # type: ignore[overload-overlap]
        self, tokens: Prompt, delta: Delta | None = ..., *, scale: float = ...
    ) -> NDArray[np.float32]: ...

    @overload
    def logits(
        self,
        tokens: Sequence[Prompt],
        delta: Delta | Sequence[Delta | None] | None = ...,
        *,
        scale: float | Sequence[float] = ...,
    ) -> list[NDArray[np.float32]]: ...

    def logits(
        self,
        tokens: Prompt | Sequence[Prompt],
        delta: Delta | Sequence[Delta | None] | None = None,
        *,
        scale: float | Sequence[float] = 1.0,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """The logits after every token.

        Args:
            tokens: one sequence ([n_tokens]) or a list of sequences, which are evaluated together.
            delta: one for all sequences, or a list with a delta or None (the base) for each.
            scale: how much of the delta: 0 is the base, 1 the fine-tune. One, or a list.

        Returns:
            float32 [n_tokens, n_vocab] for one sequence, a list of them for a list.

        Raises:
            InputError: an empty or too long sequence, a token that is not in the vocabulary, a closed delta.
        """
        is_one, prompts = _prompts(tokens)
        deltas, scales = self._owners(len(prompts), delta, scale)
        rows = self._session.logits(self._tokens_of(prompts, deltas), deltas, scales)
        return rows[0] if is_one else rows

    def loglikelihood(
        self,
        pairs: Sequence[tuple[Prompt, Prompt]],
        delta: Delta | Sequence[Delta | None] | None = None,
        *,
        scale: float | Sequence[float] = 1.0,
    ) -> list[tuple[float, bool]]:
        """How probable each continuation is after its context, as lm-evaluation-harness counts it.

        Texts are tokenized together, so that the boundary falls as it does in running text; white space at the end of
        a context belongs to the continuation. Before an empty context stands BOS (EOS where there is no BOS).

        Args:
            pairs: (context, continuation), two texts or two token arrays each.
            delta: one for all pairs, or a list with a delta or None (the base) for each.
            scale: how much of the delta, one or a list.

        Returns:
            For each pair the sum of the natural-log probabilities of the continuation's tokens, and whether each of
            them was the most probable one.

        Raises:
            InputError: a pair without continuation tokens, or longer than the context.
        """
        deltas, scales = self._owners(len(pairs), delta, scale)
        encoded = [self._encode_pair(i, pair, owner) for i, (pair, owner) in enumerate(zip(pairs, deltas, strict=True))]
        return self._session.score([tokens for tokens, _ in encoded], [n for _, n in encoded], deltas, scales)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompts: Prompt,
        delta: Delta | None = ...,
        *,
        max_tokens: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        seed: int = ...,
        stop: str | Sequence[str] | None = ...,
        scale: float = ...,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompts: Sequence[Prompt],
        delta: Delta | Sequence[Delta | None] | None = ...,
        *,
        max_tokens: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        seed: int = ...,
        stop: str | Sequence[str] | None = ...,
        scale: float | Sequence[float] = ...,
    ) -> list[str]: ...

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        delta: Delta | Sequence[Delta | None] | None = None,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        scale: float | Sequence[float] = 1.0,
    ) -> str | list[str]:
        """Continues prompts, all in shared batches, each on its own delta and up to that delta's own end tokens.

        Args:
            prompts: one prompt or a list: texts, or token arrays ([n_tokens]).
            delta: one for all prompts, or a list with a delta or None (the base) for each.
            max_tokens: tokens to generate for each prompt at most.
            temperature: 0 takes the most probable token each time; above, tokens are drawn.
            top_k: draw from the k most probable tokens; 0 means all.
            top_p: draw from the most probable tokens that hold this share of the probability together.
            seed: prompt i draws with seed + i.
            stop: texts that end a generation; they are not part of it.
            scale: how much of the delta, one or a list.

        Returns:
            The text after the prompt, without the end token; a list of texts for a list.

        Raises:
            InputError: an empty prompt, or one that leaves no room for `max_tokens` in the context.
        """
        is_one, items = _prompts(prompts)
        params = _core.GenerateParams()
        params.max_tokens = _count("max_tokens", max_tokens, 1)
        params.temperature = _number("temperature", temperature, 0.0, math.inf)
        params.top_k = _count("top_k", top_k, 0)
        params.top_p = _number("top_p", top_p, 0.0, 1.0)
        params.seed = _count("seed", seed, 0)
        params.stop = _stop_texts(stop)
        deltas, scales = self._owners(len(items), delta, scale)
        generated = self._session.generate(self._tokens_of(items, deltas), deltas, scales, params)
        texts = [text.decode("utf-8", errors="replace") for text, _ in generated]
        return texts[0] if is_one else texts

    def _tokens_of(self, prompts: Sequence[Prompt], deltas: Sequence[Delta | None]) -> list[NDArray[np.int32]]:
        return [
            self.tokenize(prompt, delta=delta) if isinstance(prompt, str) else _token_array(prompt)
            for prompt, delta in zip(prompts, deltas, strict=True)
        ]

    def _owners(
        self, n: int, delta: Delta | Sequence[Delta | None] | None, scale: float | Sequence[float]
    ) -> tuple[list[Delta | None], list[float]]:
        """The delta and the scale of each of n sequences."""
        deltas = [delta] * n if delta is None or isinstance(delta, Delta) else list(delta)
        scales = [float(scale)] * n if isinstance(scale, (int, float)) else [float(value) for value in scale]
        if len(deltas) != n:
            raise InputError(f"delta: got a list of {len(deltas)}, expected one for each of {n} sequences")
        if len(scales) != n:
            raise InputError(f"scale: got a list of {len(scales)}, expected one for each of {n} sequences")
        for value in scales:
            _number("scale", value, -math.inf, math.inf)
        return deltas, scales

    def _encode_pair(self, i: int, pair: tuple[Prompt, Prompt], delta: Delta | None) -> tuple[NDArray[np.int32], int]:
        """The tokens of context and continuation, and how many are context."""
        context, continuation = pair
        if isinstance(context, str) and isinstance(continuation, str):
            n_space = len(context) - len(context.rstrip())
            context, continuation = context[: len(context) - n_space], context[len(context) - n_space :] + continuation
            head = self.tokenize(context, delta=delta)
            whole = self.tokenize(context + continuation, delta=delta)
            # Without a context only BOS, where the model adds one, stands before the continuation.
            n_context = len(head) if context else int(len(head) > 0 and len(whole) > 0 and head[0] == whole[0])
        elif isinstance(context, str) or isinstance(continuation, str):
            raise InputError(f"pair {i}: got a text and tokens, expected two texts or two token arrays")
        else:
            head = _token_array(context)
            whole = np.concatenate([head, _token_array(continuation)])
            n_context = len(head)
        if n_context == 0:
            prefix = self._session.prefix_token(delta)
            if prefix < 0:
                raise InputError(f"pair {i}: has no context, and the model has neither BOS nor EOS to stand for it")
            whole = np.concatenate([np.array([prefix], np.int32), whole])
            n_context = 1
        if len(whole) <= n_context:
            raise InputError(f"pair {i}: its continuation has no tokens of its own, expected at least one")
        return whole, n_context


def _existing_file(path: str | os.PathLike[str]) -> str:
    if not Path(path).is_file():
        raise InputError(f"{os.fspath(path)}: no such file")
    return os.fspath(path)


def _count(name: str, value: int, least: int) -> int:
    if value != int(value) or not least <= value <= _INT32.max:
        raise InputError(f"{name}: got {value}, expected a whole number from {least} to {_INT32.max}")
    return int(value)


def _number(name: str, value: float, least: float, most: float) -> float:
    if not math.isfinite(value) or not least <= value <= most:
        raise InputError(f"{name}: got {value}, expected a finite number from {least} to {most}")
    return float(value)


def _stop_texts(stop: str | Sequence[str] | None) -> list[str]:
    texts = [] if stop is None else [stop] if isinstance(stop, str) else list(stop)
    if "" in texts:
        raise InputError("stop: got an empty text, expected at least one character")
    return texts


def _prompts(value: Prompt | Sequence[Prompt]) -> tuple[bool, list[Prompt]]:
    """Whether `value` is one prompt rather than a list of them, and the list."""
    if isinstance(value, str):
        return True, [value]
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return True, [value]
    if len(value) > 0 and isinstance(value[0], (int, float, np.number)):
        return True, [cast("Tokens", value)]
    return False, list(cast("Sequence[Prompt]", value))


def _token_array(tokens: Tokens) -> NDArray[np.int32]:
    """Token ids as int32 [n_tokens]."""
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise InputError(f"tokens: got an array of shape {array.shape}, expected [n_tokens]")
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.dtype.kind not in "iu":
        raise InputError(f"tokens: got an array of {array.dtype}, expected integers")
    for bound in (array.min(), array.max()):
        if not _INT32.min <= bound <= _INT32.max:
            raise InputError(f"tokens: {bound} is no token id, expected 32-bit integers")
    return np.ascontiguousarray(array, np.int32)

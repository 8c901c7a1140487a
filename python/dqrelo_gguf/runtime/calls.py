"""What is asked of a session: tokens of a text, logits, log-likelihoods, generated text; sequences of several deltas in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.native import core
from dqrelo_gguf.runtime import process
from dqrelo_gguf.runtime.arguments import Prompt, Tokens, count, number, prompt_list, stop_texts, token_array
from dqrelo_gguf.runtime.deltas import Blend, Delta, blends_of, first_of

ResumePoints = core.ResumePoints


class Calls:
    """The calls on one native session; Runtime, which opens the session, inherits them."""

    def __init__(self, session: core.Session, max_scale: float) -> None:
        self._session = session
        self._max_scale = max_scale
        process.register(self, session.stop)

    @process.native_call
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

    @process.native_call
    def detokenize(self, tokens: Tokens, *, special: bool = False) -> str:
        """The text of tokens ([n_tokens]).

        With `special`, control tokens are written out. Broken UTF-8 becomes U+FFFD.
        """
        return self._session.detokenize(token_array(tokens), special).decode("utf-8", errors="replace")

    @process.native_call
    def pieces(self, tokens: Tokens) -> list[bytes]:
        """The bytes of each token by itself ([n_tokens]), control tokens written out; a character may need several tokens."""
        found = []
        for token in token_array(tokens):
            # The first token of a text may lose a space, the second one keeps it.
            once, twice = (self._session.detokenize(np.full(n, token, np.int32), True) for n in (1, 2))
            found.append(twice[len(once) :])
        return found

    # A str is a sequence of str too, so the overloads overlap; the first that fits is meant.
    @overload
    def logits(  # type: ignore[overload-overlap]
        self, tokens: Prompt, delta: Delta | Blend | None = ..., *, scale: float = ..., first: int = ...
    ) -> NDArray[np.float32]: ...

    @overload
    def logits(
        self,
        tokens: Sequence[Prompt],
        delta: Delta | Blend | Sequence[Delta | Blend | None] | None = ...,
        *,
        scale: float | Sequence[float] = ...,
        first: int | Sequence[int] = ...,
    ) -> list[NDArray[np.float32]]: ...

    @process.native_call
    def logits(
        self,
        tokens: Prompt | Sequence[Prompt],
        delta: Delta | Blend | Sequence[Delta | Blend | None] | None = None,
        *,
        scale: float | Sequence[float] = 1.0,
        first: int | Sequence[int] = 0,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """The logits after every token, or after those from `first` on.

        Args:
            tokens: one sequence ([n_tokens]) or a list of sequences, which are evaluated together.
            delta: one for all sequences, or a list with a delta, a blend or None (the base) for each. A blend is a list of
                (delta, scale), at most MAX_PARTS.
            scale: how much of the delta or blend: 0 is the base, 1 the fine-tune, at most `max_scale`. One, or a list.
            first: number of the token whose logits are the first to be computed and kept. One, or a list.

        Returns:
            float32 [n_tokens - first, n_vocab] for one sequence, a list of them for a list.

        Raises:
            InputError: an empty or too long sequence, a token that is not in the vocabulary, a closed delta, or logits
                that are NaN or infinite. No other call is harmed by those.
        """
        is_one, prompts = prompt_list(tokens)
        blends = blends_of(len(prompts), delta, scale, self._max_scale)
        firsts = [first] * len(prompts) if isinstance(first, int) else list(first)
        firsts = [count(f"first of sequence {i}", value, 0) for i, value in enumerate(firsts)]
        if len(firsts) != len(prompts):
            raise InputError(f"first: got a list of {len(firsts)}, expected one for each of {len(prompts)} sequences")
        rows = self._session.logits(self._tokens_of(prompts, blends), blends, firsts)
        return rows[0] if is_one else rows

    @process.native_call
    def loglikelihood(
        self,
        pairs: Sequence[tuple[Prompt, Prompt]],
        delta: Delta | Blend | Sequence[Delta | Blend | None] | None = None,
        *,
        scale: float | Sequence[float] = 1.0,
    ) -> list[tuple[float, bool]]:
        """How probable each continuation is after its context, as lm-evaluation-harness counts it.

        Texts are tokenized together, so that the boundary falls as it does in running text; white space at the end of
        a context belongs to the continuation. Before an empty context stands BOS (EOS where there is no BOS).
        Pairs that follow each other with one context and one delta read the context once, if the model's memory can go back
        to its end (that of recurrent layers cannot).

        Args:
            pairs: (context, continuation), two texts or two token arrays each.
            delta: one for all pairs, or a list with a delta, a blend or None (the base) for each.
            scale: how much of the delta, one or a list.

        Returns:
            For each pair the sum of the natural-log probabilities of the continuation's tokens, and whether each of
            them was the most probable one.

        Raises:
            InputError: a pair without continuation tokens, or longer than the context; see also `logits`.
        """
        blends = blends_of(len(pairs), delta, scale, self._max_scale)
        owners = [first_of(parts) for parts in blends]
        encoded = [self._encode_pair(i, pair, own) for i, (pair, own) in enumerate(zip(pairs, owners, strict=True))]
        return self._session.score([tokens for tokens, _ in encoded], [n for _, n in encoded], blends)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompts: Prompt,
        delta: Delta | Blend | None = ...,
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
        delta: Delta | Blend | Sequence[Delta | Blend | None] | None = ...,
        *,
        max_tokens: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        seed: int = ...,
        stop: str | Sequence[str] | None = ...,
        scale: float | Sequence[float] = ...,
    ) -> list[str]: ...

    @process.native_call
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        delta: Delta | Blend | Sequence[Delta | Blend | None] | None = None,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        scale: float | Sequence[float] = 1.0,
    ) -> str | list[str]:
        """Continues prompts, all in shared batches, each on its own delta and up to that delta's own end tokens; of a blend, its first part's.

        Args:
            prompts: one prompt or a list: texts, or token arrays ([n_tokens]).
            delta: one for all prompts, or a list with a delta, a blend or None (the base) for each.
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
            InputError: an empty prompt, or one that leaves no room for `max_tokens` in the context; see also `logits`.
        """
        is_one, items = prompt_list(prompts)
        params = _draw_params(max_tokens, temperature, seed)
        params.top_k = count("top_k", top_k, 0)
        params.top_p = number("top_p", top_p, 0.0, 1.0)
        params.stop = stop_texts(stop)
        blends = blends_of(len(items), delta, scale, self._max_scale)
        generated = self._session.generate(self._tokens_of(items, blends), blends, params)
        texts = [text.decode("utf-8", errors="replace") for text, _ in generated]
        return texts[0] if is_one else texts

    @process.native_call
    def generate_tokens(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop: str | Sequence[str] | None = None,
        ended: Callable[[int, int], bool] | None = None,
    ) -> list[NDArray[np.int32]]:
        """Continues prompts on the base, and gives tokens instead of text.

        Args:
            prompts: texts, or token arrays ([n_tokens]).
            max_tokens: tokens to generate for each prompt at most.
            temperature: 0 takes the most probable token each time; above, tokens are drawn.
            seed: prompt i draws with seed + i.
            stop: texts that end a generation; the tokens that complete one are part of it.
            ended: is called with i and n_generated when prompt i has ended, and returns whether more are wanted. If not, those that
                run end as they are, and no other one begins. It must not call the runtime. Its exceptions end the call.

        Returns:
            int32 [n_generated] for each prompt, without the end token.
        """
        base: list[list[tuple[Delta, float]]] = [[] for _ in prompts]
        params = _draw_params(max_tokens, temperature, seed)
        params.stop = stop_texts(stop)
        generated = self._session.generate(self._tokens_of(prompts, base), base, params, ended)
        return [tokens for _, tokens in generated]

    @process.native_call
    def visit_inputs(
        self,
        tokens: Sequence[Prompt],
        names: Sequence[str],
        visit: Callable[[str, NDArray[np.float32], NDArray[np.int32] | None], object],
        resume: ResumePoints | None = None,
    ) -> dict[str, str]:
        """Runs sequences on the base, and shows what its weights multiply; the runtime was opened with `watch`.

        Args:
            tokens: texts, or token arrays ([n_tokens]).
            names: of the weights.
            visit: is called with a weight's name, float32 [n_rows, n_in], and of a stack of experts int32 [n_rows], the matrix
                that each row was multiplied with, else None. It must not call the runtime. Its exceptions end the call.
            resume: where these texts, each of n_ubatch tokens at most, were left by the last call with it, of any runtime whose model
                has the same graphs. They go on from there, so that no weight before is read, and are left where the
                first of `names` is multiplied. Empty for the first call, and of one call at a time.

        Returns:
            The weights that read the same rows as another one, with that one's name; only the latter's rows are shown. Weights
            that no product of the model's graphs reads as they are appear nowhere.

        Raises:
            InputError: the runtime was not opened with `watch`; see also `logits`.
        """
        return self._session.visit_inputs(self._tokens_of(tokens, [[] for _ in tokens]), list(names), visit, resume)

    @process.native_call
    def set_weight(self, name: str, values: NDArray[np.float32]) -> None:
        """Overwrites a weight of the base in memory; the runtime was opened with `use_mmap=False`.

        Args:
            name: of a tensor of the base, in F32, F16 or BF16.
            values: float32, as many as the tensor has; rounded to its type.

        Raises:
            InputError: the base is mapped, or has no such tensor.
        """
        self._session.set_weight(name, np.ascontiguousarray(values, np.float32))

    @property
    def start_token(self) -> int | None:
        """The token that begins a text of the base: BOS, EOS where there is no BOS, None without both."""
        return self.start_token_of(None)

    def start_token_of(self, delta: Delta | None) -> int | None:
        """The token that begins a text of a delta, or of the base (None): BOS, EOS where there is no BOS, None without both."""
        token = self._session.prefix_token(delta)
        return token if token >= 0 else None

    def _tokens_of(self, prompts: Sequence[Prompt], blends: Sequence[Blend]) -> list[NDArray[np.int32]]:
        return [
            self.tokenize(prompt, delta=first_of(parts)) if isinstance(prompt, str) else token_array(prompt)
            for prompt, parts in zip(prompts, blends, strict=True)
        ]

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
            head = token_array(context)
            whole = np.concatenate([head, token_array(continuation)])
            n_context = len(head)
        if n_context == 0:
            prefix = self.start_token_of(delta)
            if prefix is None:
                raise InputError(f"pair {i}: has no context, and the model has neither BOS nor EOS to stand for it")
            whole = np.concatenate([np.array([prefix], np.int32), whole])
            n_context = 1
        if len(whole) <= n_context:
            raise InputError(f"pair {i}: its continuation has no tokens of its own, expected at least one")
        return whole, n_context


def _draw_params(max_tokens: int, temperature: float, seed: int) -> core.GenerateParams:
    params = core.GenerateParams()
    params.max_tokens = count("max_tokens", max_tokens, 1)
    params.temperature = number("temperature", temperature, 0.0, math.inf)
    params.seed = count("seed", seed, 0)
    return params

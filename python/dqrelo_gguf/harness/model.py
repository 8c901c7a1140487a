"""The model `dqrelo` of lm-evaluation-harness: a base or one of its deltas, in process. It counts as the model `hf` does."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
from tqdm import tqdm

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.chat import Conversation, Renderer
from dqrelo_gguf.harness.arguments import Arguments
from dqrelo_gguf.harness.package import MODEL
from dqrelo_gguf.harness.resident import Resident
from dqrelo_gguf.harness.settings import Settings
from dqrelo_gguf.native import core
from dqrelo_gguf.version import __version__

_LOG = logging.getLogger(__name__)
_ROUNDS = 4  # Requests of a call to the runtime, as a multiple of the sequences that it reads together.
_LEAST_TOGETHER = 32  # requests of such a call

Scored = tuple[float, bool]
Pair = tuple[tuple[str, str] | None, list[int], list[int]]  # the texts for the cache, and the tokens of both


@register_model(MODEL)
class DqreloLM(TemplateLM):  # type: ignore[misc]  # The harness has no types.
    """A base, or a delta of it, as a model of the harness.

    Args:
        resident: the base.
        delta: the file of a delta, or None for the base.
    """

    def __init__(self, resident: Resident, delta: Path | None = None) -> None:
        super().__init__()
        self._resident = resident
        self._runtime = resident.runtime
        self._arguments = resident.arguments
        self._delta = None if delta is None else resident.load(delta)
        self._start = self._runtime.start_token_of(self._delta)
        self._renderer: Renderer | None = None

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """A model from the values of --model_args and of the options beside it."""
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        arguments = Arguments.read({**arg_dict, **given})
        return cls(Resident(arguments), arguments.delta)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Self:
        """The same from `name=value,name=value`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def close(self) -> None:
        """Frees the delta and ends the process of its template. The base stays in memory."""
        if self._renderer is not None:
            self._renderer.close()
        if self._delta is not None:
            self._delta.close()

    # --- what the harness asks of a model's tokens ---

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at most."""
        return self._resident.max_length

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text: the delta's, or the base's."""
        stated = None if self._delta is None else self._delta.meta("tokenizer.ggml.eos_token_id")
        return self._resident.end_token if stated is None else int(stated)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: BOS, or EOS where there is no BOS.

        Raises:
            InputError: there is neither.
        """
        if self._start is None:
            raise InputError(f"{self._where}: has neither BOS nor EOS, which stands for an empty context")
        return self._start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text, special ones included that are written in it.

        Args:
            string: the text.
            add_special_tokens: add BOS and EOS as the model asks for them; None does so unless the text begins with BOS.
        """
        if add_special_tokens is None:
            start = self._resident.token_text(self._start)
            add_special_tokens = not (start and string.startswith(start))
        tokens: list[int] = self._runtime.tokenize(string, add_special=add_special_tokens, delta=self._delta).tolist()
        return tokens

    # --- log-likelihoods ---

    def _loglikelihood_tokens(self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: Any) -> list[Scored]:
        """The sum of log P of each continuation, and whether greedy decoding would say it.

        A pair that is too long loses tokens of its context, from the left.
        """
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        # Longest first, so that the time that is left is not underestimated; choices after the same context follow each other.
        order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0]), pairs[i]))
        answers: list[Scored] = [(0.0, False)] * len(pairs)
        with tqdm(total=len(pairs), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for some in self._rounds(order):
                scored = self._runtime.loglikelihood([pairs[i] for i in some], self._delta, scale=self._arguments.scale)
                for i, answer in zip(some, scored, strict=True):
                    answers[i] = answer
                    texts = requests[i][0]
                    if texts is not None:  # Windows of a longer text have none.
                        self.cache_hook.add_partial("loglikelihood", texts, answer)
                bar.update(len(some))
        return answers

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        if not continuation:
            raise InputError("a task asks for the probability of a continuation without tokens")
        if len(continuation) > self.max_length:
            raise InputError(
                f"a continuation of {len(continuation)} tokens does not fit into the {self.max_length} that the model reads. "
                "Use a larger n_ctx"
            )
        n_over = len(context) + len(continuation) - (self.max_length + 1)
        if n_over > 0:
            _LOG.warning("a context of %d tokens loses %d from the left, to fit n_ctx", len(context), n_over)
        return context[max(n_over, 0) :], continuation

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, read in windows of `max_length` in which every token counts once."""
        windows: list[Pair] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(window)) for window in cut]
            windows += own
            owners += [i] * len(own)
        sums = [0.0] * len(requests)
        for i, (log_p, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[i] += log_p
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    # --- generation ---

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts after the contexts, up to a stop text, the model's own end tokens or `max_gen_toks`."""
        kinds: dict[Settings, list[int]] = {}
        for i, request in enumerate(requests):
            kinds.setdefault(Settings.read(request.args[1], self._arguments.max_gen_toks), []).append(i)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for kind, members in kinds.items():
                prompts = {i: self._prompt(requests[i].args[0], kind) for i in members}
                n_done = 0
                for some in self._rounds(sorted(members, key=lambda i: -len(prompts[i]))):
                    texts = self._runtime.generate(
                        [prompts[i] for i in some],
                        self._delta,
                        max_tokens=kind.max_tokens,
                        temperature=kind.temperature,
                        top_k=kind.top_k,
                        top_p=kind.top_p,
                        seed=kind.seed + n_done,
                        stop=kind.stop,
                        scale=self._arguments.scale,
                    )
                    n_done += len(some)
                    for i, text in zip(some, texts, strict=True):
                        # Tokenizers that put a space before a text take one off when they decode it, and so does `hf`.
                        answers[i] = text.removeprefix(" ") if self._resident.has_space_prefix else text
                        self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
                    bar.update(len(some))
        return answers

    def _prompt(self, text: str, kind: Settings) -> list[int]:
        room = self.max_length - kind.max_tokens
        if room < 1:
            raise InputError(
                f"max_gen_toks={kind.max_tokens} leaves no room for a prompt in the {self.max_length} tokens that the model "
                "reads. Use a larger n_ctx"
            )
        tokens = self.tok_encode(text)
        if len(tokens) > room:
            _LOG.warning("a prompt of %d tokens loses %d from the left, to fit n_ctx", len(tokens), len(tokens) - room)
        return tokens[-room:]

    def _rounds(self, order: Sequence[int]) -> Iterator[Sequence[int]]:
        step = max(_ROUNDS * self._runtime.n_seq_max, _LEAST_TOGETHER)
        for at in range(0, len(order), step):
            yield order[at : at + step]

    # --- chat templates ---

    @property
    def tokenizer_name(self) -> str:
        """Names the texts that this model's template makes of conversations, for the harness's cache of them."""
        about = [
            self._template or "",
            self._resident.token_text(self._start),
            self._resident.token_text(self.eot_token_id),
        ]
        return f"{MODEL}-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that is used: the delta's own, or the base's. There is one, whichever name is asked for."""
        return self._template if chat_template else None

    def apply_chat_template(self, chat_history: Conversation, add_generation_prompt: bool = True) -> str:
        """A conversation as the model reads it.

        Args:
            chat_history: messages with `role` and `content`.
            add_generation_prompt: end where the answer begins; otherwise the last message goes on, and nothing follows it.

        Raises:
            InputError: there is no template, or it fails.
        """
        try:
            text = self._rendered(chat_history, add_generation_prompt)
        except InputError:
            without = [message for message in chat_history if message["role"] != "system"]
            if len(without) == len(chat_history):
                raise
            _LOG.warning("the chat template fails on a conversation with a system message, which is left out")
            text = self._rendered(without, add_generation_prompt)
        return text if add_generation_prompt else _up_to_last_message(text, chat_history, self._where)

    def _rendered(self, messages: Conversation, for_answer: bool) -> str:
        if self._renderer is None:
            if self._template is None:
                raise InputError(f"{self._where}: has no chat template. Leave out --apply_chat_template")
            bos, eos = (self._resident.token_text(token) for token in (self._start, self.eot_token_id))
            self._renderer = Renderer(self._where, self._template, bos=bos, eos=eos)
        (text,) = self._renderer.texts([messages], for_answer=for_answer)
        return text

    @property
    def _template(self) -> str | None:
        own = None if self._delta is None else self._delta.chat_template
        return own or self._runtime.chat_template

    @property
    def _where(self) -> str:
        return str(self._arguments.base) if self._delta is None else self._delta.path

    def get_model_info(self) -> dict[str, Any]:
        """What a reader of results needs to repeat them; the harness writes it into their `config`."""
        info = {
            "dqrelo_version": __version__,
            "llama_cpp_commit": core.machine()["build_commit"],
            "base": self._arguments.base.name,
            "base_description": self._runtime.description,
            "max_length": self.max_length,
        }
        if self._delta is not None:
            info |= {"delta_content_hash": self._delta.content_hash, "delta_scale": self._arguments.scale}
        return info


def _up_to_last_message(text: str, messages: Conversation, where: str) -> str:
    """A rendered conversation without what the template writes after its last message."""
    last = messages[-1]["content"]
    begin = text.rfind(last.strip())
    if begin < 0:
        raise InputError(f"{where}: its chat template does not write the last message as it is, so it cannot go on")
    whole = last.lstrip()
    return text[: begin + len(whole if text.startswith(whole, begin) else last.strip())]

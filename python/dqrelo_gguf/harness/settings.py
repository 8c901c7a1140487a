"""How answers are generated: a task's generation_kwargs, and what the runtime makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dqrelo_gguf.errors import InputError

_READ = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "seed")
_NEUTRAL = {  # Settings that the runtime lacks, and the value with which each changes nothing.
    "num_beams": 1,
    "repetition_penalty": 1,
    "min_p": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "length_penalty": 1,
    "use_cache": True,
}


@dataclass(frozen=True)
class Settings:
    """Answers with the same settings are generated together.

    Args:
        stop: texts that end an answer.
        max_tokens: of an answer.
        temperature: 0 takes the most probable token each time.
        top_k: draw from the k most probable tokens; 0 means all.
        top_p: draw from the most probable tokens that hold this share of the probability together.
        seed: of the draws.
    """

    stop: tuple[str, ...]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int

    @classmethod
    def read(cls, kwargs: Mapping[str, Any], max_gen_toks: int) -> Settings:
        """From generation_kwargs.

        Args:
            kwargs: the task's, with --gen_kwargs in them.
            max_gen_toks: tokens of an answer, where they do not say.

        Raises:
            InputError: a setting that the runtime lacks, or a value that is none.
        """
        from lm_eval.models.utils import normalize_gen_kwargs

        try:
            given: dict[str, Any] = dict(normalize_gen_kwargs(dict(kwargs), max_gen_toks))
            stop = tuple(text for text in given["until"] if text is not None and str(text))
            found = cls(
                stop=tuple(map(str, stop)),
                max_tokens=int(given["max_gen_toks"]),
                temperature=float(given.get("temperature", 0.0)),
                top_k=int(given.get("top_k") or 0),
                top_p=float(given.get("top_p") or 1.0),
                seed=int(given.get("seed") or 0),
            )
        except (TypeError, ValueError) as e:
            raise InputError(f"generation_kwargs: {dict(kwargs)}: {e}") from e
        for name, value in given.items():
            if name not in _READ and (name not in _NEUTRAL or value not in (None, _NEUTRAL[name])):
                raise InputError(
                    f"generation_kwargs: {name}={value} is not supported, expected some of: {', '.join(_READ)}"
                )
        if given["do_sample"] and found.temperature == 0:
            raise InputError("generation_kwargs: do_sample without a temperature above 0. Set one, or do_sample: false")
        if found.max_tokens < 1:
            raise InputError(f"generation_kwargs: max_gen_toks={found.max_tokens}: expected at least 1")
        return found

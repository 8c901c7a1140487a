"""generation_kwargs: what a task asks for, and what the runtime lacks."""

from __future__ import annotations

from typing import Any

import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.harness.settings import Settings


def test_greedy_is_the_default() -> None:
    assert Settings.read({}, 256) == Settings((), 256, 0.0, 0, 1.0, 0)
    assert Settings.read({"do_sample": False, "temperature": 0.7}, 9).temperature == 0


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_the_length_has_many_names(name: str) -> None:
    assert Settings.read({name: 7}, 256).max_tokens == 7


def test_draws_and_stops() -> None:
    asked = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 3, "until": ["", "\n", "##"]}
    assert Settings.read(asked, 256) == Settings(("\n", "##"), 256, 0.5, 4, 0.9, 3)
    assert Settings.read({"until": "\n"}, 256).stop == ("\n",)
    assert Settings.read({"num_beams": 1, "repetition_penalty": 1.0, "min_p": None}, 256).temperature == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 is not supported, expected some of: until, max_gen_toks"),
        ({"penalty_alpha": 0.6}, "penalty_alpha=0.6 is not supported"),
        ({"temperature": "warm"}, "generation_kwargs: .*warm"),
        ({"do_sample": True}, "do_sample without a temperature above 0"),
        ({"max_gen_toks": 0}, "max_gen_toks=0: expected at least 1"),
        ({"max_gen_toks": "long"}, "generation_kwargs: .*long"),
    ],
)
def test_what_cannot_be_done_is_one_line(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings.read(kwargs, 256)

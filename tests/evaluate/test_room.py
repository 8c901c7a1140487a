"""Plans of what is held at once: within the bound, every window once and in order, and refused where nothing fits."""

from __future__ import annotations

import numpy as np
import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.room import WORK_BYTES, Room, Rounds, Shape, answer_rooms
from dqrelo_gguf.evaluate.text import Window
from dqrelo_gguf.model.base import GgufModel
from tests.support.trio import Trio

SMOL = Shape(n_vocab=49152, cell_bytes=2 * 30 * 3 * 128, n_head=9, n_wide=1536)
QWEN_7B = Shape(n_vocab=152064, cell_bytes=2 * 28 * 4 * 256, n_head=28, n_wide=18944)


def windows(n: int, n_tokens: int = 512, first: int = 256) -> list[Window]:
    return [Window(np.full(n_tokens, i, np.int32), first) for i in range(n)]


@pytest.mark.parametrize("shape", [SMOL, QWEN_7B])
@pytest.mark.parametrize("n_models", [2, 9])
def test_a_plan_keeps_to_its_bound(shape: Shape, n_models: int) -> None:
    plan = Rounds.plan(windows(40), (shape, shape), n_models)
    assert plan.work_bytes <= WORK_BYTES
    assert 1 <= plan.n_group <= n_models
    rounds = list(plan.of(windows(40)))
    assert [w.tokens[0] for some in rounds for w in some] == list(range(40))
    assert all(sum(w.n_scored for w in some) <= plan.n_rows for some in rounds)


def test_all_models_of_a_small_vocabulary_share_a_call() -> None:
    assert Rounds.plan(windows(40), (SMOL, SMOL), 4).n_group == 4


def test_what_does_not_fit_says_what_it_needs() -> None:
    with pytest.raises(InputError, match=r"a window of 4096 tokens needs \d+ bytes .* Use a smaller --ctx"):
        Rounds.plan(windows(2, 4096, 2048), (QWEN_7B, QWEN_7B), 2)


def test_answers_that_do_not_fit_say_what_they_need() -> None:
    with pytest.raises(InputError, match=r"a problem of 30000 tokens with its answer needs \d+ bytes .* --max-tokens"):
        answer_rooms((QWEN_7B, QWEN_7B), 30000)
    assert sum(room.n_bytes(QWEN_7B) for room in answer_rooms((QWEN_7B, QWEN_7B), 1000)) <= WORK_BYTES


def test_answers_have_room_for_the_longest() -> None:
    for shape in (SMOL, QWEN_7B):
        for longest in (40, 20000):
            room = Room.for_answers(shape, longest)
            assert room.n_ctx >= max(longest, room.n_seq)
            assert room.n_seq >= 1


def test_shape_of_a_model(trio: Trio) -> None:
    shape = Shape.of(GgufModel(trio.base))
    assert shape.cell_bytes == 2 * 2 * 1 * (32 + 32)
    assert (shape.n_head, shape.n_wide) == (2, 96)
    assert 32 <= shape.n_ubatch(2) <= 512


def test_rivals_share_what_two_models_have() -> None:
    """Five models of a small size fit, where each took as much as one of two they did not."""
    for longest in (149, 500):
        assert len(answer_rooms([SMOL] * 7, longest)) == 7
    assert Rounds.plan(windows(40), [SMOL] * 7, 9).work_bytes <= WORK_BYTES
    assert Room.for_answers(SMOL, 149, 1) == Room.for_answers(SMOL, 149, 2)

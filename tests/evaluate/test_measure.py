"""The sample that a measurement keeps: the first tokens that count, however many windows they are in."""

from __future__ import annotations

import numpy as np
import pytest

from dqrelo_gguf.evaluate.measure import N_CANDIDATES, sampled_rows
from dqrelo_gguf.evaluate.report import Evaluation
from dqrelo_gguf.evaluate.text import Window


def window(n: int, first: int = 0) -> Window:
    return Window(np.arange(n, dtype=np.int32), first)


@pytest.mark.parametrize(("n_sample", "taken"), [(0, [0, 0, 0]), (4, [4, 0, 0]), (12, [9, 3, 0]), (100, [9, 9, 4])])
def test_the_first_tokens_are_taken(n_sample: int, taken: list[int]) -> None:
    assert sampled_rows([window(10), window(20, 10), window(5)], n_sample) == taken


def test_every_model_has_candidates_of_the_same_tokens(evaluation: Evaluation) -> None:
    result = evaluation.text_result
    n_tokens = sum(len(models[0].ids) for models in result.sample)
    assert n_tokens == min(result.n_sample, result.n_scored)
    for models in result.sample:
        assert len(models) == 1 + len(evaluation.names)
        assert {found.ids.shape for found in models} == {(len(models[0].ids), N_CANDIDATES)}


def test_the_most_probable_token_is_the_one_that_was_compared(evaluation: Evaluation) -> None:
    for i, models in enumerate(evaluation.text_result.sample):
        n = len(models[0].ids)
        for k, found in enumerate(models[1:]):
            same = found.ids[:, 0] == models[0].ids[:, 0]
            assert same.tolist() == evaluation.text_result.models[k][i].same_top[:n].tolist()

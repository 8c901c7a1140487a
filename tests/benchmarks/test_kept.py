"""bench/support/kept.py: a fine-tune measured against itself, and the rows of an answer."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from tests.support.tiny_llama import NARROW, Type, base_weights, tuned_weights, write_model


@pytest.fixture
def kept(bench_module):
    return bench_module("support.kept")


def test_a_fine_tune_keeps_itself_and_another_model_does_not(kept, bench_module, tmp_path, monkeypatch):
    problems = bench_module("support.problems").make_problems("words", 6, 1)
    weights = base_weights(NARROW)
    base = write_model(tmp_path / "base.gguf", NARROW, weights, Type.F16)
    tuned = write_model(tmp_path / "tuned.gguf", NARROW, tuned_weights(weights, 0), Type.F16)
    monkeypatch.setattr(kept, "MAX_ANSWER_TOKENS", 4)
    with contextlib.closing(kept.Yardstick(tuned, problems, 1)) as yardstick:
        own, other = yardstick.measure(tuned), yardstick.measure(base)
        monkeypatch.setattr(kept, "LOGIT_BYTES", 1)  # a sequence at a time
        one_by_one = yardstick.measure(base)
    assert own.kl_all.value == pytest.approx(0, abs=1e-9)
    assert own.top1_all.value == own.top1_answers.value == 1
    assert own.same == len(problems)
    assert other.kl_all.value > 0.01
    assert other.top1_all.value < 1
    assert one_by_one.kl_answers.value == pytest.approx(other.kl_answers.value, rel=1e-2)


def test_rows_of_an_answer_are_those_that_predict_its_tokens(kept):
    sequence = kept.Sequence(np.arange(10, dtype=np.int32), n_prompt=6)  # tokens 6, 7, 8 and the end, 9
    assert list(range(sequence.n_rows))[sequence.answer_rows] == [5, 6, 7, 8]

"""The data of the plots."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dqrelo_gguf.evaluate.page.document import document, error_map, kl_points, score_points
from dqrelo_gguf.evaluate.report import Evaluation
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.evaluations import HOSTILE, with_hostile_texts
from tests.support.trio import Trio


def text_report(n_windows: int) -> dict[str, object]:
    model = {"kl": {"value": 0.5}, "kl_window_error": 0.25, "same_top": {"value": 0.75}, "recovered": 0.1}
    return {"n_windows": n_windows, "models": [model, {**model, "kl": {"value": 2.0}}]}


def test_kl_has_an_interval_of_95_percent_that_ends_at_0() -> None:
    low, high = kl_points(text_report(2)) or []
    assert (low["low"], low["high"]) == (pytest.approx(0.01), pytest.approx(0.99))
    assert (high["value"], high["low"], high["high"]) == (2.0, pytest.approx(1.51), pytest.approx(2.49))


def test_one_window_has_no_interval() -> None:
    points = kl_points(text_report(1)) or []
    assert [(p["low"], p["high"]) for p in points] == [(None, None)] * 2


def test_without_text_and_problems_there_is_nothing() -> None:
    assert kl_points(None) is None
    assert score_points(None) == []


def test_scores_are_tasks_and_then_the_retention() -> None:
    score = {"value": 0.5, "low": 0.25, "high": 0.75}
    scores = [{"name": name, "score": score} for name in ("fine-tune", "base", "a", "b")]
    problems = {
        "tasks": [{"name": "t.jsonl", "n_problems": 4, "scores": scores}],
        "deltas": [{"retention": score}, {"retention": None}],
    }
    task, kept = score_points(problems)
    assert task["title"] == "t.jsonl: right answers (4 problems)"
    assert len(task["points"]) == 2
    assert kept["points"] == [score, None]
    problems["deltas"] = [{"retention": None}, {"retention": None}]
    assert len(score_points(problems)) == 1


def test_the_map_has_every_weight_in_its_place(trio: Trio) -> None:
    weights = DeltaReader(trio.deltas[1]).weights
    found = error_map(weights)
    assert found["layers"] == ["0", "1", "none"]
    assert found["kinds"][-3:] == ["token_embd", "output_norm", "output"]
    cell = {w.name: w for w in weights}["blk.1.ffn_up.weight"]
    row = found["kinds"].index("ffn_up")
    assert found["error_delta"][row] == [pytest.approx(v) if v is not None else None for v in found["error_delta"][row]]
    assert found["error_delta"][row][1] == cell.error_delta > 0
    assert found["ratio"][row][1] == cell.n_bytes / (2 * cell.n_elements)
    assert found["error_weight"][row][2] is None
    assert sum(value is not None for line in found["ratio"] for value in line) == len(weights)


def test_the_sample_is_the_first_tokens_with_their_figures(evaluation: Evaluation) -> None:
    tokens = document(evaluation, evaluation.as_json())["tokens"]
    assert evaluation.text is not None
    records = [t for window in tokens["windows"] for t in window["tokens"]]
    assert [t["id"] for t in records] == np.concatenate([w.targets for w in evaluation.text.windows])[
        : len(records)
    ].tolist()
    result = evaluation.text_result
    assert [t["kl"][1] for t in records] == pytest.approx(
        np.concatenate([m.kl for m in result.models[1]])[: len(records)], rel=1e-3
    )
    for t in records:
        assert sorted(p for _, p in t["top"])[::-1] == [p for _, p in t["top"]]
        own = dict(map(tuple, t["top"]))
        assert own.get(t["id"], t["p"]) == pytest.approx(t["p"], rel=1e-3)
        assert len(t["q"]) == len(t["kl"]) == len(t["tops"]) == 4
    window = evaluation.text.windows[0]
    assert tokens["windows"][0]["context"] == window.tokens[: window.first + 1].tolist()
    shown = {str(token) for t in records for token, _ in [*t["top"], *(c for top in t["tops"] for c in top)]}
    assert shown <= tokens["pieces"].keys()


def test_every_text_is_visible(evaluation: Evaluation) -> None:
    e = with_hostile_texts(evaluation)
    text = json.dumps(document(e, e.as_json()), ensure_ascii=False)
    assert HOSTILE[0].replace('"', '\\"') in text  # Escaping is not this module's work.
    assert "⟨U+202E⟩gnp⟨U+2066⟩␛[2J⟨U+2028⟩⟨FF⟩" in text
    assert "\u202e" not in text

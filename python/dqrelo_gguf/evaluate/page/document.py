"""What the plots of a page show, as plain data for JSON. Every text in it is visible (visible.py), none is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dqrelo_gguf.convert.report import kind, layer
from dqrelo_gguf.evaluate.details import CONTEXT_TOKENS, Details
from dqrelo_gguf.evaluate.divergence import Candidates
from dqrelo_gguf.evaluate.page.visible import visible, visible_bytes
from dqrelo_gguf.evaluate.report import TUNED, Evaluation
from dqrelo_gguf.file.reader import WeightInfo

Json = dict[str, Any]

_NORMAL_95 = 1.96  # standard errors to each side that hold 95 %


def document(evaluation: Evaluation, report: Json) -> Json:
    """The data of all plots.

    Args:
        evaluation: what was measured, with details.
        report: its JSON.
    """
    details = evaluation.details or Details([])
    return {
        "names": [visible(name) for name in evaluation.names],
        "tuned": TUNED,
        "compared": [
            {"name": visible(name), "n_bytes": file["n_bytes"], "ratio": file.get("ratio")}
            for name, file in zip(evaluation.names[1:], compared_files(report), strict=True)
        ],
        "kl": kl_points(report["text"]),
        "scores": score_points(report["problems"]),
        "errors": [error_map(weights) for weights in details.weights],
        "spectra": spectra(details),
        "tokens": tokens(evaluation, details),
    }


def compared_files(report: Json) -> list[Json]:
    """What is said of each model that is compared with the fine-tune: the deltas, then whole models, which have no ratio."""
    return [*report["files"]["deltas"], *report["files"]["rivals"]]


def kl_points(text: Json | None) -> list[Json] | None:
    """Mean KL of the base and of each model with an interval of 95 %: windows are draws, so of one window there is none."""
    if text is None:
        return None
    points = []
    for model in text["models"]:
        value, half = model["kl"]["value"], _NORMAL_95 * model["kl_window_error"]
        has_interval = text["n_windows"] > 1
        points.append(
            {
                "value": value,
                "low": max(value - half, 0.0) if has_interval else None,
                "high": value + half if has_interval else None,
                "same_top": model["same_top"]["value"],
                "recovered": model["recovered"],
            }
        )
    return points


def score_points(problems: Json | None) -> list[Json]:
    """Of each task the scores of fine-tune, base and other models; then, where there is a gain, the retention over all tasks."""
    if problems is None:
        return []
    found = []
    for task in problems["tasks"]:
        scores = [dict(score["score"]) for score in task["scores"]]
        found.append(
            {
                "title": f"{visible(task['name'])}: right answers ({task['n_problems']} problems)",
                "axis": "right answers",
                "tuned": scores[0],
                "base": scores[1],
                "points": scores[2:],
            }
        )
    kept = [delta["retention"] for delta in problems["deltas"]]
    if any(point is not None for point in kept):
        n_tasks = len(found)
        found.append(
            {
                "title": f"retention over {n_tasks} task{'s' if n_tasks > 1 else ''}",
                "axis": "retention (base 0 %, fine-tune 100 %)",
                "tuned": {"value": 1.0, "low": 1.0, "high": 1.0},
                "base": {"value": 0.0, "low": 0.0, "high": 0.0},
                "points": kept,
            }
        )
    return found


def error_map(weights: Sequence[WeightInfo]) -> Json:
    """A delta's weights as maps of kind by layer; None where there is no such weight. What is in no layer has a column of its own.

    Returns:
        `layers` and `kinds` name columns and rows; `error_delta`, `error_weight` and `ratio` are [kind][layer].
    """
    layers = sorted({layer(w.name) for w in weights} - {None}, key=lambda n: n or 0)
    columns: list[int | None] = [*layers, *([None] if any(layer(w.name) is None for w in weights) else [])]
    kinds = list(dict.fromkeys(kind(w.name) for w in sorted(weights, key=lambda w: layer(w.name) is None)))
    cells = {(kind(w.name), layer(w.name)): w for w in weights}

    def table(figure: str) -> list[list[float | None]]:
        return [[_figure(cells.get((k, column)), figure) for column in columns] for k in kinds]

    return {
        "layers": ["none" if n is None else str(n) for n in columns],
        "kinds": [visible(short_kind(k)) for k in kinds],
        **{figure: table(figure) for figure in ("error_delta", "error_weight", "ratio")},
    }


def short_kind(name: str) -> str:
    """A kind without what all have."""
    return name.removeprefix("blk.*.").removesuffix(".weight")


def _figure(weight: WeightInfo | None, figure: str) -> float | None:
    if weight is None:
        return None
    return weight.n_bytes / (2 * weight.n_elements) if figure == "ratio" else float(getattr(weight, figure))


def spectra(details: Details) -> Json:
    """The spectra, and what is said of those that there are not."""
    return {
        "weights": [
            {
                "name": visible(w.name),
                "shape": " x ".join(map(str, w.ne)) + (", the first matrix" if len(w.ne) > 2 else ""),
                "numbers": w.numbers,
                "delta": w.delta,
                "residuals": w.residuals,
                "errors": w.errors,
            }
            for w in details.spectra
        ],
        "left_out": [visible(k) for k in details.kinds_left_out],
    }


def tokens(evaluation: Evaluation, details: Details) -> Json | None:
    """The sample: tokens with P, Q and KL; None where no text was read.

    Returns:
        `pieces` are texts by token; of a window, `context` are tokens that do not count, and each of `tokens` that count has
        the token (`id`), P of the fine-tune (`p`) with its candidates (`top`: [token, P] each), and by model `kl`, `q`, `tops`.
    """
    text, result = evaluation.text, evaluation.text_result
    if text is None or not result.sample:
        return None
    windows = []
    for i, sampled in enumerate(result.sample):
        window, n = text.windows[i], len(sampled[0].ids)
        context = window.tokens[max(window.first + 1 - CONTEXT_TOKENS, 0) : window.first + 1]
        tops = [_tops(found) for found in sampled]
        compared = [model[i] for model in result.models]
        windows.append(
            {
                "context": context.tolist(),
                "tokens": [
                    {
                        "id": int(window.targets[t]),
                        "p": _rounded(np.exp(-result.tuned_nll[i][t])),
                        "top": tops[0][t],
                        "q": [_rounded(np.exp(-m.nll[t])) for m in compared],
                        "kl": [_rounded(m.kl[t]) for m in compared],
                        "tops": [own[t] for own in tops[1:]],
                    }
                    for t in range(n)
                ],
            }
        )
    pieces = {str(token): visible_bytes(raw) for token, raw in details.pieces.items()}
    return {"pieces": pieces, "windows": windows, "n_all": result.n_scored}


def _tops(found: Candidates) -> list[list[list[float]]]:
    return [
        [[int(token), _rounded(p)] for token, p in zip(ids, ps, strict=True)]
        for ids, ps in zip(found.ids, found.p, strict=True)
    ]


def _rounded(value: float | np.floating[Any]) -> float:
    """Four digits that count."""
    return float(f"{float(value):.4g}")

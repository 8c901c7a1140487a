"""The quality record that a measurement gives a delta (docs/format.md, section 8)."""

from __future__ import annotations

from typing import Any

from dqrelo_gguf.evaluate.provenance import joint_sha256, program_name
from dqrelo_gguf.evaluate.report import Evaluation
from dqrelo_gguf.file.quality import TEXT_BYTES_MAX


def quality_records(evaluation: Evaluation, tuned_sha256: str, base_digest: str) -> list[dict[str, Any] | None]:
    """A record for each delta, None where nothing was measured that it could hold.

    Args:
        evaluation: the measurement.
        tuned_sha256: of the fine-tune's file.
        base_digest: of the base that the deltas ran on.
    """
    n_deltas = len(evaluation.facts["files"]["deltas"])
    measured = [_on_text(evaluation, k) | _on_problems(evaluation, k) for k in range(n_deltas)]
    shared = {"evaluator": program_name(), "tuned_sha256": tuned_sha256, "base_digest": base_digest}
    return [shared | record if record else None for record in measured]


def _on_text(evaluation: Evaluation, k: int) -> dict[str, Any]:
    figures = evaluation.text_figures()
    if evaluation.text is None or figures is None:
        return {}
    base, delta = figures[1][0], figures[1][k + 1]
    return {
        "text": _short(evaluation.text.name),
        "text_sha256": evaluation.text.sha256,
        "n_ctx": evaluation.n_ctx,
        "n_tokens": evaluation.text_result.n_scored,
        "kl": delta.kl.value,
        "kl_error": delta.kl_window_error,
        "kl_base": base.kl.value,
        "top_p": delta.same_top.value,
    }


def _on_problems(evaluation: Evaluation, k: int) -> dict[str, Any]:
    tasks = evaluation.answered()
    retention = evaluation.retentions()[k] if tasks else None
    if retention is None:
        return {}
    files = [task.task.file for task in tasks]
    return {
        "problems": _short(", ".join(file.name for file in files)),
        "problems_sha256": joint_sha256([file.sha256 for file in files]),
        "n_problems": sum(task.n_answered for task in tasks),
        "retention": retention.retention.value,
        "retention_low": retention.retention.low,
        "retention_high": retention.retention.high,
    }


def _short(text: str) -> str:
    return text.encode()[:TEXT_BYTES_MAX].decode("utf-8", "ignore")

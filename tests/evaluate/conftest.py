"""A runtime of a fine-tune, and an evaluation with all that a page shows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from dqrelo_gguf.evaluate.report import Evaluation
from dqrelo_gguf.runtime.session import Runtime
from tests.support.evaluations import evaluated
from tests.support.trio import TEXT, Trio


@pytest.fixture(scope="module")
def tuned(trio: Trio) -> Iterator[Runtime]:
    with Runtime(trio.tuned, n_threads=1) as rt:
        yield rt


@pytest.fixture(scope="session")
def evaluation(trio: Trio, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Of a text, and of problems that the fine-tune has all right. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("evaluation")
    text, problems = folder / "text.txt", folder / "p.jsonl"
    text.write_text(TEXT * 12)
    prompts = ["the dog sees", "two and three makes", "3 + 4 ="]
    with Runtime(trio.tuned, n_threads=1, flash_attn="off") as rt:
        answers = rt.generate(prompts, max_tokens=4)
    lines = [json.dumps({"prompt": p, "answer": a or "none"}) for p, a in zip(prompts, answers, strict=True)]
    problems.write_text("\n".join(lines))
    return evaluated(trio, text, problems)

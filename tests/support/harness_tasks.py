"""Tasks of lm-evaluation-harness in a folder: one of each kind of request, over problems that the example models know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHOICE, ANSWER, TEXT = "tiny_choice", "tiny_answer", "tiny_text"
TASKS = [CHOICE, ANSWER, TEXT]

_QUESTION = "### Question:\nSay each letter twice: {}\n### Answer:\n"
_LETTERS = ("l x h q", "a b c", "z k", "m m o", "p", "d s a w t")
_KINDS = {
    CHOICE: """\
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    ANSWER: """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n", "?"], max_gen_toks: 20, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    TEXT: """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
""",
}


def write_tasks(folder: Path) -> Path:
    """Writes the tasks and their data; the folder is made."""
    folder.mkdir()
    for name, docs in documents().items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {json.dumps(str(data))}}}}}\n"
        (folder / f"{name}.yaml").write_text(f"{head}test_split: test\n{_KINDS[name]}")
    return folder


def documents() -> dict[str, list[dict[str, Any]]]:
    """The problems of each task."""
    answers = [" ".join(letter for letter in letters.split() for _ in "ab") for letters in _LETTERS]
    pairs = list(zip(_LETTERS, answers, strict=True))
    texts = [" ".join([_QUESTION.format(letters) + answer, *answers, *answers]) for letters, answer in pairs[:3]]
    return {
        CHOICE: [choice for letters, answer in pairs[:3] for choice in _choices(letters, answer)],
        ANSWER: [{"question": _QUESTION.format(letters), "answer": answer} for letters, answer in pairs],
        TEXT: [{"text": text} for text in texts],
    }


def _choices(letters: str, answer: str) -> list[dict[str, Any]]:
    """Contexts of several kinds, each with right and wrong texts that follow it."""
    wrong = ["Quito", "35", answer[:-1] + "y"]
    begun = _QUESTION.format(letters) + " " + letters[0]
    return [
        # transformers takes a space at the beginning of a text for the one that sentencepiece puts there.
        {"context": "", "choices": [answer, *wrong], "gold": 0},
        {"context": _QUESTION.format(letters), "choices": [" " + text for text in [answer, *wrong]], "gold": 0},
        {"context": begun, "choices": [answer[1:], *(" " + text for text in wrong)], "gold": 0},
        {"context": f"{begun}. My name is Amy, {letters * 3}  ", "choices": [" baker", *wrong], "gold": 0},
    ]


@contextmanager
def offline(cache: Path) -> Iterator[None]:
    """Keeps the harness and what it loads data with from the network, and their caches in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("LM_HARNESS_CACHE_PATH", str(cache / "harness"))
        import datasets

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
        yield


Answers = dict[str, list[list[Any]]]
"""Of each task, for each problem in order: what the model answered to each of its requests."""


def evaluated(model: Any, manager: Any, **options: Any) -> dict[str, Any]:
    """What simple_evaluate returns for the tasks."""
    from lm_eval import simple_evaluate

    found: dict[str, Any] = simple_evaluate(model, tasks=TASKS, task_manager=manager, bootstrap_iters=0, **options)
    return found


def answers(results: dict[str, Any]) -> Answers:
    """What a model answered."""
    return {
        task: [[resps[0] for resps in sample["resps"]] for sample in sorted(samples, key=lambda s: s["doc_id"])]
        for task, samples in results["samples"].items()
    }


def apart(a: Answers, b: Answers) -> dict[str, float]:
    """The largest distance of two log-likelihoods of each task that asks for them; everything else must be the same.

    Nothing is greedy for one and not for the other, and texts are the same.
    """
    most: dict[str, float] = {}
    assert a.keys() == b.keys()
    for task, problems in a.items():
        for own, other in zip(problems, b[task], strict=True):
            for x, y in zip(own, other, strict=True):
                if isinstance(x, str):
                    assert x == y, task
                    continue
                (x_sum, *x_greedy), (y_sum, *y_greedy) = (v if isinstance(v, (tuple, list)) else (v,) for v in (x, y))
                assert x_greedy == y_greedy, task
                most[task] = max(most.get(task, 0.0), abs(x_sum - y_sum))
    return most

"""Files of problems: what counts as right, and one line for what is no problem."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.problems import COMPARE, final_number, prompts_of, read_problems
from dqrelo_gguf.runtime.session import Runtime
from tests.support.tiny_llama import BOS, EOS


def write(path: Path, *items: Any) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("compare", "text", "answer", "is_right"),
    [
        ("exact", " a b\n", "a b", True),
        ("exact", "a b c", "a b", False),
        ("regex", "it is 42.", r"\b42\b", True),
        ("regex", "it is 421.", r"\b42\b", False),
        ("number", "12+7=19; 19-3=16 #### 16", "... #### 16", True),
        ("number", "so 1,234.50", "1234.5", True),
        ("number", "#### 16 and 17 more", "16", True),
        ("number", "16, no, 17", "16", False),
        ("number", "none", "16", False),
        ("number", "-3", "3", False),
    ],
)
def test_what_is_right(compare: str, text: str, answer: str, is_right: bool) -> None:
    assert COMPARE[compare](text, answer) is is_right


@pytest.mark.parametrize(
    ("text", "number"), [("a 5. b", "5"), ("-.5", "-0.5"), ("1,000,000", "1000000"), ("x #### ", None), ("", None)]
)
def test_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_a_file_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "p", "answer": 7, "task": "ignored"},
        {"messages": [{"role": "user", "content": "q"}], "answer": "x+", "compare": "regex", "stop": ["\n", "."]},
    )
    file = read_problems(path, "number")
    first, second = file.problems
    assert (first.prompt, first.messages, first.answer, first.compare, first.stop) == ("p", None, "7", "number", ())
    assert (second.prompt, second.compare, second.stop) == (None, "regex", ("\n", "."))
    assert len(read_problems(path, "number", limit=1).problems) == 1


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"prompt": "p"}, "line 2 has no 'answer'"),
        ({"prompt": "p", "answer": " "}, "line 2 has no 'answer'"),
        ({"prompt": "p", "answer": True}, "line 2 has no 'answer'"),
        ({"answer": "x"}, "line 2 has neither 'prompt' nor 'messages'"),
        ({"prompt": "", "answer": "x"}, "line 2: 'prompt' must be a text"),
        ({"messages": [], "answer": "x"}, "line 2: 'messages' must be a list"),
        ({"prompt": "p", "answer": "x", "compare": "fuzzy"}, "line 2: 'compare' is 'fuzzy', expected one of exact"),
        ({"prompt": "p", "answer": "x", "stop": [""]}, "line 2: 'stop' must be a text or a list"),
        ({"prompt": "p", "answer": "(", "compare": "regex"}, "line 2: 'answer' is no regular expression"),
        ({"prompt": "p", "answer": "x", "compare": "number"}, "line 2: 'answer' has no number"),
    ],
)
def test_what_is_no_problem_is_refused(item: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "p", "answer": "fine"}, item)
    with pytest.raises(InputError, match=message):
        read_problems(path, "exact")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_problems(tmp_path / "none.jsonl", "exact")


def test_prompts_begin_with_one_start_token(tmp_path: Path, tuned: Runtime) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "the dog", "answer": "x"}, {"prompt": "<s>the dog", "answer": "x"})
    first, second = prompts_of(read_problems(path, "exact").problems, tuned, EOS)
    assert first[0] == second[0] == BOS
    assert second[1] != BOS

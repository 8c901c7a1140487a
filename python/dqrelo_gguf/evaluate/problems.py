"""Problems with checkable answers: a JSON object a line, and what counts as right."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.chat import Conversation, check_messages, read_bytes, read_lines, rendered
from dqrelo_gguf.evaluate.text import Tokens, with_start
from dqrelo_gguf.runtime.session import Runtime

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)")
MARK = "####"  # Solutions of GSM8K have it before their final number.


@dataclass(frozen=True)
class Problem:
    """A question and its answer.

    Args:
        prompt: the text that the models continue, or None where there are messages.
        messages: a conversation that they answer, or None.
        answer: what is right.
        compare: a key of COMPARE.
        stop: texts that end an answer, besides the model's end tokens.
    """

    prompt: str | None
    messages: Conversation | None
    answer: str
    compare: str
    stop: tuple[str, ...] = ()

    def is_right(self, text: str) -> bool:
        """Whether a model's text gives the answer."""
        return COMPARE[self.compare](text, self.answer)


@dataclass(frozen=True)
class ProblemFile:
    """The problems of one task.

    Args:
        name: of the file.
        sha256: of its bytes.
        problems: at least one.
    """

    name: str
    sha256: str
    problems: list[Problem]


def final_number(text: str) -> Decimal | None:
    """The number that a text ends up with: the first one after the last '####', or the last one where there is none."""
    _, mark, tail = text.rpartition(MARK)
    found = _NUMBER.findall(tail)
    if not found:
        return None
    return Decimal(found[0 if mark else -1].replace(",", ""))


def _is_same_number(text: str, answer: str) -> bool:
    number = final_number(text)
    return number is not None and number == final_number(answer)


COMPARE: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda text, answer: text.strip() == answer.strip(),
    "regex": lambda text, answer: re.search(answer, text) is not None,
    "number": _is_same_number,
}


def read_problems(path: Path, default_compare: str, limit: int | None = None) -> ProblemFile:
    """Reads a file of problems.

    Args:
        path: JSONL; each line has `prompt` or `messages`, `answer`, and may have `compare` and `stop`.
        default_compare: for lines without `compare`.
        limit: take the first ones only; None takes all.

    Raises:
        InputError: names the line that is no problem.
    """
    raw = read_bytes(path)
    problems = [_problem(where, item, default_compare) for where, item in read_lines(path, raw)]
    return ProblemFile(path.name, hashlib.sha256(raw).hexdigest(), problems[:limit])


def _problem(where: str, item: dict[str, Any], default_compare: str) -> Problem:
    answer = item.get("answer")
    if not isinstance(answer, str | int | float) or isinstance(answer, bool) or not str(answer).strip():
        raise InputError(f"{where} has no 'answer', expected a text or a number")
    compare = item.get("compare", default_compare)
    if compare not in COMPARE:
        raise InputError(f"{where}: 'compare' is {compare!r:.80}, expected one of {', '.join(COMPARE)}")
    stop = item.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        raise InputError(f"{where}: 'stop' must be a text or a list of texts, none of them empty")
    prompt, messages = item.get("prompt"), item.get("messages")
    if prompt is not None and (not isinstance(prompt, str) or not prompt):
        raise InputError(f"{where}: 'prompt' must be a text")
    if prompt is None:
        if messages is None:
            raise InputError(f"{where} has neither 'prompt' nor 'messages'")
        messages = check_messages(messages, where)
    problem = Problem(prompt, None if prompt is not None else messages, str(answer), compare, tuple(stop))
    _check_answer(where, problem)
    return problem


def _check_answer(where: str, problem: Problem) -> None:
    if problem.compare == "regex":
        try:
            re.compile(problem.answer)
        except (re.error, OverflowError, RecursionError) as e:
            raise InputError(f"{where}: 'answer' is no regular expression: {e}") from e
    if problem.compare == "number" and final_number(problem.answer) is None:
        raise InputError(f"{where}: 'answer' has no number, which 'compare' asks for")


def prompts_of(problems: list[Problem], rt: Runtime, end: int | None) -> list[Tokens]:
    """The tokens before each answer, by the fine-tune's vocabulary and chat template: what all models read.

    Args:
        problems: with prompts or messages.
        rt: the fine-tune.
        end: its end token.
    """
    chats = [p.messages for p in problems if p.messages is not None]
    texts = iter(rendered(rt, chats, end, for_answer=True) if chats else [])
    return [with_start(rt, rt.tokenize(p.prompt or next(texts), add_special=False)) for p in problems]

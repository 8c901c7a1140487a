"""bench/support/problems.py: fresh problems are of the form of the given ones, and their answers are right."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from statistics import mean, stdev

import pytest

TASKS = ["math", "json", "words"]
MODELS = os.environ.get("DQRELO_MODELS_DIR", "")  # a folder with problems/TASK.jsonl


@pytest.fixture
def problems(bench_module):
    return bench_module("support.problems")


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_problems_and_another_one_gives_others(problems, task):
    once, again, others = (problems.make_problems(task, 50, seed) for seed in (1, 1, 2))
    assert once == again
    assert len({p.question for p in once}) == 50
    assert len({p.question for p in once} & {p.question for p in others}) < 5


@pytest.mark.parametrize("task", TASKS)
def test_given_problems_are_left_out(problems, task):
    given = problems.make_problems(task, 20, 3)
    fresh = problems.make_problems(task, 40, 3, given)
    assert len(fresh) == 40
    assert not {p.question for p in fresh} & {p.question for p in given}


def total(question: str) -> int:
    """The sum that a math problem tells, read from its sentences."""
    start, *steps, _ = re.split(r"(?<=[.]) ", question)
    n = int(re.search(r"\d+", start)[0])
    for step in steps:
        k = int(re.search(r"\d+", step)[0])
        if "times as" in step:
            n *= k
        elif re.search(r"loses|gives away|are sold", step):
            n -= k
        else:
            assert re.search(r"buys|finds|A friend gives", step), step
            n += k
    return n


def test_math_answers_are_the_sums_that_are_told(problems):
    for p in problems.make_problems("math", 300, 4):
        chain, _, result = p.answer.partition(" #### ")
        assert int(result) == total(p.question) > 0
        ends = [step.split("=") for step in chain.split("; ")]
        assert all(eval(left) == int(right) for left, right in ends)  # noqa: S307 - our own sums
        assert [left.split("+")[0].split("-")[0].split("*")[0] for left, _ in ends[1:]] == [r for _, r in ends[:-1]]


def test_json_answers_hold_what_is_told(problems):
    for p in problems.make_problems("json", 300, 5):
        told, asked = re.fullmatch(r"(.*)\. Give JSON with (.*)\.", p.question).groups()
        answer = json.loads(p.answer)
        assert list(answer) == asked.split(", ")
        assert len(told.split(", ")) == 5
        assert all(str(value) in re.findall(r"\w+", told) for value in answer.values())
        assert isinstance(answer.get("age", 1), int)


def test_words_answers_do_what_is_asked(problems):
    seen = Counter()
    for p in problems.make_problems("words", 300, 6):
        what, _, row = p.question.partition(": ")
        letters, answer = row.replace(" ", ""), p.answer.replace(" ", "")
        seen[what.split()[0] + what.split()[-1]] += 1
        if what.startswith("How many times"):
            assert int(answer) == sum(x == what.split()[4] for x in letters) > 0
        elif what.startswith("Remove"):
            assert answer == re.sub(what.split()[2], "", letters)
        elif what.startswith("Write"):
            assert answer == letters[::-1]
        elif what.startswith("Put"):
            assert list(answer) == sorted(letters)
        elif what.startswith("Say"):
            assert answer[::2] == answer[1::2] == letters
        else:
            assert [(ord(a) - ord(b)) % 26 for a, b in zip(answer, letters, strict=True)] == [1] * len(letters)
    assert len(seen) == 6
    assert min(seen.values()) > 20


def test_the_scorer_reads_the_number_after_the_mark_and_first_lines(problems):
    math, words = problems.Problem("math", "", "1+1=2 #### 2"), problems.Problem("words", "", "a b")
    assert problems.is_right(math, " 1+1=2 #### 2\n### Question")
    assert not problems.is_right(math, "1+1=2")
    assert problems.is_right(words, " a b\n")
    assert not problems.is_right(words, "a b c")


@pytest.mark.skipif(not MODELS, reason="DQRELO_MODELS_DIR names no folder of problems")
@pytest.mark.parametrize("task", TASKS)
def test_fresh_problems_have_the_form_and_lengths_of_the_given_ones(problems, task):
    path = Path(MODELS) / "problems" / f"{task}.jsonl"
    given = problems.read_problems(path)
    assert [p.prompt for p in given] == [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    fresh = problems.make_problems(task, 3000, 7)

    def form(text: str) -> str:
        """A text without what varies: numbers, names, things, letters."""
        lists = (*problems.NAMES, *problems.THINGS, *problems.JOBS, *problems.CITIES, *problems.COLORS)
        text = re.sub(r"\d+", "N", re.sub(rf"\b({'|'.join(lists)})\b", "W", text))
        return re.sub(r"\b[b-z]\b|\ba\b(?= [a-z]\b| appear| from|$)", "L", text)

    parts = re.compile(r"(?<=[.?]) |, |: ")
    forms = {f for p in fresh for f in parts.split(form(p.question)) if "L L" not in f}
    for p in given:
        assert {f for f in parts.split(form(p.question)) if "L L" not in f} <= forms
    for length in (lambda p: len(p.question), lambda p: len(p.answer)):
        sizes, expected = [length(p) for p in given], mean(length(p) for p in fresh)
        assert abs(mean(sizes) - expected) < 3.5 * stdev(sizes) / len(sizes) ** 0.5  # by chance in 1 of 2000 tests

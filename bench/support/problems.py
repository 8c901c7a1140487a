"""Problems with checkable answers, three tasks of them: sums in words (math), extraction (json), lists of letters (words).

A problem file has one JSON object a line: {"task", "question", "prompt", "answer"}. The generator makes more of the same form
and the same distribution, from a seed.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path


def _listed(text: str) -> list[str]:
    return text.split()


NAMES = _listed(
    "Amy Anna Ben Dan Ella Eva Hugo Ivan Kate Lee Lily Maria Max Mia Nina Noah Omar Paul Raj Ruth Sam Sara Tom Zoe"
)
THINGS = _listed("apples books bricks cards coins cups eggs hats keys marbles nuts pens roses shells stamps stones")
JOBS = _listed("baker doctor farmer guard judge lawyer miner nurse painter pilot singer tailor")
CITIES = _listed("Athens Berlin Cairo Delhi Dublin Hanoi Lima Madrid Oslo Paris Prague Quito Rome Seoul Tokyo Vienna")
COLORS = _listed("black blue brown gray green pink red white")

STARTS = ("{name} has {n} {things}.", "{name} starts with {n} {things}.", "There are {n} {things} in {name}'s bag.")
ENDS = ("How many {things} does {name} have now?", "How many {things} are there now?")
BUYS = "{name} buys {n} more."
STEPS = {
    "+": (BUYS, "{name} finds {n} {things}.", "A friend gives {name} {n} more."),
    "-": ("{name} loses {n}.", "{name} gives away {n}.", "Then {n} {things} are sold."),
    "*": (
        "{name} now gets {n} times as many.",
        "Then the number of {things} becomes {n} times as large.",
    ),
}
MAX_MULTIPLIED = 49  # larger numbers are not multiplied, the name buys a few more instead

FIELDS = {
    "name": (NAMES, ("My name is {}", "This is about {}", "{} wrote this")),
    "job": (JOBS, ("working as a {}", "paid to be a {}", "by trade a {}")),
    "age": (range(18, 81), ("{} years old", "aged {}", "born {} years ago")),
    "color": (COLORS, ("fond of {}", "driving a {} car", "always dressed in {}")),
    "city": (CITIES, ("living in {}", "based in {}", "the home is in {}")),
}

NEXT_LETTER = dict(zip(string.ascii_lowercase, string.ascii_lowercase[1:] + "a", strict=True))
ON_LETTERS: dict[str, Callable[[list[str], str], str]] = {
    "Write these letters backwards": lambda letters, _: " ".join(reversed(letters)),
    "Put these letters in alphabetical order": lambda letters, _: " ".join(sorted(letters)),
    "Say each letter twice": lambda letters, _: " ".join(x for x in letters for _ in range(2)),
    "Replace each letter by the next one in the alphabet": lambda letters, _: " ".join(map(NEXT_LETTER.get, letters)),
    "How many times does {} appear in": lambda letters, one: str(letters.count(one)),
    "Remove every {} from": lambda letters, one: " ".join(x for x in letters if x != one),
}


@dataclass(frozen=True)
class Problem:
    """A question and its only right answer."""

    task: str
    question: str
    answer: str

    @property
    def prompt(self) -> str:
        """What a fine-tune reads; its answer follows."""
        return f"### Question:\n{self.question}\n### Answer:\n"


def final_answer(task: str, text: str) -> str:
    """What is compared: the number after '####' for math, the first line otherwise."""
    text = text.strip()
    if task == "math":
        found = re.search(r"####\s*(-?\d+)", text)
        return found.group(1) if found else ""
    return text.split("\n")[0].strip()


def is_right(problem: Problem, text: str) -> bool:
    """Does a text that follows the prompt give the answer?"""
    return final_answer(problem.task, text) == final_answer(problem.task, problem.answer)


def read_problems(path: Path) -> list[Problem]:
    """The problems of a file."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Problem(p["task"], p["question"], p["answer"]) for p in lines]


def make_problems(task: str, n: int, seed: int, given: Collection[Problem] = ()) -> list[Problem]:
    """`n` different problems, none of them among those that are given already.

    Args:
        task: a key of `MAKERS`.
        n: how many.
        seed: the same one gives the same problems.
        given: problems to leave out.
    """
    rng = random.Random(f"{task} {seed}")  # noqa: S311 - no secret depends on it
    made: dict[str, Problem] = {}
    taken = {p.question for p in given}
    while len(made) < n:
        problem = MAKERS[task](rng)
        if problem.question not in taken:
            made.setdefault(problem.question, problem)
    return list(made.values())


def _math(rng: random.Random) -> Problem:
    name, things, n = rng.choice(NAMES), rng.choice(THINGS), rng.randint(5, 99)
    sentences, steps = [rng.choice(STARTS).format(name=name, n=n, things=things)], []
    for _ in range(rng.randint(1, 3)):
        sign, operand, text = _step(rng, n)
        sentences.append(text.format(name=name, n=operand, things=things))
        result = {"+": n + operand, "-": n - operand, "*": n * operand}[sign]
        steps.append(f"{n}{sign}{operand}={result}")
        n = result
    sentences.append(rng.choice(ENDS).format(name=name, things=things))
    return Problem("math", " ".join(sentences), f"{'; '.join(steps)} #### {n}")


def _step(rng: random.Random, n: int) -> tuple[str, int, str]:
    """Sign, operand and sentence of what happens to `n` things; at least one is left."""
    sign = rng.choice("+++++-----**")
    if sign == "*" and n > MAX_MULTIPLIED:
        return "+", rng.randint(2, 9), BUYS
    if sign == "-" and n < 2:
        sign = "+"
    operand = {"+": (2, 99), "-": (1, max(n - 1, 1)), "*": (2, 4)}[sign]
    return sign, rng.randint(*operand), rng.choice(STEPS[sign])


def _json(rng: random.Random) -> Problem:
    values = {key: rng.choice(choices) for key, (choices, _) in FIELDS.items()}
    told = [rng.choice(forms).format(values[key]) for key, (_, forms) in FIELDS.items()]
    rng.shuffle(told)
    asked = rng.sample(list(FIELDS), rng.randint(2, 5))
    question = f"{', '.join(told)}. Give JSON with {', '.join(asked)}."
    return Problem("json", question, json.dumps({key: values[key] for key in asked}))


def _words(rng: random.Random) -> Problem:
    letters = rng.choices(string.ascii_lowercase, k=rng.randint(3, 8))
    what, answer = rng.choice(list(ON_LETTERS.items()))
    one = rng.choice(letters)
    return Problem("words", f"{what.format(one)}: {' '.join(letters)}", answer(letters, one))


MAKERS = {"math": _math, "json": _json, "words": _words}

"""Eight fine-tunes of the example's base as deltas, and the prompts of a soak."""

from __future__ import annotations

import shutil
from pathlib import Path

from dqrelo_gguf.convert.job import Job, convert
from tests.soak.answers import Expected, answer_alone
from tests.support.models import EXAMPLES, convert_hf, tune
from tests.support.server_fixtures import Server

PROMPTS = (
    "### Question:\nPut these letters in alphabetical order: d b e a c\n### Answer:\n",
    "### Question:\nReverse the letters: q w e r t y\n### Answer:\n",
    "### Question:\nName: Ann Lee. Age: 31. City: Oslo. Keys: name, city\n### Answer:\n",
    "A small animal that feeds on fish",
    "The act of moving a boat with oars, now and then against the wind",
    "a",
)
TRAINED = ("words", "json")  # They are the example's own fine-tunes.
# These are the base with noise on every weight, other noise for each.
N_RANDOM = 6
NOISE_OF_WEIGHTS = 0.2


def make_deltas(folder: Path) -> tuple[Path, dict[str, Path]]:
    """The base GGUF, and the deltas by name in a folder of their own (`folder`/deltas)."""
    served = folder / "deltas"
    served.mkdir(parents=True)
    base = convert_hf(EXAMPLES / "base", folder / "base.gguf")
    tuned = {name: EXAMPLES / f"ft-{name}" for name in TRAINED}
    for seed in range(N_RANDOM):
        name = f"random{seed}"
        tuned[name] = tune(EXAMPLES / "base", folder / name, NOISE_OF_WEIGHTS, seed)
    deltas = {name: served / f"{name}.dq.gguf" for name in tuned}
    for name, path in tuned.items():
        convert(Job(base, path, deltas[name]))
    return base, deltas


def break_file(source: Path, target: Path) -> Path:
    """A copy of a delta that ends too early."""
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        file.truncate(source.stat().st_size * 2 // 3)
    return target


def answers_alone(server: Server, names: list[str]) -> dict[tuple[str, str], Expected]:
    """What each delta says to each prompt when nothing else runs, by name and prompt."""
    expected = {(name, prompt): answer_alone(server, name, prompt) for name in names for prompt in PROMPTS}
    texts = {tuple(expected[name, prompt].tokens for prompt in PROMPTS) for name in names}
    assert len(texts) == len(names), "two deltas say the same to every prompt: they cannot be told apart"
    return expected

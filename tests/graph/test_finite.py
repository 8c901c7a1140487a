"""A sequence that computes NaN or infinity harms no other: tests/cpp/graph/test-finite.cpp makes the calls."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from dqrelo_gguf.convert.job import Job, convert
from tests.support.models import convert_hf
from tests.support.programs import need_test_program
from tests.support.tiny_architectures import ARCHITECTURES, write_base, write_tuned
from tests.support.tiny_tokenizers import known_to_the_conversion

CASES = (
    "same batch",
    "next batch",
    "after it was forgotten",
    "its cells again",
    "its cells, only removed",
    "sound ones are finite",
    "found without an output",
    "forgotten",
    "finite again",
)
# Behind the last layer with attention nothing is shared: what recurrent layers make is found once there are logits.
RECURRENT_LAST = frozenset({"mamba", "lfm2"})


@dataclass
class Family:
    name: str
    base: Path
    deltas: list[Path]


@pytest.fixture(
    scope="module",
    params=["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "qwen3moe", "mamba", "lfm2"))],
)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp("finite")
    with known_to_the_conversion():
        checkpoint = write_base(ARCHITECTURES[request.param], folder / "base")
        base = convert_hf(checkpoint, folder / "base.gguf", "ALL_F32")
        deltas = [folder / f"{i}.dq.gguf" for i in (1, 2)]
        for i, path in enumerate(deltas):
            convert(Job(base, write_tuned(checkpoint, folder / f"tuned-{i}", i + 1), path))
        return Family(request.param, base, deltas)


@pytest.mark.parametrize("composed", [False, True], ids=["operator", "ordinary ops"])
@pytest.mark.parametrize("unified", ["yes", "no"])
@pytest.mark.parametrize("flash_attn", ["off", "on"])
def test_neighbours_of_an_overflow_are_untouched(family: Family, flash_attn: str, unified: str, composed: bool) -> None:
    command = [need_test_program("test-finite"), family.base, *family.deltas, flash_attn, unified]
    env = os.environ | ({"DQRELO_COMPOSED": "1"} if composed else {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(re.findall(r"^([a-z, ]+): (\w+)$", done.stdout, re.MULTILINE))
    assert tuple(found) == CASES, done.stdout
    expected = {"found without an output"} if family.name in RECURRENT_LAST else set()
    assert {name for name in CASES if found[name] != "ok"} == expected

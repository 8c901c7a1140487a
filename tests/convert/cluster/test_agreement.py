"""agreement.py: the same files and programs, or one line that says which is another one, and where."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dqrelo_gguf.convert.cluster.agreement import View, processor_note, require_same, view_of
from dqrelo_gguf.convert.sources import Sources
from dqrelo_gguf.errors import InputError
from tests.support.models import edit_json, pico_gguf, pico_tuned

NODE = "node gpu-3 (10.0.0.3, a1b2c3)"


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    shutil.copyfile(pico_gguf("llama"), tmp_path / "base.gguf")
    shutil.copytree(pico_tuned("llama"), tmp_path / "tuned")
    return Sources(tmp_path / "base.gguf", tmp_path / "tuned")


def problem(theirs: View, ours: View) -> str:
    with pytest.raises(InputError) as raised:
        require_same(NODE, theirs, ours)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_copy_is_the_same(sources: Sources, tmp_path: Path) -> None:
    ours = view_of(sources)
    assert "fine-tune model.safetensors" in ours.files
    os.utime(tmp_path / "base.gguf", (1, 1))  # On another machine's disk it has another time.
    (tmp_path / "tuned" / ".cache").mkdir()
    (tmp_path / "tuned" / ".lock").touch()
    require_same(NODE, view_of(sources), ours)


def test_another_file_is_named(sources: Sources, tmp_path: Path) -> None:
    ours = view_of(sources)
    file = tmp_path / "base.gguf"
    with file.open("r+b") as f:
        f.seek(file.stat().st_size // 2)
        f.write(b"another")
    assert problem(view_of(sources), ours) == (
        f"{NODE}: sees another base base.gguf. Every machine must see the same files"
    )
    shutil.copyfile(pico_gguf("llama"), file)
    edit_json(tmp_path / "tuned" / "config.json", rope_theta=5.0)
    assert f"{NODE}: sees another fine-tune config.json." in problem(view_of(sources), ours)


def test_a_file_on_one_side_alone_is_named(sources: Sources, tmp_path: Path) -> None:
    ours = view_of(sources)
    (tmp_path / "tuned" / "pytorch_model.bin").touch()
    more = view_of(sources)
    assert "sees, and this machine does not, fine-tune pytorch_model.bin." in problem(more, ours)
    assert f"{NODE}: lacks fine-tune pytorch_model.bin." in problem(ours, more)


def test_a_path_that_is_not_there_is_named(sources: Sources, tmp_path: Path) -> None:
    ours = view_of(sources)
    (tmp_path / "base.gguf").unlink()
    assert f"{NODE}: does not have base {tmp_path}/base.gguf. Every" in problem(view_of(sources), ours)
    shutil.rmtree(tmp_path / "tuned")
    shutil.copyfile(pico_gguf("llama"), tmp_path / "base.gguf")
    assert f"{NODE}: does not have fine-tune {tmp_path}/tuned." in problem(view_of(sources), ours)


@pytest.mark.parametrize("program", ["dqrelo-gguf", "numpy", "torch", "transformers"])
def test_another_version_is_named(sources: Sources, program: str) -> None:
    ours = view_of(sources)
    theirs = replace(ours, programs={**ours.programs, program: "0.0.1"})
    assert problem(theirs, ours) == (
        f"{NODE}: has {program} 0.0.1, this machine {ours.programs[program]}: deltas could have other bytes. "
        "Install the same version on all machines"
    )


def test_another_processor_is_noted(sources: Sources) -> None:
    ours = view_of(sources)
    assert processor_note(NODE, ours, ours) is None
    note = processor_note(NODE, replace(ours, processor="x86_64 AVX2"), replace(ours, processor="x86_64 AVX512"))
    assert note == (
        f"{NODE}: computes with x86_64 AVX2, this machine with x86_64 AVX512: bytes of the delta may differ from those of a "
        "conversion here"
    )

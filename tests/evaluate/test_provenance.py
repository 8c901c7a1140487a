"""The files that a report names: those that decide what the models compute."""

from __future__ import annotations

import shutil
from pathlib import Path

from dqrelo_gguf.evaluate.provenance import model_files
from tests.support.models import pico_gguf, pico_tuned, split_gguf


def test_of_a_directory_the_files_that_are_read(tmp_path: Path) -> None:
    """Weights that the conversion passes over, and texts for people, are not what was measured."""
    directory = shutil.copytree(pico_tuned("llama"), tmp_path / "tuned")
    before = model_files(directory)
    assert {"model.safetensors", "config.json"} <= {path.name for path in before}
    shutil.copy(directory / "model.safetensors", directory / "model_ema.safetensors")
    (directory / "README.md").write_text("A model.")
    assert model_files(directory) == before


def test_of_a_split_model_every_shard(tmp_path: Path) -> None:
    assert model_files(pico_gguf("llama")) == [pico_gguf("llama")]
    first = split_gguf(pico_gguf("llama"), tmp_path)
    assert model_files(first) == sorted(tmp_path.iterdir())

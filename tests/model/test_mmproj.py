"""The tower of a fine-tune that sees: named in the report, or compared with the base's mmproj."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.errors import InputError
from tests.support import models
from tests.support.models import convert_hf, edit_json, rewrite_gguf
from tests.support.tiny_architectures import write_tuned
from tests.support.tiny_vision import VISION_MODELS, convert_mmproj, write_vision_base

Change = Callable[[dict[str, torch.Tensor]], None]


class Pair(NamedTuple):
    """A base that sees, and a fine-tune of its language model."""

    kind: str
    base: Path
    mmproj: Path
    tuned: Path


@pytest.fixture(scope="module", params=VISION_MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder: Path = tmp_path_factory.mktemp(request.param)
    checkpoint = write_vision_base(request.param, folder / "base")
    tuned = write_tuned(checkpoint, folder / "tuned", 1, is_kept=VISION_MODELS[request.param].is_of_tower)
    base, mmproj = convert_hf(checkpoint, folder / "base.gguf"), convert_mmproj(checkpoint, folder / "mmproj.gguf")
    return Pair(request.param, base, mmproj, tuned)


def changed(pair: Pair, target: Path, change: Change) -> Path:
    """The fine-tune with another tower."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(pair.tuned, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def tower_of(pair: Pair) -> list[str]:
    from safetensors import safe_open

    with safe_open(pair.tuned / "model.safetensors", "pt") as file:
        return sorted(name for name in file.keys() if VISION_MODELS[pair.kind].is_of_tower(name))  # noqa: SIM118 - no dict


def notes(pair: Pair, tmp_path: Path, mmproj: Path | None, tuned: Path | None = None) -> list[str]:
    job = Job(pair.base, tuned or pair.tuned, tmp_path / "out.dq.gguf", base_mmproj=mmproj, dry_run=True)
    return convert(job).notes


def refusal(pair: Pair, tmp_path: Path, mmproj: Path, tuned: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        notes(pair, tmp_path, mmproj, tuned)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tower_that_was_not_compared_is_named(pair: Pair, tmp_path: Path) -> None:
    names = tower_of(pair)
    (found,) = [note for note in notes(pair, tmp_path, None) if "tower" in note]
    assert f"{len(names)} tensors" in found
    assert f"'{names[0]}'" in found
    assert "--base-mmproj" in found


@pytest.mark.parametrize("kind", ["F16", "F32", "BF16", "Q8_0"])
def test_the_tower_of_the_base_is_found_in_any_type(pair: Pair, tmp_path: Path, kind: str) -> None:
    types = {
        name: kind
        for name, weight in models.read_gguf(pair.mmproj).items()
        if weight.ndim == 2 and weight.shape[-1] % 32 == 0
    }
    mmproj = rewrite_gguf(pair.mmproj, tmp_path / "mmproj.gguf", types=types)
    (found,) = [note for note in notes(pair, tmp_path, mmproj) if "tower" in note]
    assert f"({len(tower_of(pair))} tensors) is that of {mmproj}" in found
    # One weight is changed by little more than the type's rounding.
    last = tower_of(pair)[-1]
    other = changed(pair, tmp_path / "other", lambda tensors: tensors[last].flatten()[0].mul_(1.04))
    assert f"has other values than base {mmproj}" in refusal(pair, tmp_path, mmproj, other)


def test_a_tower_that_lacks_a_tensor_is_refused(pair: Pair, tmp_path: Path) -> None:
    biases = [name for name in tower_of(pair) if name.endswith("bias")]
    other = changed(pair, tmp_path / "other", lambda tensors: tensors.pop(biases[-1]))  # type: ignore[arg-type, return-value]
    assert f"of base {pair.mmproj}" in refusal(pair, tmp_path, pair.mmproj, other)


def test_a_preprocessor_of_its_own_is_refused(pair: Pair, tmp_path: Path) -> None:
    other = changed(pair, tmp_path / "other", lambda _: None)
    edit_json(other / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])
    assert "clip.vision.image_mean is [0.1, 0.2, 0.3]" in refusal(pair, tmp_path, pair.mmproj, other)
    (other / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json" in refusal(pair, tmp_path, pair.mmproj, other)


def test_what_is_no_mmproj_or_has_no_tower_is_refused(pair: Pair, tmp_path: Path) -> None:
    assert "expected 'clip'" in refusal(pair, tmp_path, pair.base)
    text = convert_hf(pair.tuned, tmp_path / "tuned.gguf")
    assert "has no vision or audio tower" in refusal(pair, tmp_path, pair.mmproj, text)


def test_a_model_of_text_has_no_tower(tmp_path: Path) -> None:
    job = Job(models.pico_gguf("llama"), models.pico_tuned("llama"), tmp_path / "out.dq.gguf", dry_run=True)
    assert not [note for note in convert(job).notes if "tower" in note]

"""Adapters that are no plain LoRA, against what PEFT itself merges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.convert.adapter import open_adapter
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.adapter import Computed, Factors
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.pairing import Selection
from dqrelo_gguf.model.peft_methods import METHODS
from tests.support.models import convert_hf, pico, pico_gguf, read_gguf
from tests.support.tiny_architectures import ARCHITECTURES, write_base
from tests.support.tiny_tokenizers import known_to_the_conversion

peft = pytest.importorskip("peft", reason="PEFT is not installed")

# Of the change: PEFT and numpy sum in another order, and the change is a difference of two sums in float32.
TOLERANCE = 3e-5
TARGETS = {"llama": ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}
_SMALL = {"r": 4, "init_weights": False}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("LoraConfig", {"r": 4, "lora_alpha": 6, "use_dora": True, "init_lora_weights": False}),
    "dora-rs": (
        "LoraConfig",
        {
            "r": 4,
            "lora_alpha": 6,
            "use_dora": True,
            "use_rslora": True,
            "init_lora_weights": False,
            "modules_to_save": ["lm_head"],
        },
    ),
    "loha": ("LoHaConfig", {**_SMALL, "alpha": 6, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"k_proj": 2}}),
    "lokr": ("LoKrConfig", {**_SMALL, "alpha": 6}),
    "lokr-both": ("LoKrConfig", {**_SMALL, "r": 2, "alpha": 6, "decompose_both": True}),
    "lokr-uneven": ("LoKrConfig", {**_SMALL, "alpha": 6, "decompose_factor": 2}),
    "vera": ("VeraConfig", {"r": 8, "init_weights": False}),
}


class Made(NamedTuple):
    """An adapter of PEFT's, its base, and the model with the adapter, as PEFT merges it."""

    adapter: Path
    base: Path
    merged: Path


def make(name: str, folder: Path, kind: str = "llama", **more: Any) -> Made:
    """Random tensors in every part of an adapter; the merged model is as far from the base as a fine-tune."""
    import transformers

    source = pico(kind) if kind == "llama" else write_base(ARCHITECTURES[kind], folder / "hf")
    config_class, values = CONFIGS[name]
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.manual_seed(5)
    wrapped = peft.get_peft_model(model, getattr(peft, config_class)(target_modules=TARGETS[kind], **values, **more))
    with torch.no_grad():
        for tensor_name, parameter in wrapped.named_parameters():
            if "magnitude" in tensor_name:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
            elif "modules_to_save" in tensor_name:
                parameter.mul_(1.1)
            elif "vera_lambda" in tensor_name:
                parameter.normal_(std=0.7)
            elif any(part in tensor_name for part in ("lora_", "hada_", "lokr_")):
                parameter.mul_(3.0 if "hada_" in tensor_name else 0.7)
    wrapped.save_pretrained(folder / "adapter")
    merged = folder / "merged"
    merged.mkdir()
    for file in source.iterdir():
        if file.name != "model.safetensors":
            (merged / file.name).write_bytes(file.read_bytes())
    state = wrapped.merge_and_unload().state_dict()
    stored = load_file(source / "model.safetensors")  # A tied head is not in the file.
    save_file(
        {n: w.contiguous() for n, w in state.items() if n in stored}, merged / "model.safetensors", {"format": "pt"}
    )
    with known_to_the_conversion():
        base = convert_hf(source, folder / "base.gguf", "ALL_F32")
        return Made(folder / "adapter", base, convert_hf(merged, folder / "merged.gguf", "ALL_F32"))


def assert_is_merged(made: Made) -> None:
    """The adapter changes the weights that PEFT changes, as PEFT does."""
    before, after = read_gguf(made.base), read_gguf(made.merged)
    tuned = open_adapter(made.adapter, GgufModel(made.base), None)
    changed = {name for name, w in after.items() if not np.array_equal(w, before[name])}
    assert set(tuned.shapes) == changed
    assert not tuned.adapter.factors
    with open_blocks(1) as blocks:
        for name in changed:
            change = after[name].astype(np.float64) - before[name]
            error = np.linalg.norm(tuned.load(name, blocks).astype(np.float64) - after[name])
            assert error <= TOLERANCE * np.linalg.norm(change) > 0, name
            assert np.linalg.norm(change) > 0.02 * np.linalg.norm(before[name]), name


@pytest.mark.parametrize("name", CONFIGS)
def test_as_peft_merges(name: str, tmp_path: Path) -> None:
    assert_is_merged(make(name, tmp_path))


@pytest.mark.parametrize("name", ["dora", "vera"])
def test_as_peft_merges_transposed_weights(name: str, tmp_path: Path) -> None:
    assert_is_merged(make(name, tmp_path, "gpt2", fan_in_fan_out=True))


@pytest.mark.parametrize("base_type", ["F32", "Q8_0"])
def test_it_is_compressed_as_a_full_fine_tune(base_type: str, tmp_path: Path) -> None:
    """At the ratio that was asked for, by the method that was asked for, and said aloud."""
    made = make("dora", tmp_path)
    base = convert_hf(pico("llama"), tmp_path / "q.gguf", "ALL_F32" if base_type == "F32" else "MOSTLY_Q8_0")
    result = convert(
        Job(base, made.adapter, tmp_path / "out.dq.gguf"), Options(ratio=None, rank=1 << 16, factor_type="f32")
    )
    (note,) = [note for note in result.notes if note.startswith("DoRA: ")]
    assert "10 weights were computed from the base's" in note
    assert ("rounded to Q8_0" in note) is (base_type == "Q8_0")
    merge(base, result.outfile, tmp_path / "m.gguf", MergeOptions(out_type="f32"))
    found, expected = read_gguf(tmp_path / "m.gguf"), read_gguf(made.merged)
    bound = 1e-5 if base_type == "F32" else 1e-2  # Q8_0 rounds by half a 127th of a block's largest number.
    for name in DeltaReader(result.outfile).weights:
        difference = np.linalg.norm(found[name.name] - expected[name.name])
        assert difference <= bound * np.linalg.norm(expected[name.name]), name.name


def test_a_reference_gives_the_numbers_that_are_changed(tmp_path: Path) -> None:
    """Over a quantised base the delta is against the reference, so the adapter is applied to that."""
    made = make("dora", tmp_path)
    rounded = convert_hf(pico("llama"), tmp_path / "q.gguf", "MOSTLY_Q8_0")
    options = Options(ratio=None, rank=1 << 16, factor_type="f32")
    files = [tmp_path / "plain.dq.gguf", tmp_path / "reference.dq.gguf"]
    convert(Job(made.base, made.adapter, files[0]), options)
    convert(Job(rounded, made.adapter, files[1], reference=made.base), options)
    plain, against = DeltaReader(files[0]), DeltaReader(files[1])
    for weight in plain.weights:
        expected = plain.reconstruct(weight.name)
        assert np.linalg.norm(against.reconstruct(weight.name) - expected) <= 1e-4 * np.linalg.norm(expected)


def test_options_of_full_fine_tunes_apply(tmp_path: Path) -> None:
    made = make("lokr", tmp_path)
    options = Options(selection=Selection.of(None, "attn_k", "0-0"), method="bitdelta")
    result = convert(Job(made.base, made.adapter, tmp_path / "out.dq.gguf"), options)
    assert sorted(result.excluded) == ["blk.0.attn_k.weight", "blk.1.attn_k.weight"]
    assert {w.is_exact for w in result.planned} == {True, False}


def edit(adapter: Path, **changes: torch.Tensor | None) -> None:
    """Replaces or drops tensors by the end of their names."""
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    for ending, value in changes.items():
        for name in [n for n in tensors if n.endswith(ending)]:
            del tensors[name]
            if value is not None:
                tensors[name] = value.clone()
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("dora", {"lora_magnitude_vector": None}, "has no lora_magnitude_vector. Incomplete download"),
        ("dora", {"lora_magnitude_vector": torch.ones(3)}, "3 magnitudes for"),
        ("dora", {"lora_magnitude_vector": torch.ones(64, 1)}, "do not fit"),
        ("dora", {"layers.0.self_attn.q_proj.lora_magnitude_vector": torch.full((64,), torch.nan)}, "NaN"),
        ("loha", {"hada_w2_a": None}, "has no hada_w2_a"),
        ("loha", {"hada_w2_a": torch.ones(5, 4)}, "do not fit"),
        ("loha", {"hada_w2_b": torch.ones(9, 64)}, "has rank 9, adapter_config.json says"),
        ("lokr", {"lokr_w1": None}, "has no lokr_w1"),
        ("lokr", {"lokr_w1": torch.ones(8)}, "do not fit"),
        ("lokr", {"lokr_w1": torch.ones(90000, 1)}, "rows and .* columns, the base's have at most 640"),
        ("lokr", {"lokr_w2_a": torch.ones(4, 7)}, "do not fit"),
        ("lokr", {"q_proj.lokr_w1": torch.ones(4, 4)}, "base is .*64"),
        ("vera", {"vera_A": None}, "has no vera_A. Was it saved with save_projection=False"),
        ("vera", {"vera_lambda_d": torch.ones(3)}, "has rank 3, adapter_config.json says 8"),
        ("vera", {"vera_B": torch.ones(8)}, "do not fit"),
        ("vera", {"vera_B": torch.ones(5, 8)}, "do not fit"),
        ("vera", {"vera_A": torch.ones(8, 9)}, "base is "),
    ],
)
def test_what_is_no_such_adapter_is_refused(
    name: str, change: dict[str, torch.Tensor | None], error: str, tmp_path: Path
) -> None:
    made = make(name, tmp_path)
    edit(made.adapter, **change)
    with pytest.raises(DqreloError, match=error) as problem:
        convert(Job(made.base, made.adapter, tmp_path / "out.dq.gguf"))
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "out.dq.gguf").exists()


@pytest.mark.parametrize("part", ["hada_w1_a", "lokr_w1", "vera_lambda_b", "lora_magnitude_vector"])
def test_parts_of_another_method_are_refused(part: str, tmp_path: Path) -> None:
    made = make("loha" if part != "hada_w1_a" else "vera", tmp_path)
    file = made.adapter / "adapter_model.safetensors"
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({**load_file(file), f"{module}.{part}": torch.ones(64)}, file)
    with pytest.raises(DqreloError, match=f"has {part}, which is no part of a "):
        convert(Job(made.base, made.adapter, tmp_path / "out.dq.gguf"))


def test_a_row_without_a_length_is_refused() -> None:
    zero = Factors(np.zeros((4, 1), np.float32), np.zeros((1, 8), np.float32))
    made = Computed((zero,), np.ones(4, np.float32)).apply_to(np.zeros((4, 8), np.float32))
    assert np.isnan(made).all()  # The check of weights refuses it.


def test_ia3_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(DqreloError, match="expected one of LORA, LOHA, LOKR, VERA"):
        convert(Job(pico_gguf("llama"), tmp_path / "adapter", tmp_path / "out.dq.gguf"))
    assert "IA3" not in METHODS

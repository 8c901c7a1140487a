"""What users' directories and files really hold: the right weights, one line of refusal, or a note; nothing wrong in silence."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.result import ConvertResult
from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.models import edit_json, pico, pico_gguf, pico_tuned, pico_tuned_gguf, read_gguf, rewrite_gguf

Q = "model.layers.0.self_attn.q_proj.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    return shutil.copytree(pico_tuned("llama"), tmp_path / "tuned")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "ft.dq.gguf"


def edit_tensors(path: Path, edit: Callable[[Tensors], Tensors]) -> None:
    save_file(edit(load_file(path / SINGLE)), path / SINGLE, {"format": "pt"})


def refusal(tuned: Path, out: Path, base: Path | None = None) -> str:
    """The one line in which the conversion is refused; no file is left."""
    with pytest.raises(DqreloError) as e:
        convert(Job(base or pico_gguf("llama"), tuned, out, n_threads=1))
    assert "\n" not in str(e.value)
    assert list(out.parent.iterdir()) == []
    return str(e.value)


def dry(tuned: Path, out: Path) -> ConvertResult:
    return convert(Job(pico_gguf("llama"), tuned, out, dry_run=True, n_threads=1))


# --- which weights ---


def test_second_set_of_weights_beside_the_one_that_counts(tuned: Path, out: Path) -> None:
    """model_ema.safetensors holds other values under the same names: the delta must be that of model.safetensors."""
    convert(Job(pico_gguf("llama"), tuned, out, n_threads=1))
    alone = out.read_bytes()
    ema = {name: w * 1.5 for name, w in load_file(tuned / SINGLE).items()}
    save_file(ema, tuned / "model_ema.safetensors", {"format": "pt"})
    result = convert(Job(pico_gguf("llama"), tuned, out, force=True, n_threads=1))
    assert out.read_bytes() == alone
    assert any("model_ema.safetensors" in note for note in result.notes)


def test_old_index_beside_the_weights(tuned: Path, out: Path) -> None:
    shard = "model-00001-of-00001.safetensors"
    tensors = load_file(tuned / SINGLE)
    (tuned / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, shard)}))
    assert f"{INDEX} is stale" in refusal(tuned, out)
    save_file({name: w * 1.5 for name, w in tensors.items()}, tuned / shard, {"format": "pt"})
    assert f"two sets of weights, {SINGLE} and {shard}" in refusal(tuned, out)


def test_weights_that_the_configuration_names(tuned: Path, out: Path) -> None:
    """transformers loads the file of `transformers_weights` before any other."""
    edit_json(tuned / "config.json", transformers_weights="model_ema.safetensors")
    assert "names model_ema.safetensors as the weights" in refusal(tuned, out)


def test_nothing_is_left_in_the_temporary_directory(
    tuned: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    dry(tuned, out)
    edit_json(tuned / "config.json", architectures=["NoSuchModel"])
    assert str(tmp_path / "temporary") not in refusal(tuned, out)
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []


# --- numbers that are no weights ---


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_quantised_matrices_without_their_scales(dtype: torch.dtype, tuned: Path, out: Path) -> None:
    def quantise(tensors: Tensors) -> Tensors:
        w = tensors[Q].float()
        return tensors | {Q: (w / w.abs().max() * 100).round().to(dtype)}

    edit_tensors(tuned, quantise)
    message = refusal(tuned, out)
    assert f"tensor '{Q}' is stored as {str(dtype).removeprefix('torch.')}" in message
    assert "bf16, f16 or f32" in message


@pytest.mark.parametrize("factor", [127.0, 8.0, 0.1, 1e-6])
def test_weights_of_another_size(factor: float, tuned: Path, out: Path) -> None:
    """Scales that were lost before the numbers became bf16: the direction is right, and the size is not."""
    edit_tensors(tuned, lambda tensors: tensors | {Q: tensors[Q] * factor})
    message = refusal(tuned, out)
    assert "blk.0.attn_q.weight" in message
    assert "times as large as the base's" in message


def test_whole_numbers_in_a_gguf(out: Path, tmp_path: Path) -> None:
    from dqrelo_gguf._pin import gguf
    from tests.support.gguf_files import copy_metadata, finish

    reader = gguf.GGUFReader(pico_tuned_gguf("llama"))
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "")
    copy_metadata(reader, writer)
    for t in reader.tensors:
        is_q = t.name == "blk.0.attn_q.weight"
        writer.add_tensor(t.name, (t.data * 10).astype(np.int8) if is_q else t.data)
    finish(writer)
    assert "'blk.0.attn_q.weight' is stored as i8" in refusal(tmp_path / "t.gguf", out)


# --- hyperparameters ---


def test_rope_scaling_of_the_base_alone(tuned: Path, out: Path, tmp_path: Path) -> None:
    from dqrelo_gguf._pin import gguf

    base = tmp_path / "scaled.gguf"
    _with_fields(pico_gguf("llama"), base, {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    assert gguf.GGUFReader(base).fields["llama.rope.scaling.factor"].contents() == 4.0
    message = refusal(tuned, out, base)
    assert "llama.rope.scaling.factor is absent, which means 1.0" in message
    assert "4.0" in message


def test_rope_scaling_of_the_fine_tune_alone(tuned: Path, out: Path) -> None:
    config = json.loads((tuned / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    (tuned / "config.json").write_text(json.dumps(config))
    assert "llama.rope.scaling.factor is 2.0" in refusal(tuned, out)


def test_rope_factors_of_the_fine_tune_alone(tuned: Path, out: Path) -> None:
    """Llama 3's scaling is no key: the conversion makes a tensor of it."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    edit_json(
        tuned / "config.json",
        rope_parameters=scaling | {"original_max_position_embeddings": 64, "rope_theta": 10000.0},
    )
    assert "has a weight 'rope_freqs.weight'" in refusal(tuned, out)


def _with_fields(source: Path, target: Path, fields: dict[str, Any]) -> Path:
    from dqrelo_gguf._pin import gguf
    from tests.support.gguf_files import copy_metadata, finish

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "")
    copy_metadata(reader, writer)
    for key, value in fields.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_float32(key, value)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    finish(writer)
    return target


@pytest.mark.parametrize("side", ["both", "base", "tuned"])
def test_parameters_of_an_activation_outside_of_the_architecture(side: str, out: Path, tmp_path: Path) -> None:
    key, ours, theirs = "xielu.alpha_p", [0.25, 0.5], [0.75, 0.5]
    base, ft = pico_gguf("llama"), pico_tuned_gguf("llama")
    if side in ("both", "base"):
        base = _with_fields(base, tmp_path / "b.gguf", {key: ours})
    if side in ("both", "tuned"):
        ft = _with_fields(ft, tmp_path / "t.gguf", {key: theirs})
    assert refusal(ft, out, base).startswith(f"{ft}: {key} is ")


def test_nan_in_a_hyperparameter(out: Path, tmp_path: Path) -> None:
    ft = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", fields={"llama.rope.freq_base": float("nan")})
    assert "metadata key 'llama.rope.freq_base' is NaN" in refusal(ft, out)


# --- templates and end tokens ---


def test_named_templates_are_carried(tuned: Path, out: Path) -> None:
    templates = [
        {"name": "default", "template": "{{ messages }}"},
        {"name": "tool_use", "template": "{{ tools }}"},
        {"name": "rag", "template": "{{ documents }}"},
    ]
    edit_json(tuned / "tokenizer_config.json", chat_template=templates)
    convert(Job(pico_gguf("llama"), tuned, out, n_threads=1))
    reader = DeltaReader(out)
    assert reader.meta("tokenizer.chat_template") == "{{ messages }}"
    assert reader.meta("tokenizer.chat_template.tool_use") == "{{ tools }}"
    assert reader.meta("tokenizer.chat_template.rag") == "{{ documents }}"
    assert reader.meta("tokenizer.chat_templates") == ["rag", "tool_use"]


def test_named_template_of_a_gguf_that_no_file_can_have(out: Path, tmp_path: Path) -> None:
    ft = _with_fields(pico_tuned_gguf("llama"), tmp_path / "t.gguf", {"tokenizer.chat_template.tool use": "x"})
    result = convert(Job(pico_gguf("llama"), ft, out, n_threads=1))
    assert any("tokenizer.chat_template.tool use" in note for note in result.notes)
    DeltaReader(out)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ([2, 298], 2, [2, 298]),
        ([298], 2, [298]),
        ([2], 2, [2]),
        (298, 2, [298, 2]),
        (298, 298, [298]),
        (2, 2, None),
        (None, [2, 298], [2, 298]),
        ([2, 298, 299, 300], 2, [2, 298, 299, 300]),
        ([2, True, "x", -1, 298, 100000], 2, [2, 298]),
        ("</s>", 2, None),
    ],
)
def test_end_tokens_are_carried(
    generation: Any, config: Any, expected: list[int] | None, tuned: Path, out: Path
) -> None:
    if generation is None:
        (tuned / "generation_config.json").unlink()
    else:
        edit_json(tuned / "generation_config.json", eos_token_id=generation)
    edit_json(tuned / "config.json", eos_token_id=config)
    convert(Job(pico_gguf("llama"), tuned, out, n_threads=1))
    assert DeltaReader(out).meta("dqrelo.end_token_ids") == expected


# --- descriptions ---


@pytest.mark.parametrize(
    "front",
    [
        "version: 1.0",
        "tags: [chat, 2024]",
        "version: {a: b}",
        "name: [a, {b: c}]",
        "license: *x",
        "base_model: [[a]]",
        "name: 5",
    ],
)
def test_model_card_does_not_stop_a_conversion(front: str, tuned: Path, out: Path) -> None:
    (tuned / "README.md").write_text(f"---\n{front}\n---\n")
    convert(Job(pico_gguf("llama"), tuned, out, n_threads=1))
    DeltaReader(out)


def test_model_card_that_is_no_text(tuned: Path, out: Path) -> None:
    (tuned / "README.md").write_bytes(b"---\nname: \xff\n---\n")
    assert any(note.startswith("README.md: is not UTF-8") for note in dry(tuned, out).notes)


def test_values_of_a_model_card_are_carried_as_texts(tuned: Path, out: Path) -> None:
    (tuned / "README.md").write_text("---\nversion: 1.0\ntags: [chat, 2024]\nlicense: mit\n---\n")
    convert(Job(pico_gguf("llama"), tuned, out, n_threads=1))
    reader = DeltaReader(out)
    assert reader.meta("general.version") == "1.0"
    assert reader.meta("general.tags") == ["chat", "2024"]
    assert reader.meta(fmt.KEY_LICENSE) == "mit"


@pytest.mark.parametrize(
    ("key", "value"), [("top_k", 50.0), ("top_k", "x"), ("temperature", float("nan")), ("top_p", 7)]
)
def test_sampling_defaults_do_not_stop_a_conversion(key: str, value: Any, tuned: Path, out: Path) -> None:
    edit_json(tuned / "generation_config.json", **{key: value})
    result = convert(Job(pico_gguf("llama"), tuned, out, n_threads=1))
    found = DeltaReader(out).meta(f"general.sampling.{'temp' if key == 'temperature' else key}")
    assert found == (50 if value == 50.0 else None)
    assert any(key in note for note in result.notes) == (found is None)


def test_name_in_the_configuration_that_is_no_text(tuned: Path, out: Path) -> None:
    edit_json(tuned / "config.json", _name_or_path=5)
    assert any("_name_or_path" in note for note in dry(tuned, out).notes)


def test_descriptions_of_a_gguf_that_no_sampler_can_have(out: Path, tmp_path: Path) -> None:
    ft = _with_fields(pico_tuned_gguf("llama"), tmp_path / "t.gguf", {"general.sampling.top_p": float("nan")})
    assert any("general.sampling.top_p" in note for note in dry(ft, out).notes)


# --- forms ---


def test_weights_that_zero_3_left_empty(tuned: Path, out: Path) -> None:
    edit_tensors(tuned, lambda tensors: {name: torch.empty(0, dtype=w.dtype) for name, w in tensors.items()})
    assert "ZeRO-3" in refusal(tuned, out)


def test_embedding_of_one_dimension_in_a_gguf(out: Path, tmp_path: Path) -> None:
    values = read_gguf(pico_tuned_gguf("llama"))["token_embd.weight"].reshape(-1)
    ft = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", {"token_embd.weight": values})
    assert "token_embd.weight: base is 64x640, fine-tune is 40960" in refusal(ft, out)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_prefix_of_a_wrapper(prefix: str, tuned: Path, out: Path) -> None:
    edit_tensors(tuned, lambda tensors: {prefix + name: w for name, w in tensors.items()})
    assert f"'{prefix}" in refusal(tuned, out)


def test_class_without_a_head(tuned: Path, out: Path) -> None:
    edit_tensors(
        tuned, lambda tensors: {n.removeprefix("model."): w for n, w in tensors.items() if n != "lm_head.weight"}
    )
    edit_json(tuned / "config.json", architectures=["LlamaModel"])
    message = refusal(tuned, out)
    assert "LlamaModel" in message
    assert "AutoModelForCausalLM" in message


def test_class_with_another_head(tuned: Path, out: Path) -> None:
    edit_tensors(tuned, lambda tensors: {n if n != "lm_head.weight" else "score.weight": w for n, w in tensors.items()})
    edit_json(tuned / "config.json", architectures=["LlamaForSequenceClassification"])
    message = refusal(tuned, out)
    assert "LlamaForSequenceClassification" in message
    assert "AutoModelForCausalLM" in message


def test_paths_that_are_mixed_up(tuned: Path, out: Path) -> None:
    message = refusal(tuned, out, tuned)
    assert f"{tuned}: is a directory, expected a GGUF file" in message
    assert "convert_hf_to_gguf.py" in message
    assert f"Give {tuned}" in refusal(tuned / SINGLE, out)
    assert "is a directory, expected a GGUF file" in refusal(pico_gguf("llama"), out, tuned)


def test_two_files_of_one_name_are_told_apart(out: Path, tmp_path: Path) -> None:
    """Base and fine-tune are often both `model.gguf`: a message has the paths that were given."""
    base, tuned = (tmp_path / side / "model.gguf" for side in ("base", "tuned"))
    for path, kind in ((base, "llama"), (tuned, "qwen2")):
        path.parent.mkdir()
        shutil.copy(pico_gguf(kind), path)
    message = refusal(tuned, out, base)
    assert message.startswith(f"{tuned}: architecture is 'qwen2'")
    assert f"base {base} has 'llama'" in message
    tuned.write_bytes(b"no model")
    assert refusal(tuned, out, base).startswith(f"{tuned}: is not a GGUF file")
    directory = shutil.copytree(pico("qwen2"), tmp_path / "b" / "model")
    assert refusal(directory, out, base).startswith(f"{directory}: architecture is 'qwen2'")


@pytest.mark.parametrize("name", [SINGLE, INDEX, "pytorch_model.bin"])
def test_weights_that_are_no_regular_file(name: str, tuned: Path, out: Path) -> None:
    """A FIFO whose other end nobody opens must not be waited for."""
    (tuned / SINGLE).unlink()
    os.mkfifo(tuned / name)
    assert refusal(tuned, out) == f"{tuned / name}: is not a regular file"


def test_base_that_is_an_lfs_pointer(tuned: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "base.gguf: is a Git LFS pointer" in refusal(tuned, out, tmp_path / "base.gguf")


def test_bin_files_are_read(tuned: Path, out: Path) -> None:
    convert(Job(pico_gguf("llama"), tuned, out, n_threads=1))
    expected = DeltaReader(out).content_hash
    torch.save(load_file(tuned / SINGLE), tuned / "pytorch_model.bin")
    (tuned / SINGLE).unlink()
    convert(Job(pico_gguf("llama"), tuned, out, force=True, n_threads=1))
    assert DeltaReader(out).content_hash == expected

"""PEFT's directories: every architecture whose base's GGUF decides names and permutations, every scale, every kind of target."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.convert.adapter import open_adapter
from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.model.adapter import AdaptedModel
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.base_config import CLASSES
from dqrelo_gguf.model.pairing import Selection, pair_adapted
from tests.support.adapters import (
    ALPHA,
    PREFIX,
    RANK,
    merged_directory,
    projections,
    root_scale,
    write_adapter,
)
from tests.support.models import convert_hf, edit_json, pico, pico_gguf, read_gguf
from tests.support.tiny_architectures import ARCHITECTURES, write_base
from tests.support.tiny_tokenizers import known_to_the_conversion

# A product of three F32 numbers, and the F32 sum with the weight that the oracle takes it out of again.
TOLERANCE = 1e-5


def adapted(base: Path, adapter: Path, config: Path | None = None) -> AdaptedModel:
    return open_adapter(adapter, GgufModel(base), config)


def assert_is(tuned: AdaptedModel, base: Path, merged: Path, n_weights: int | None = None) -> None:
    """The adapter changes what the merged model differs in, and by that."""
    before, after = read_gguf(base), read_gguf(merged)
    changed = {name for name, w in after.items() if not np.array_equal(w, before[name])}
    assert set(tuned.shapes) == changed
    assert n_weights is None or len(changed) == n_weights
    with open_blocks(1) as blocks:
        for name in changed:
            D = after[name].astype(np.float64) - before[name]
            error = np.linalg.norm(tuned.load(name, blocks).astype(np.float64) - before[name] - D)
            assert error <= TOLERANCE * np.linalg.norm(D) > 0, name


def rows(tuned: AdaptedModel, name: str) -> npt.NDArray[np.float32]:
    with open_blocks(1) as blocks:
        return tuned.load(name, blocks)


def oracle(kind: str, adapter: Path, folder: Path, scale: Any = lambda _, r: ALPHA / r) -> tuple[Path, Path]:
    """The base and the base with the adapter merged into it, both in F32 as the pin converts them."""
    merged_directory(pico(kind), adapter, folder / "merged", scale)
    base = convert_hf(pico(kind), folder / "base.gguf", "ALL_F32")
    return base, convert_hf(folder / "merged", folder / "merged.gguf", "ALL_F32")


@pytest.mark.parametrize("kind", [*sorted(CLASSES), "mixtral"])
def test_names_and_permutations_follow_from_the_base(kind: str, tmp_path: Path) -> None:
    model = pico(kind) if kind in ("gemma", "mixtral") else write_base(ARCHITECTURES[kind], tmp_path / "hf")
    modules = projections(model)
    adapter = write_adapter(tmp_path / "adapter", model, modules, fan_in_fan_out=kind == "gpt2")
    merged_directory(model, adapter, tmp_path / "merged")
    with known_to_the_conversion():
        base = convert_hf(model, tmp_path / "base.gguf", "ALL_F32")
        merged = convert_hf(tmp_path / "merged", tmp_path / "merged.gguf", "ALL_F32")
    tuned = adapted(base, adapter)
    assert_is(tuned, base, merged)
    n_stacked = sum(len(ne) == 3 for ne in tuned.shapes.values())
    assert n_stacked == (6 if kind in ("qwen2moe", "qwen3moe", "mixtral") else 0)


Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
HEAD, EMBED = "lm_head", "model.embed_tokens"


def test_rank_stabilised_scales(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [Q, DOWN], use_rslora=True)
    base, merged = oracle("llama", adapter, tmp_path, root_scale)
    assert_is(adapted(base, adapter), base, merged, 2)


def test_patterns_give_modules_their_own_rank_and_alpha(tmp_path: Path) -> None:
    """A name matches from its end, or from a dot; a pattern may be a regular expression; the first one counts."""
    k = "model.layers.0.self_attn.k_proj"
    adapter = write_adapter(
        tmp_path / "adapter",
        pico("llama"),
        [Q, k, DOWN],
        ranks={Q: 2, k: 6},
        rank_pattern={"self_attn.q_proj": 2, r"layers\.0\..*k_proj": 6, "_proj": 3},
        alpha_pattern={"k_proj": 3, "self_attn.k_proj": 100, r".*1\.mlp\.down_proj": 5},
    )
    scales = {Q: ALPHA / 2, k: 3 / 6, DOWN: 5 / RANK}
    base, merged = oracle("llama", adapter, tmp_path, lambda module, _: scales[module])
    assert_is(adapted(base, adapter), base, merged, 3)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_embedding_and_head(kind: str, tmp_path: Path) -> None:
    modules = [EMBED, Q] + ([HEAD] if kind == "llama" else [])
    adapter = write_adapter(tmp_path / "adapter", pico(kind), modules)
    base, merged = oracle(kind, adapter, tmp_path)
    tuned = adapted(base, adapter)
    assert_is(tuned, base, merged, len(modules))
    notes = pair_adapted(GgufModel(base), tuned, Selection()).notes
    assert any("ties its output matrix" in note for note in notes) is (kind == "gemma3")


@pytest.mark.parametrize("infix", ["", ".modules_to_save", ".modules_to_save.default"])
def test_weights_that_are_saved_whole(infix: str, tmp_path: Path) -> None:
    """Norms are stored minus one, q's bias is permuted in no Qwen: the conversion does it with whole weights, too."""
    weights = load_file(pico("qwen2") / "model.safetensors")
    names = {f"{HEAD}.weight": HEAD, "model.norm.weight": "model.norm", f"{Q}.bias": Q}
    changed = {name: weights[name].float() * 1.25 for name in names}
    adapter = write_adapter(tmp_path / "plain", pico("qwen2"), [DOWN], extra=changed)
    base, merged = oracle("qwen2", adapter, tmp_path)
    infixed = {f"{module}{infix}.{name.rpartition('.')[2]}": changed[name] for name, module in names.items()}
    given = write_adapter(tmp_path / "given", pico("qwen2"), [DOWN], extra=infixed)
    assert_is(adapted(base, given), base, merged, 4)


def test_what_is_the_bases_own_is_left_out(tmp_path: Path) -> None:
    extra = {f"{EMBED}.base_layer.weight": torch.ones(640, 64), f"{Q}.lora_A.default.weight": torch.ones(RANK, 64)}
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [Q], extra=extra)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[f"{PREFIX}{Q}.lora_A.weight"]
    save_file(tensors, file)
    tuned = adapted(pico_gguf("llama"), adapter)
    assert list(tuned.shapes) == ["blk.0.attn_q.weight"]
    assert len(tuned.notes) == 1
    assert "base's own weight" in tuned.notes[0]


def test_a_chat_template_is_the_adapters(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [Q])
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ old }}"}))
    key = "tokenizer.chat_template"
    assert adapted(pico_gguf("llama"), adapter).field(key).value == "{{ old }}"  # type: ignore[union-attr]
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    assert adapted(pico_gguf("llama"), adapter).field(key).value == "{{ messages }}"  # type: ignore[union-attr]


def test_a_state_dict_of_pytorch(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [Q])
    expected = rows(adapted(pico_gguf("llama"), adapter), "blk.0.attn_q.weight")
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    assert np.array_equal(rows(adapted(pico_gguf("llama"), adapter), "blk.0.attn_q.weight"), expected)


def test_a_configuration_decides_where_the_gguf_cannot(tmp_path: Path) -> None:
    """The architecture of Qwen3-Next is not in the table: without its config.json nothing is guessed."""
    o = "model.layers.1.self_attn.o_proj"
    adapter = write_adapter(tmp_path / "adapter", pico("qwen3next"), [o])
    base = pico_gguf("qwen3next")
    with pytest.raises(DqreloError, match=r"adapter: how tensors of a 'qwen3next' .* with --base-config"):
        adapted(base, adapter)
    for config in (pico("qwen3next"), pico("qwen3next") / "config.json"):
        assert list(adapted(base, adapter, config).shapes) == ["blk.1.attn_output.weight"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"num_attention_heads": 8}, "num_attention_heads is 8, base .* has 4"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, base .* has 2"),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "is of architecture 'qwen2', base .* 'llama'"),
        ({"architectures": ["Nobody"], "model_type": "nobody"}, "cannot read the base's configuration"),
    ],
)
def test_a_configuration_of_another_base(change: dict[str, Any], error: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text((pico("llama") / "config.json").read_text())
    edit_json(config, **change)
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [Q])
    with pytest.raises(DqreloError, match=error) as problem:
        adapted(pico_gguf("llama"), adapter, config)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"peft_type": "OFT"}, "peft_type is OFT, expected one of LORA, LOHA, LOKR, VERA. Merge it"),
        ({"peft_type": "LOHA"}, "alpha is None, expected a finite number"),
        ({"peft_type": "LOHA", "alpha": 8}, "has lora_A, which is no part of a LoHa. Another adapter's"),
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"peft_type": "VERA\nx"}, "peft_type is VERA x"),
        ({"peft_type": None}, "peft_type is missing"),
        ({"use_dora": True}, "has no lora_magnitude_vector. Incomplete download"),
        ({"alora_invocation_tokens": [1, 2]}, "an aLoRA"),
        ({"invocation_string": "x"}, "an aLoRA"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4, which changes the base"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights is OLoRA"),
        ({"r": 0}, "r is 0, expected 1 to"),
        ({"r": True}, "r is True"),
        ({"r": 1 << 40}, "r is 1099511627776"),
        ({"r": 5}, "has rank 4, adapter_config.json says 5"),
        ({"rank_pattern": {"q_proj": 3}}, "has rank 4, adapter_config.json says 3"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern of q_proj is -1"),
        ({"rank_pattern": [1]}, "rank_pattern is no object"),
        ({"rank_pattern": {"(": 4}}, "is no regular expression"),
        ({"alpha_pattern": {"q" * 2000: 4}}, "pattern of 2000 characters"),
        ({"alpha_pattern": {f"q{i}": 4 for i in range(5000)}}, "has 5000 patterns"),
        ({"rank_pattern": {"(.*)*x": 4}}, "may take for ever to match"),
        ({"rank_pattern": {"(?:[a-z]+){9}x": 4}}, "may take for ever to match"),
        ({"rank_pattern": {".*.*.*.*x": 4}}, "may take for ever to match"),
        ({"rank_pattern": {"(.|[a-z])" * 30: 4}}, "may take for ever to match"),
        ({"rank_pattern": {".?" * 30 + "x": 4}}, "may take for ever to match"),
        ({"lora_alpha": None}, "lora_alpha is None, expected a finite number"),
        ({"lora_alpha": "16"}, "lora_alpha is 16, expected a finite"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": float("inf")}, "lora_alpha is inf"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern of q_proj is inf"),
    ],
)
def test_configurations_that_are_refused(config: dict[str, Any], error: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [Q], **config)
    with pytest.raises(DqreloError, match=error) as problem:
        adapted(pico_gguf("llama"), adapter)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ({f"{Q}.lora_magnitude_vector": torch.ones(64)}, "has lora_magnitude_vector, which is no part of a LoRA"),
        ({f"{Q}.lora_B.bias": torch.ones(64)}, "lora_bias"),
        ({f"{Q}.hada_w1_a": torch.ones(64, 4)}, "has hada_w1_a, which is no part of a LoRA"),
        ({f"{Q}.hada_t1": torch.ones(4, 4, 1, 1)}, "no LoRA is not converted"),
        ({f"{EMBED}.token_adapter.trainable_tokens_delta": torch.ones(2, 64)}, "trainable_token_indices"),
        ({f"{DOWN}.lora_A.weight": torch.ones(4, 96)}, "down_proj' has no lora_B"),
        ({f"{DOWN}.lora_B.weight": torch.ones(64, 4)}, "down_proj' has no lora_A"),
        ({f"{DOWN}.lora_A.weight": torch.ones(4, 96), f"{DOWN}.lora_B.weight": torch.ones(64, 5)}, "do not fit"),
        ({f"{DOWN}.lora_A.weight": torch.ones(4), f"{DOWN}.lora_B.weight": torch.ones(64, 4)}, "do not fit"),
        ({"model.what.ever": torch.ones(4)}, "is no part of a LoRA"),
        ({"score.weight": torch.ones(2, 64)}, "cannot convert 'score.weight'"),
        (
            {"model.vision_tower.x.weight": torch.ones(2, 64)},
            "'model.vision_tower.x.weight' of a vision or audio tower",
        ),
        ({f"{Q}.bias": torch.ones(64)}, "attn_q.bias', which base .* lacks"),
        ({"model.norm.weight": torch.ones(64, dtype=torch.int8)}, "holds no real numbers"),
        ({"model.norm.weight": torch.ones(0)}, "holds no real numbers"),
        ({f"{DOWN}.lora_A.weight": torch.full((4, 96), torch.nan), f"{DOWN}.lora_B.weight": torch.ones(64, 4)}, "NaN"),
    ],
)
def test_tensors_that_are_refused(extra: dict[str, torch.Tensor], error: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [Q], extra=extra)
    with pytest.raises(DqreloError, match=error) as problem:
        adapted(pico_gguf("llama"), adapter)
    assert "\n" not in str(problem.value)


def test_a_head_that_the_base_ties_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [HEAD])
    with pytest.raises(DqreloError, match="which this base ties to its embedding"):
        adapted(pico_gguf("llama-tied"), adapter)


def test_some_of_the_experts_are_refused(tmp_path: Path) -> None:
    some = [m for m in projections(pico("mixtral")) if "experts.0" in m]
    assert some
    adapter = write_adapter(tmp_path / "adapter", pico("mixtral"), some)
    with pytest.raises(DqreloError, match="all projections of all experts of a layer, or of none"):
        adapted(pico_gguf("mixtral"), adapter)


def truncate(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


def no_header(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(b"\xff" * 100)


def fifo(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    os.mkfifo(adapter / name)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (
            lambda a: (a / "adapter_model.safetensors").unlink(),
            "has adapter_config.json and no adapter_model.safetensors",
        ),
        (lambda a: (a / "adapter_config.json").unlink(), "has no adapter_config.json beside the adapter's weights"),
        (lambda a: (a / "adapter_config.json").write_text("{"), "adapter_config.json: is not JSON"),
        (lambda a: (a / "adapter_config.json").write_text("[]"), "is no JSON object"),
        (lambda a: (a / "adapter_config.json").write_text("[" * 100_000), "is not JSON"),
        (lambda a: fifo(a, "adapter_config.json"), "adapter_config.json: is not a regular file"),
        (lambda a: fifo(a, "adapter_model.safetensors"), "adapter_model.safetensors: is not a regular file"),
        (truncate, "Truncated download"),
        (no_header, "Truncated download"),
        (
            lambda a: (a / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "Git LFS",
        ),
    ],
)
def test_damaged_directories_are_refused(damage: Any, error: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [Q])
    damage(adapter)
    with pytest.raises(DqreloError, match=error) as problem:
        adapted(pico_gguf("llama"), adapter)
    assert "\n" not in str(problem.value)


def test_as_peft_merges(tmp_path: Path) -> None:
    """PEFT's own files and its own merge, with everything that it may put into one adapter."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(pico("llama"), dtype=torch.float32)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        init_lora_weights=False,
        target_modules=["q_proj", "k_proj", "down_proj", "embed_tokens"],
        rank_pattern={"down_proj": 6},
        alpha_pattern={"q_proj": 3},
        modules_to_save=["lm_head", "norm"],  # PEFT takes every module whose name ends so: all five norms.
    )
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    merged_directory(pico("llama"), tmp_path / "adapter", tmp_path / "merged")  # for the files beside the weights
    merged = wrapped.merge_and_unload().state_dict()
    save_file(
        {n: w.contiguous() for n, w in merged.items()}, tmp_path / "merged" / "model.safetensors", {"format": "pt"}
    )
    base = convert_hf(pico("llama"), tmp_path / "base.gguf", "ALL_F32")
    tuned = adapted(base, tmp_path / "adapter")
    assert_is(tuned, base, convert_hf(tmp_path / "merged", tmp_path / "merged.gguf", "ALL_F32"), 2 * 3 + 1 + 1 + 5)

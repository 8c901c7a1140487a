"""Tiny random models that see: a Qwen2-VL and a Gemma 3 as a user's directory holds them, their GGUF, their mmproj, and pictures."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dqrelo_gguf._pin import conversion_module, gguf
from tests.support.models import N_VOCAB, randomise
from tests.support.tiny_tokenizers import write_sentencepiece

_SIZES: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
_N_PIXELS = 56  # a side of a picture: two by two tokens of both models
_PREPROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_seq_length": 4}


@dataclass(frozen=True)
class VisionModel:
    """A kind of model.

    Args:
        model: the class in transformers; its configuration's class follows from it.
        configuration: its values.
        hub: where the Hub's files have other names than this version of transformers writes: a prefix and what stands for it.
        tower: what the names of the tensors begin with that are not the language model's.
    """

    model: str
    configuration: dict[str, Any]
    hub: tuple[str, str]
    tower: tuple[str, ...]

    def is_of_tower(self, name: str) -> bool:
        return name.startswith(self.tower)


VISION_MODELS = {
    "qwen2vl": VisionModel(
        "Qwen2VLForConditionalGeneration",
        {
            **_SIZES,
            # The conversion takes the number in visual.merger.mlp.2 for a block, which must be there.
            "vision_config": {"depth": 3, "embed_dim": 32, "hidden_size": 128, "num_heads": 2},
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "rms_norm_eps": 1e-6,
        },
        ("", ""),
        ("visual.",),
    ),
    "gemma3": VisionModel(
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {
                **_SIZES,
                "num_hidden_layers": 6,  # llama.cpp gives every sixth layer the whole context.
                "head_dim": 32,
                "sliding_window": 32,
                "query_pre_attn_scalar": 32,
                "layer_types": [*["sliding_attention"] * 5, "full_attention"],
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": _N_PIXELS,
                "patch_size": 14,
                "vision_use_head": False,
            },
            "mm_tokens_per_image": 4,
        },
        ("vision_tower.", "vision_tower.vision_model."),
        ("vision_tower.", "multi_modal_projector."),
    ),
}


def write_vision_base(kind: str, path: Path) -> Path:
    """A base with random weights as a Hugging Face directory, bf16."""
    import transformers

    row = VISION_MODELS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, row.model.replace("ForConditionalGeneration", "Config"))(**row.configuration)
    model = getattr(transformers, row.model)(config)
    randomise(model)
    model.to(torch.bfloat16).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR))
    _rename(path / "model.safetensors", lambda name: name.replace(*row.hub, 1) if name.startswith(row.hub[0]) else name)
    write_sentencepiece(path)
    return path


def _rename(file: Path, renamed: Callable[[str], str]) -> None:
    from safetensors.torch import load_file, save_file

    save_file({renamed(name): weight for name, weight in load_file(file).items()}, file, {"format": "pt"})


def convert_mmproj(source: Path, target: Path) -> Path:
    """What convert_hf_to_gguf.py --mmproj writes for a directory."""
    conversion = conversion_module()
    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    with torch.inference_mode():
        hparams = conversion.ModelBase.load_hparams(source, False)
        architecture = conversion.get_model_architecture(hparams, conversion.ModelType.MMPROJ)
        model_class = conversion.get_model_class(architecture, mmproj=True)
        model_class(source, gguf.LlamaFileType.MOSTLY_F16, target).write()
    return target


def picture(red: int, green: int, blue: int) -> str:
    """A small PNG that goes from a colour at its top to black, as a data URL."""
    from PIL import Image

    image = Image.new("RGB", (_N_PIXELS, _N_PIXELS))
    for y in range(_N_PIXELS):
        shade = 1 - y / _N_PIXELS
        for x in range(_N_PIXELS):
            image.putpixel((x, y), (int(red * shade), int(green * shade), int(blue * x / _N_PIXELS)))
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

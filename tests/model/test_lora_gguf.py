"""LoRA adapters in GGUF files: the scale is llama.cpp's, and what is no LoRA of the base is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.convert.adapter import is_adapter, open_adapter
from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.model.adapter import AdaptedModel
from dqrelo_gguf.model.base import GgufModel
from tests.support.gguf_files import finish
from tests.support.models import pico_gguf

Arrays = dict[str, npt.NDArray[Any]]
Q = "blk.0.attn_q.weight"
A, B = np.full((4, 64), 0.5, np.float32), np.full((64, 4), 0.25, np.float32)
PAIR: Arrays = {f"{Q}.lora_a": A, f"{Q}.lora_b": B}


def write_lora(path: Path, tensors: Arrays, architecture: str = "llama", **fields: Any) -> Path:
    """A GGUF LoRA; `fields` by key with `__` for a dot replace or (None) leave out those that it has."""
    writer = gguf.GGUFWriter(path, architecture)
    values = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0}
    values |= {key.replace("__", "."): value for key, value in fields.items()}
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_float32(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    finish(writer)
    return path


def adapted(path: Path) -> AdaptedModel:
    return open_adapter(path, GgufModel(pico_gguf("llama")), None)


@pytest.mark.parametrize(("alpha", "scale"), [(8.0, 2.0), (1.0, 0.25), (0.0, 1.0), (None, 1.0)])
def test_the_scale_is_that_of_llama_cpp(alpha: float | None, scale: float, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "lora.gguf", PAIR, adapter__lora__alpha=alpha, general__name="words")
    assert is_adapter(path)
    tuned = adapted(path)
    assert tuned.name == "words"
    factors = tuned.adapter.factors[Q]
    assert np.array_equal(factors.u, scale * B)
    assert np.array_equal(factors.v, A)


def test_factors_of_every_type(tmp_path: Path) -> None:
    types = {"f16": np.float16, "f32": np.float32}
    for name, kind in types.items():
        path = write_lora(tmp_path / f"{name}.gguf", {n: t.astype(kind) for n, t in PAIR.items()})
        assert np.array_equal(adapted(path).adapter.factors[Q].v, A)
    writer = gguf.GGUFWriter(tmp_path / "q8.gguf", "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    q8 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(f"{Q}.lora_a", gguf.quants.quantize(A, q8), raw_dtype=q8)
    writer.add_tensor(f"{Q}.lora_b", B)
    finish(writer)
    assert np.allclose(adapted(tmp_path / "q8.gguf").adapter.factors[Q].v, A, rtol=1e-2)


def test_norms_are_whole(tmp_path: Path) -> None:
    norm = np.full(64, 1.5, np.float32)
    tuned = adapted(write_lora(tmp_path / "lora.gguf", {**PAIR, "blk.0.attn_norm.weight": norm}))
    assert np.array_equal(tuned.adapter.whole["blk.0.attn_norm.weight"], norm)


@pytest.mark.parametrize(
    ("tensors", "fields", "error"),
    [
        (PAIR, {"architecture": "qwen2"}, "is an adapter of architecture 'qwen2', base .* has 'llama'"),
        (PAIR, {"adapter__type": "control"}, "is an adapter of type 'control', expected lora"),
        (PAIR, {"adapter__type": None}, "is an adapter of type '', expected lora"),
        (PAIR, {"adapter__type": "dqrelo"}, "is a delta file already"),
        (PAIR, {"adapter__lora__alpha": float("nan")}, "adapter.lora.alpha is nan, expected a number"),
        (PAIR, {"adapter__lora__alpha": float("inf")}, "adapter.lora.alpha is inf"),
        (PAIR, {"adapter__lora__alpha": "8"}, "adapter.lora.alpha is 8, expected a number"),
        (PAIR, {"adapter__alora__invocation_tokens": [1, 2]}, "some tokens switch on"),
        ({f"{Q}.lora_a": A}, {}, "has no .lora_b"),
        ({f"{Q}.lora_b": B}, {}, "has no .lora_a"),
        ({**PAIR, "blk.0.attn_q.bias": np.ones(64, np.float32)}, {}, "is no part of a LoRA"),
        ({**PAIR, f"{Q}.lora_b": np.ones((64, 8), np.float32)}, {}, "which do not fit"),
        ({**PAIR, f"{Q}.lora_b": np.ones(64, np.float32)}, {}, "which do not fit"),
        ({**PAIR, f"{Q}.lora_a": np.ones((2, 4, 64), np.float32)}, {}, "which do not fit"),
        ({**PAIR, f"{Q}.lora_a": np.ones((4, 64), np.int8)}, {}, "holds whole numbers"),
        ({**PAIR, f"{Q}.lora_a": np.full((4, 64), np.nan, np.float32)}, {}, "holds NaN or infinity"),
        ({}, {}, "has no weights"),
    ],
)
def test_files_that_are_refused(tensors: Arrays, fields: dict[str, Any], error: str, tmp_path: Path) -> None:
    path = write_lora(tmp_path / "lora.gguf", tensors, **fields)
    with pytest.raises(DqreloError, match=error) as problem:
        adapted(path)
    assert "\n" not in str(problem.value)


def test_what_is_no_adapter(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("x")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "text", tmp_path / "nothing", pico_gguf("llama")):
        assert not is_adapter(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "lora.gguf", PAIR)
    path.write_bytes(path.read_bytes()[:-128])
    with pytest.raises(DqreloError, match="runcated"):
        is_adapter(path)

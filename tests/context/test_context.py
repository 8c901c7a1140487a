"""What a context does beside decoding: shared prefixes, shifts, states, small ubatches, embeddings; tests/cpp/context/test-context.cpp makes the calls."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support import exact_delta
from tests.support.architecture_families import ArchitectureFamily, write_architecture_family
from tests.support.programs import need_test_program
from tests.support.tiny_llama import Shape, base_weights, write_model

# Both sides sum the same numbers in another order, and round keys and values to F16 (steps of 1/2048) or to Q8_0 (1/254 of the
# largest of 32 values): some values are rounded the other way then. Measured at most 2.3e-5 and 2.7e-4, with Gemma 3's six layers.
MAX_NMSE = {"f16": 1e-4, "q8_0": 1e-3}
SCENARIOS = (
    "shared prefix",
    "context shift",
    "context shifts",
    "restored sequence",
    "restored context",
    "small ubatches",
    "embeddings",
    "pooling mean",
    "pooling cls",
    "pooling last",
)
KINDS = (("on", "f16"), ("off", "f16"), ("on", "q8_0"))  # flash attention, and type of keys and values
# llama.cpp cannot shift a cache in Q8_0 where heads are no multiple of 64 long: it crashes, with or without deltas.
WITHOUT_HEADS = frozenset({"mamba"})
HEAD_SIZES = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
# All experts, because of two that are nearly as good another one is chosen where a sum is rounded the other way.
ALL_EXPERTS = {"qwen3moe": {"num_experts_per_tok": 4}}


@pytest.fixture(
    scope="module",
    params=["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "qwen3moe", "mamba", "lfm2"))],
)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ArchitectureFamily:
    sizes = {} if request.param in WITHOUT_HEADS else HEAD_SIZES | ALL_EXPERTS.get(request.param, {})
    return write_architecture_family(tmp_path_factory.mktemp("context"), request.param, is_merged=True, **sizes)


@pytest.fixture(scope="module")
def rope_family(tmp_path_factory: pytest.TempPathFactory) -> ArchitectureFamily:
    """Deltas that change RoPE factors, besides all else."""
    folder = tmp_path_factory.mktemp("rope")
    shape = Shape(n_embd=128, n_head=2, n_head_kv=1, n_ff=256)
    factors = np.linspace(0.2, 1.0, shape.n_embd // shape.n_head // 2, dtype=np.float32)
    base = write_model(folder / "base.gguf", shape, base_weights(shape) | {"rope_freqs.weight": factors})
    deltas = [folder / f"{i}.dq.gguf" for i in (1, 2)]
    merged = [folder / f"{i}.gguf" for i in (1, 2)]
    for i in range(2):
        assert "rope_freqs.weight" in exact_delta.make(base, deltas[i], merged[i], seed=i)
    return ArchitectureFamily(base, deltas, merged)


@pytest.fixture(scope="module")
def blended_family(rope_family: ArchitectureFamily) -> ArchitectureFamily:
    """The same deltas, and models with both of them merged: 0.6 A + 0.4 B, and A - 0.5 B."""
    merged = [rope_family.base.with_name(name) for name in ("sum.gguf", "difference.gguf")]
    for path, scales in zip(merged, ((0.6, 0.4), (1.0, -0.5)), strict=True):
        exact_delta.write_merged(
            rope_family.base, path, [(i, scale, exact_delta.PLAIN) for i, scale in enumerate(scales)]
        )
    return ArchitectureFamily(rope_family.base, rope_family.deltas, merged)


def check(family: ArchitectureFamily, flash_attn: str, type_kv: str, *more: str, **env: str) -> None:
    files = [family.base, *family.deltas, *family.merged]
    command = [need_test_program("test-context"), *files, flash_attn, type_kv, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | env)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^([a-z ]+): nmse (\S+) base (\S+)$", done.stdout, re.MULTILINE)
    assert [name for name, _, _ in lines] == [name for name in SCENARIOS for _ in range(2)], done.stdout
    for name, nmse, of_base in lines:
        assert float(nmse) <= MAX_NMSE[type_kv], f"{name}: {nmse}"
        assert float(of_base) > 100 * MAX_NMSE[type_kv], f"{name}: a delta that does nothing would pass"
    (beside,) = re.findall(r"^base beside shifts: nmse (\S+)$", done.stdout, re.MULTILINE)
    assert float(beside) <= (0 if type_kv == "f16" else MAX_NMSE[type_kv])


@pytest.mark.parametrize(("flash_attn", "type_kv"), KINDS)
def test_contexts_do_with_a_delta_what_they_do_with_the_merged_model(
    family: ArchitectureFamily, flash_attn: str, type_kv: str
) -> None:
    check(family, flash_attn, type_kv)


@pytest.mark.parametrize(("flash_attn", "type_kv"), KINDS)
def test_a_shift_rotates_keys_by_the_rope_factors_of_each_delta(
    rope_family: ArchitectureFamily, flash_attn: str, type_kv: str
) -> None:
    check(rope_family, flash_attn, type_kv)


def test_a_shift_multiplies_keys_no_more_often_than_that_of_the_merged_model(rope_family: ArchitectureFamily) -> None:
    check(rope_family, "off", "f16", "yarn")


def test_a_shift_rotates_keys_by_the_rope_factors_of_each_delta_with_ordinary_ops(
    rope_family: ArchitectureFamily,
) -> None:
    check(rope_family, "off", "f16", DQRELO_COMPOSED="1")


@pytest.mark.parametrize("composed", ["0", "1"])
def test_contexts_do_with_blends_what_they_do_with_the_merged_models(
    blended_family: ArchitectureFamily, composed: str
) -> None:
    check(blended_family, "off", "f16", "blends", DQRELO_COMPOSED=composed)


def test_a_context_whose_graphs_are_refused_fails_without_a_crash(tmp_path: Path) -> None:
    shape = Shape(n_embd=64, n_layer=2, n_ff=64)
    base = write_model(tmp_path / "base.gguf", shape, base_weights(shape))
    done = subprocess.run(
        [need_test_program("test-refused-graph"), base], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""What a context does beside decoding: shared prefixes, shifts, states, small ubatches, embeddings; tests/cpp/context/test-context.cpp makes the calls."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.architecture_families import ArchitectureFamily, write_architecture_family
from tests.support.programs import need_test_program

# Both sides sum the same numbers in another order, and round keys and values to F16 (steps of 1/2048) or to Q8_0 (1/254 of the
# largest of 32 values): some values are rounded the other way then. Measured at most 2.3e-5 and 2.7e-4, with Gemma 3's six layers.
MAX_NMSE = {"f16": 1e-4, "q8_0": 1e-3}
SCENARIOS = (
    "shared prefix",
    "context shift",
    "restored sequence",
    "restored context",
    "small ubatches",
    "embeddings",
    "pooling mean",
    "pooling cls",
    "pooling last",
)
# llama.cpp cannot shift a cache in Q8_0 where heads are no multiple of 64 long: it crashes, with or without deltas.
WITHOUT_HEADS = frozenset({"mamba"})
HEAD_SIZES = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}


@pytest.fixture(
    scope="module",
    params=["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "qwen3moe", "mamba", "lfm2"))],
)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ArchitectureFamily:
    sizes = {} if request.param in WITHOUT_HEADS else HEAD_SIZES
    return write_architecture_family(tmp_path_factory.mktemp("context"), request.param, is_merged=True, **sizes)


@pytest.mark.parametrize(("flash_attn", "type_kv"), [("on", "f16"), ("off", "f16"), ("on", "q8_0")])
def test_contexts_do_with_a_delta_what_they_do_with_the_merged_model(
    family: ArchitectureFamily, flash_attn: str, type_kv: str
) -> None:
    command = [need_test_program("test-context"), family.base, *family.deltas, *family.merged, flash_attn, type_kv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^([a-z ]+): nmse (\S+) base (\S+)$", done.stdout, re.MULTILINE)
    assert [name for name, _, _ in lines] == [name for name in SCENARIOS for _ in range(2)], done.stdout
    for name, nmse, of_base in lines:
        assert float(nmse) <= MAX_NMSE[type_kv], f"{name}: {nmse}"
        assert float(of_base) > 100 * MAX_NMSE[type_kv], f"{name}: a delta that does nothing would pass"

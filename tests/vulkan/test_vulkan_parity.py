"""Base and deltas with layers on a Vulkan device, against the same on the CPU and against merged models.

Without a GPU, lavapipe.py builds for Vulkan and runs this on a device that Mesa makes of CPU threads.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.native import core
from dqrelo_gguf.runtime.session import Runtime
from tests.support import exact_delta
from tests.support.families import SHAPES, Maker
from tests.support.greedy import assert_greedy, generate_tokens
from tests.support.logits import OTHER, TEXT, Floats, Tokens, nmse, open_model
from tests.support.models import N_VOCAB, convert_hf, save_model
from tests.support.tiny_llama import Shape, dequantised

MACHINE = core.machine()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "Vulkan" not in MACHINE["backends"].split(",") or not MACHINE["gpu_info"],
        reason="no Vulkan device: build with -DGGML_VULKAN=ON; without a GPU, see lavapipe.py",
    ),
]

# The device multiplies and sums in F16 where it can, which the base alone shows: 1.3e-4 with rows of 576.
MAX_BASE = 1e-3
# The delta may add as much again, and what its own arithmetic costs.
MAX_OVER_BASE = 2.0
MAX_NMSE = 1e-4

N_GENERATED = 12

CASES = [
    ("256", "F32"),
    ("256", "F16"),
    ("256", "BF16"),
    ("256", "Q8_0"),
    ("256", "Q4_K_M"),
    ("576", "F16"),
    ("72", "F16"),
]


def on_cpu(path: Path) -> Runtime:
    """Nothing runs on the device: it is lent no graph of fewer than 32 tokens."""
    return open_model(path, n_gpu_layers=0, n_ubatch=16)


def cpu_logits(path: Path, tokens: Tokens) -> Floats:
    with on_cpu(path) as rt:
        return rt.logits(tokens)


def test_all_layers_lie_on_the_device(make_family: Maker, capfd: pytest.CaptureFixture[str]) -> None:
    family = make_family(Shape())
    with open_model(family.base, verbose=True) as rt:
        rt.logits(rt.tokenize(OTHER))
    log = capfd.readouterr().err
    assert "offloaded 3/3 layers to GPU" in log
    assert re.search(r"Vulkan0 +model buffer size", log)
    assert re.search(r"Vulkan0 +KV buffer size", log)


@pytest.mark.parametrize("n_tokens", [3, 24])  # There is a kernel for a few rows and one for many.
@pytest.mark.parametrize(("shape", "base_type"), CASES)
def test_logits_are_those_of_the_merged_models(
    make_family: Maker, tmp_path: Path, shape: str, base_type: str, n_tokens: int
) -> None:
    family = make_family(SHAPES[shape], base_type)
    with open_model(family.base) as rt:
        tokens, other = np.resize(rt.tokenize(TEXT), n_tokens), rt.tokenize(OTHER)
        plain = dequantised(family.base, tmp_path / "plain.gguf", family.shape)
        expected = [cpu_logits(path, tokens) for path in (plain, family.merged[0])]
        expected.append(cpu_logits(family.merged[1], other))
        assert nmse(expected[0], expected[1]) > 0.1  # The delta does much, so that a part left out shows.
        # The kernels, and with them the base's error, differ with the number of rows.
        base_errors = [nmse(rt.logits(batch)[0], expected[0]) for batch in ([tokens], [tokens, tokens, other])]
        assert max(base_errors) <= MAX_BASE
        allowed, allowed_mixed = (MAX_NMSE + MAX_OVER_BASE * error for error in base_errors)

        first, second = (rt.load_delta(path) for path in family.deltas)
        assert first.inert == second.inert == []
        assert nmse(rt.logits(tokens, first), expected[1]) <= allowed
        mixed = rt.logits([tokens, tokens, other], [None, first, second])
        assert max(nmse(got, want) for got, want in zip(mixed, expected, strict=True)) <= allowed_mixed


def test_mixed_batches_are_those_of_the_operator_on_the_cpu(make_family: Maker) -> None:
    family = make_family(Shape(), "F32")
    rows = []
    for rt in (on_cpu(family.base), open_model(family.base)):
        with rt:
            tokens, other = rt.tokenize(TEXT), rt.tokenize(OTHER)
            first, second = (rt.load_delta(path) for path in family.deltas)
            row_deltas, scales = [second, first, None, first], [1.0, 0.5, 1.0, 1.0]
            rows.append(rt.logits([tokens, other, other, tokens], row_deltas, scale=scales))
    for on_device, expected in zip(rows[1], rows[0], strict=True):
        assert nmse(on_device, expected) <= MAX_NMSE


# The output matrix is the first that goes to the device, then the last layer.
@pytest.mark.parametrize("n_gpu_layers", [1, 2])
def test_layers_on_both_sides(make_family: Maker, n_gpu_layers: int) -> None:
    family = make_family(Shape(), "F32")
    with open_model(family.base, n_gpu_layers=n_gpu_layers) as rt:
        tokens, other = rt.tokenize(TEXT), rt.tokenize(OTHER)
        mixed = rt.logits([tokens, other], [rt.load_delta(path) for path in family.deltas])
    assert nmse(mixed[0], cpu_logits(family.merged[0], tokens)) <= MAX_NMSE
    assert nmse(mixed[1], cpu_logits(family.merged[1], other)) <= MAX_NMSE


def test_deltas_come_and_go_between_batches(make_family: Maker) -> None:
    family = make_family(Shape(), "F32")
    with open_model(family.base) as rt:
        tokens = rt.tokenize(TEXT)
        expected = [cpu_logits(path, tokens) for path in family.merged]
        base = rt.logits(tokens)
        for i in (0, 1, 0, 1, 1):
            with rt.load_delta(family.deltas[i]) as delta:
                assert nmse(rt.logits(tokens, delta), expected[i]) <= MAX_NMSE
            assert np.array_equal(rt.logits(tokens), base)


def test_one_token_at_a_time_is_the_merged_model(make_family: Maker) -> None:
    family = make_family(Shape(), "F32")
    with open_model(family.base) as rt:
        prompt = rt.tokenize("the dog")
        first, second = (rt.load_delta(path) for path in family.deltas)
        outputs = generate_tokens(rt, prompt, [first, None, second], N_GENERATED)
    assert len({tuple(tokens) for tokens in outputs}) == 3
    for tokens, path in zip(outputs, (family.merged[0], family.base, family.merged[1]), strict=True):
        with on_cpu(path) as plain:
            assert_greedy(plain, prompt, tokens)


def test_experts(tmp_path: Path) -> None:
    checkpoint = save_model(tmp_path / "hf", "mixtral", hidden_size=128, intermediate_size=256)
    base = convert_hf(checkpoint, tmp_path / "base.gguf", "ALL_F32")
    deltas, merged = ([tmp_path / f"{i}{end}" for i in (1, 2)] for end in (".dq.gguf", ".gguf"))
    for i, (delta, plain) in enumerate(zip(deltas, merged, strict=True)):
        exact_delta.make(base, delta, plain, seed=i + 1)
    # Short sequences of which most count: rounding may send a token to another expert, which changes all that follow.
    parts = np.random.default_rng(0).integers(8, N_VOCAB, (9, 3)).astype(np.int32)
    with open_model(base, n_seq_max=len(parts)) as rt:
        loaded = [None, *(rt.load_delta(path) for path in deltas)]
        row_deltas = [loaded[i % 3] for i in range(len(parts))]
        rows = rt.logits(list(parts), row_deltas)
    models = [base, *merged]
    errors = [nmse(got, cpu_logits(models[i % 3], parts[i])) for i, got in enumerate(rows)]
    assert [np.median(errors[i::3]) <= MAX_NMSE for i in range(3)] == [True] * 3

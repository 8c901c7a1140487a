"""Continuations of one context: it is read once, and what each gets is what it gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.models import convert_hf, pico_gguf
from tests.support.tiny_architectures import ARCHITECTURES, write_base
from tests.support.tiny_tokenizers import known_to_the_conversion

N_CONTEXT = 40
LENGTHS = (3, 1, 300, 1, 8)  # The longest one goes through the cells of a sliding window more than once.
# Keys and values are F16, and batches differ: 5e-4 of a sum was seen.
TOLERANCE = 5e-3


def pairs_of(seed: int) -> list[tuple[list[int], list[int]]]:
    """A context with continuations of several lengths."""
    rng = np.random.default_rng(seed)
    context = rng.integers(3, 256, N_CONTEXT).tolist()
    return [(context, rng.integers(3, 256, n).tolist()) for n in LENGTHS]


def n_read(rt: Runtime, pairs: list[tuple[list[int], list[int]]], *deltas: Delta | None) -> int:
    before = rt.n_evaluated
    rt.loglikelihood(pairs, list(deltas) if deltas else None)
    return rt.n_evaluated - before


@pytest.fixture(scope="module", params=["llama", "gemma3", "lfm2", "mamba"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full attention; a sliding window of 32; recurrent layers beside attention, and alone."""
    if request.param not in ARCHITECTURES:
        return pico_gguf(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    with known_to_the_conversion():
        return convert_hf(write_base(ARCHITECTURES[request.param], folder / "hf"), folder / "base.gguf")


@pytest.mark.parametrize("n_seq_max", [1, 3])
def test_shared_contexts_change_no_result(model: Path, n_seq_max: int) -> None:
    pairs = [*pairs_of(0), *pairs_of(1), *pairs_of(0)[:2]]
    options = {"n_threads": 1, "n_ctx": 1024, "n_batch": 64, "n_ubatch": 64, "flash_attn": "off"}
    with Runtime(model, n_seq_max=n_seq_max, **options) as rt:  # type: ignore[arg-type]
        together = rt.loglikelihood(pairs)
        alone = [rt.loglikelihood([pair])[0] for pair in pairs]
    for (total, is_greedy), (expected, is_alone_greedy) in zip(together, alone, strict=True):
        assert total == pytest.approx(expected, rel=TOLERANCE)
        assert is_greedy == is_alone_greedy


def test_a_context_is_read_once(runtime: Runtime) -> None:
    rng = np.random.default_rng(0)
    context = rng.integers(3, runtime.n_vocab, N_CONTEXT).tolist()
    pairs = [(context, rng.integers(3, runtime.n_vocab, n).tolist()) for n in LENGTHS]
    assert n_read(runtime, pairs) == N_CONTEXT + sum(n - 1 for n in LENGTHS)
    other = (context[::-1], pairs[0][1])
    assert n_read(runtime, [pairs[0], other, pairs[1]]) == 3 * N_CONTEXT + 2 * (
        LENGTHS[0] - 1
    )  # In between is another one.


def test_deltas_share_no_context(runtime: Runtime, delta_path: Path) -> None:
    pairs = [([5, 6, 7, 8], [9, 10])] * 4
    with runtime.load_delta(delta_path) as delta:
        scores = runtime.loglikelihood(pairs, [None, delta, delta, None])
        assert scores[0][0] != pytest.approx(scores[1][0], rel=4 * TOLERANCE)
        assert scores[0][0] == pytest.approx(scores[3][0], rel=TOLERANCE)
        assert scores[1][0] == pytest.approx(scores[2][0], rel=TOLERANCE)
        assert n_read(runtime, pairs, None, delta, delta, None) == 3 * 4 + 4


def test_a_whole_context_of_the_runtime_fits(base: Path) -> None:
    context = list(range(5, 5 + 200))
    with Runtime(base, n_threads=1, n_ctx=256, n_seq_max=4) as rt:
        scores = rt.loglikelihood([(context, [5] * 56), (context, [6] * 56), (context, [7])])
        assert len({total for total, _ in scores}) == 3

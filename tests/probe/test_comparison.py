"""What the inputs of two models are together: the least squares, and the readings that go on from step to step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.convert.moments import Text
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.probe import comparison
from dqrelo_gguf.probe.comparison import SHIFT_DAMPING, Comparison, InputSums, Rows, held_bytes, inputs_of
from dqrelo_gguf.probe.tuned_model import open_watched
from dqrelo_gguf.runtime.calls import ResumePoints
from dqrelo_gguf.runtime.session import Runtime
from tests.support.models import pico_tuned_gguf, read_gguf


def test_the_shift_is_that_of_least_squares() -> None:
    """W + W shift is the M of least ||W x - M x'||^2 + damping ||M - W||^2, the rows weighed."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6)).astype(np.float32)
    off = x + 0.3 * rng.standard_normal((300, 6)).astype(np.float32) + 0.1
    weights = rng.random(300).astype(np.float32)
    W = rng.standard_normal((4, 6))
    with open_blocks(1) as blocks:
        sums = InputSums(blocks)
        for rows in (slice(0, 100), slice(100, 300)):
            sums.add(x[rows].copy(), off[rows].copy(), weights[rows])
        shift, H = sums.shift().double().numpy(), sums.moments.double().numpy()
    squares = (off.T * weights) @ off
    assert np.allclose(H, squares / weights.sum(), rtol=1e-4)
    damping = SHIFT_DAMPING * squares.diagonal().mean()
    # One system of equations a row of M: those of the text, and one for each number that is drawn to W's.
    rows = np.concatenate([off * np.sqrt(weights)[:, None], np.sqrt(damping) * np.eye(6)])
    wanted = np.concatenate([(x @ W.T) * np.sqrt(weights)[:, None], np.sqrt(damping) * W.T])
    M = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    assert np.allclose(W + W @ shift, M, atol=1e-4)


def test_without_an_error_there_is_no_shift() -> None:
    x = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    with open_blocks(1) as blocks:
        sums = InputSums(blocks)
        sums.add(x, x.copy(), np.ones(50, np.float32))
        assert not sums.shift().any()


class Watched:
    """A runtime that shows what it was given."""

    def __init__(self, *rows: np.ndarray) -> None:
        self.rows = rows

    def visit_inputs(self, _tokens: object, names: list[str], visit: Any, _resume: object) -> None:
        for rows in self.rows:
            visit(names[0], rows, None)


@pytest.mark.parametrize(
    ("rows", "reason"), [([], "multiplies nothing"), ([np.full((2, 4), np.inf, np.float32)], "not finite")]
)
def test_what_a_weight_cannot_make_up_for(rows: list[np.ndarray], reason: str) -> None:
    """A kept file may name a weight that no graph reads, and a compressed model may overflow: one line."""
    with pytest.raises(InputError, match=f"weight 'q' .*{reason}"):
        inputs_of(Watched(*rows), [Text(np.zeros(2, np.int32))], "q", ResumePoints(), Rows())  # type: ignore[arg-type]


TEXTS = [Text(np.arange(3, 3 + n, dtype=np.int32), n_question=n // 2) for n in (20, 7, 30)]
SEQUENCE = ["blk.0.attn_q.weight", "blk.0.attn_output.weight", "blk.0.ffn_down.weight", "blk.1.attn_q.weight"]


def rows_of(rt: Runtime, group: str) -> np.ndarray:
    """By a whole run of each text."""
    found: list[np.ndarray] = []
    for text in TEXTS:
        rt.visit_inputs([text.tokens], [group], lambda _, rows, __: found.append(rows))
    return np.concatenate(found)


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    with open_blocks(1) as found:
        yield found


@pytest.mark.parametrize("n_part", [1, 25, 4096])
def test_each_step_sees_the_weights_that_the_steps_before_have_changed(
    blocks: Blocks, monkeypatch: pytest.MonkeyPatch, n_part: int
) -> None:
    monkeypatch.setattr(comparison, "PART_TOKENS", n_part)
    path = pico_tuned_gguf("llama")
    values = read_gguf(path)
    weights = np.concatenate([text.weights for text in TEXTS])
    with (
        Comparison(TEXTS, path, blocks) as compared,
        open_watched(path, 30, 1) as tuned,
        open_watched(path, 30, 1, changes=True) as compressed,
    ):
        for i, group in enumerate(SEQUENCE):
            H, shift = compared.of(group)
            sums = InputSums(blocks)
            sums.add(rows_of(tuned, group), rows_of(compressed, group), weights)
            assert np.allclose(H, sums.moments, rtol=1e-4, atol=1e-6)
            assert np.allclose(shift, sums.shift(), rtol=1e-3, atol=1e-4)
            assert bool(shift.any()) == (i > 0)
            for model in (compared.compressed, compressed):
                model.set_weight(group, values[group] * 1.1)


def test_no_more_is_held_than_is_said(blocks: Blocks) -> None:
    n_in = 96  # of ffn_down
    with Comparison(TEXTS, pico_tuned_gguf("llama"), blocks) as compared:
        for group in SEQUENCE:
            compared.of(group)
            n_bytes = sum(points.n_bytes for part in compared._parts for points in (part.tuned, part.compressed))
            assert 0 < n_bytes <= held_bytes(TEXTS, n_in)


def test_steps_go_forward_only(blocks: Blocks) -> None:
    """A kept file may have another sequence than the graph: one line."""
    with Comparison(TEXTS, pico_tuned_gguf("llama"), blocks) as compared:
        compared.of(SEQUENCE[2])
        with pytest.raises(InputError, match=r"weight 'blk\.0\.attn_q\.weight' multiplies nothing"):
            compared.of(SEQUENCE[0])


def test_a_long_text_is_read_in_part() -> None:
    n = sum(len(text.tokens) for text in TEXTS)
    assert comparison._first(TEXTS, n) == TEXTS
    assert comparison._first(TEXTS, n - 1) == TEXTS[:2]
    assert comparison._first(TEXTS, 1) == TEXTS[:1]
    assert comparison._first(TEXTS * 4, 2 * n) == [TEXTS[0], TEXTS[2], TEXTS[1]] * 2

"""selfcheck: what is no fine-tune of this base is named before anything is encoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.errors import BaseMismatchError, NonFiniteError
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.model.selfcheck import MIN_COSINE, Checked, check_weight, cosine, count_non_finite
from tests.support.models import Floats, pico_gguf, pico_tuned_gguf, read_gguf, rewrite_gguf, tuned_gguf

Q = "blk.1.attn_q.weight"


@pytest.fixture
def blocks() -> Iterator[Blocks]:
    with open_blocks(2) as b:
        yield b


def check(tuned: Path, name: str, blocks: Blocks, base: Path | None = None) -> Checked:
    model = GgufModel(base or pico_gguf("llama"))
    return check_weight(Pair(name, model.shapes[name], name), model, GgufModel(tuned), blocks)


def changed(tmp_path: Path, name: str, values: Floats) -> Path:
    return rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "changed.gguf", {name: values})


def permuted(w: Floats, n_head: int) -> Floats:
    """Llama's rotary order from Hugging Face's, as upstream's converter does it."""
    return w.reshape(n_head, 2, len(w) // n_head // 2, -1).swapaxes(1, 2).reshape(w.shape)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "mixtral"])
def test_fine_tunes_pass(kind: str, blocks: Blocks) -> None:
    for name in GgufModel(pico_gguf(kind)).shapes:
        checked = check(pico_tuned_gguf(kind), name, blocks, pico_gguf(kind))
        assert checked.cosine > 0.9
        assert not checked.identical


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_0", "TQ2_0"])
def test_fine_tunes_pass_over_quantised_bases(type_name: str, tmp_path: Path, blocks: Blocks) -> None:
    values = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    base = rewrite_gguf(pico_gguf("llama"), tmp_path / "b.gguf", {"w": values}, {"w": type_name})
    tuned = rewrite_gguf(base, tmp_path / "t.gguf", {"w": values * 1.1})
    assert check(tuned, "w", blocks, base).cosine > 2 * MIN_COSINE


def test_permuted_rows_are_named_with_their_cause(tmp_path: Path, blocks: Blocks) -> None:
    tuned = changed(tmp_path, Q, permuted(read_gguf(pico_tuned_gguf("llama"))[Q], n_head=4))
    with pytest.raises(BaseMismatchError, match=f"{Q}: .*rows are the base's in another order.*q and k"):
        check(tuned, Q, blocks)


def test_other_base_is_named(tmp_path: Path, blocks: Blocks) -> None:
    rng = np.random.default_rng(5)
    tuned = changed(tmp_path, Q, rng.standard_normal((64, 64)).astype(np.float32))
    with pytest.raises(BaseMismatchError, match=f"{Q}: .*fine-tune of another base"):
        check(tuned, Q, blocks)


def test_other_base_keeps_no_weight_but_norms(tmp_path: Path, blocks: Blocks) -> None:
    """Norms of any two models are alike; every matrix tells."""
    rng = np.random.default_rng(6)
    other: dict[str, Floats | None] = {
        name: (rng.standard_normal(w.shape) * w.std() + (w.ndim == 1)).astype(np.float32)
        for name, w in read_gguf(pico_gguf("llama")).items()
    }
    tuned = rewrite_gguf(pico_gguf("llama"), tmp_path / "other.gguf", other)
    for name, ne in GgufModel(tuned).shapes.items():
        if len(ne) == 2:
            with pytest.raises(BaseMismatchError, match=name):
                check(tuned, name, blocks)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_counted(bad: float, tmp_path: Path, blocks: Blocks) -> None:
    values = read_gguf(pico_tuned_gguf("llama"))[Q].copy()
    values[3, 5] = values[60, 0] = bad
    with pytest.raises(NonFiniteError, match=f"{Q}: 2 of 4096 values are NaN or infinite"):
        check(changed(tmp_path, Q, values), Q, blocks)


def test_count_of_values_whose_sum_overflows(blocks: Blocks) -> None:
    huge = np.full((8, 8), 3e38, np.float32)
    assert count_non_finite(huge, blocks) == 0
    huge[2, 2] = np.nan
    assert count_non_finite(huge, blocks) == 1


def test_identical_weight(tmp_path: Path, blocks: Blocks) -> None:
    base_values = read_gguf(pico_gguf("llama"))[Q]
    tuned = changed(tmp_path, Q, base_values)
    assert check(tuned, Q, blocks) == Checked(pytest.approx(1.0), identical=True)


def test_one_changed_value_outside_the_sampled_rows_is_seen(tmp_path: Path, blocks: Blocks) -> None:
    name = "token_embd.weight"
    values = read_gguf(pico_gguf("llama"))[name].copy()
    values[1, 7] += 1e-3  # Rows 0, 10, 20, ... are sampled.
    assert not check(changed(tmp_path, name, values), name, blocks).identical


def test_weight_that_is_zero_in_the_base_may_become_anything(tmp_path: Path, blocks: Blocks) -> None:
    zero = np.zeros(64, np.float32)
    base = rewrite_gguf(pico_gguf("llama"), tmp_path / "b.gguf", {"b.bias": zero})
    tuned = rewrite_gguf(base, tmp_path / "t.gguf", {"b.bias": zero + 1})
    assert check(tuned, "b.bias", blocks, base) == Checked(0.0, identical=False)


def test_reset_weight_is_refused(tmp_path: Path, blocks: Blocks) -> None:
    with pytest.raises(BaseMismatchError, match=Q):
        check(changed(tmp_path, Q, np.zeros((64, 64), np.float32)), Q, blocks)


def test_non_finite_base(tmp_path: Path, blocks: Blocks) -> None:
    values = np.full((64, 64), np.nan, np.float32)
    base = rewrite_gguf(pico_gguf("llama"), tmp_path / "b.gguf", {Q: values})
    with pytest.raises(NonFiniteError, match=r"b\.gguf: blk\.1\.attn_q\.weight: holds NaN"):
        check(pico_tuned_gguf("llama"), Q, blocks, base)


def test_strong_fine_tune_passes(tmp_path: Path, blocks: Blocks) -> None:
    """Noise as large as the weights themselves: a cosine of 0.7."""
    tuned = tuned_gguf(pico_gguf("llama"), tmp_path / "t.gguf", amount=1.0)
    assert check(tuned, Q, blocks).cosine == pytest.approx(0.7, abs=0.05)


def test_cosine() -> None:
    a = np.array([1.0, 2.0, 3.0], np.float32)
    assert cosine(a, 2 * a) == pytest.approx(1)
    assert cosine(a, -a) == pytest.approx(-1)
    assert cosine(a, 0 * a) == 0

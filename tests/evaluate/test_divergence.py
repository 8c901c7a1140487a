"""Divergences against their definition in torch, for equal and unequal vocabularies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dqrelo_gguf.evaluate import divergence
from dqrelo_gguf.evaluate.divergence import F32, F64, Compared, compare


def logits(rng: np.random.Generator, n_rows: int = 6, n_vocab: int = 50, scale: float = 20) -> F32:
    return rng.normal(0, scale, (n_rows, n_vocab)).astype(np.float32)


def expected_kl(p: F32, q: F32) -> F64:
    log_p, log_q = (torch.from_numpy(x).double().log_softmax(1) for x in (p, q))
    kl: F64 = (
        torch.nn.functional.kl_div(log_q[:, : p.shape[1]], log_p, reduction="none", log_target=True).sum(1).numpy()
    )
    return kl


@pytest.mark.parametrize("block_bytes", [1 << 24, 1, 1000])
def test_divergence_is_that_of_the_probabilities(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(0)
    p, q = logits(rng), logits(rng)
    assert divergence.divergence(p, q) == pytest.approx(expected_kl(p, q), rel=1e-9)
    assert divergence.divergence(p, p + 3) == pytest.approx(0, abs=1e-6)


def test_tiny_divergences_keep_their_digits() -> None:
    rng = np.random.default_rng(1)
    p = logits(rng, n_vocab=5000, scale=3)
    q = (p + rng.normal(0, 1e-3, p.shape)).astype(np.float32)
    assert expected_kl(p, q).max() < 1e-6
    assert divergence.divergence(p, q) == pytest.approx(expected_kl(p, q), rel=1e-6)


def test_models_are_compared_with_the_reference() -> None:
    rng = np.random.default_rng(2)
    p, near, far = logits(rng, scale=2), logits(rng, scale=2), logits(rng, scale=2)
    near = (p + 0.1 * near).astype(np.float32)
    targets = rng.integers(0, 50, 6).astype(np.int32)
    nll, models = compare(p, [near, far, p], targets)
    rows = np.arange(6)
    log_softmax = [torch.from_numpy(x).double().log_softmax(1).numpy() for x in (p, near, far)]
    assert nll == pytest.approx(-log_softmax[0][rows, targets], rel=1e-6)
    for x, log_p, found in zip((near, far), log_softmax[1:], models, strict=False):
        assert found.kl == pytest.approx(expected_kl(p, x), rel=1e-6)
        assert found.nll == pytest.approx(-log_p[rows, targets], rel=1e-6)
        assert (found.same_top == (x.argmax(1) == p.argmax(1))).all()
    assert models[2].same_top.all()
    assert (models[2].kl == 0).all()


def test_padding_of_either_vocabulary_has_no_say() -> None:
    rng = np.random.default_rng(3)
    p, q = logits(rng), logits(rng)
    targets = np.zeros(6, np.int32)
    impossible = np.full((6, 7), -1e4, np.float32)
    (own,) = compare(p, [q], targets)[1]
    for wide_p, wide_q in ((np.hstack([p, impossible]), q), (p, np.hstack([q, impossible]))):
        (found,) = compare(wide_p, [wide_q], targets)[1]
        assert found.kl == pytest.approx(own.kl, rel=1e-6)
        assert found.nll == pytest.approx(own.nll, rel=1e-6)


def test_what_the_model_gives_to_its_padding_is_lost() -> None:
    p = np.zeros((1, 4), np.float32)
    (found,) = compare(p, [np.zeros((1, 8), np.float32)], np.zeros(1, np.int32))[1]
    assert found.kl[0] == pytest.approx(np.log(2))


def test_joined_is_one_after_the_other() -> None:
    parts = [Compared(np.full(n, n, np.float32), np.zeros(n, np.float32), np.ones(n, bool)) for n in (1, 2)]
    assert Compared.joined(parts).kl.tolist() == [1, 2, 2]


@pytest.mark.parametrize("block_bytes", [1 << 24, 1])
def test_candidates_are_the_most_probable_tokens(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_BLOCK_BYTES", block_bytes)
    rows = logits(np.random.default_rng(5), scale=2)
    found = divergence.candidates(rows, 5)
    p = torch.from_numpy(rows).double().softmax(1).numpy()
    assert np.array_equal(found.ids, np.argsort(-p, axis=1)[:, :5])
    assert found.p == pytest.approx(-np.sort(-p, axis=1)[:, :5], rel=1e-6)
    assert found.ids.dtype == np.int32


def test_a_small_vocabulary_has_fewer_candidates_and_no_rows_have_none() -> None:
    rows = logits(np.random.default_rng(6), n_vocab=3)
    assert divergence.candidates(rows, 5).ids.shape == (6, 3)
    assert divergence.candidates(rows[:0], 2).ids.shape == (0, 2)

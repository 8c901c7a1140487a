"""Deltas of sparse weights: the logits are those of the model into which they are merged, whoever else is in the batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.support import exact_delta
from tests.support.exact_delta import Kind
from tests.support.families import SHAPES
from tests.support.logits import OTHER, TEXT, nmse, open_model
from tests.support.tiny_llama import Type, base_weights, write_model

# Entries are multiplied with unrounded activations, as the merged weights are; sums are in another order, and the cache rounds to F16.
MAX_NMSE = 1e-6
# A base in F16 rounds what each layer gives to the next, too.
MAX_NMSE_F16 = 1e-5
KINDS = {
    "F8 by lists": Kind(entries="F8", entry_share=0.08),
    "F8 by a mask": Kind(entries="F8", has_mask=True),
    "F16 by lists": Kind(entries="F16"),
    "BF16 by a mask": Kind(entries="BF16", has_mask=True),
}


@dataclass
class Models:
    """A base, a sparse delta of it, and the model into which that is merged."""

    base: Path
    delta: Path
    merged: Path
    allowed: float


# Rows of 576 and 832 end inside a block of 256 columns; with tied embeddings these are the output, too.
@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(params=[("256", "F32"), ("576", "F16"), ("tied", "F32")], ids="-".join)
def models(request: pytest.FixtureRequest, kind: Kind, tmp_path: Path) -> Models:
    shape, base_type = SHAPES[request.param[0]], request.param[1]
    base = write_model(tmp_path / "base.gguf", shape, base_weights(shape), Type[base_type])
    delta, merged = tmp_path / "sparse.dq.gguf", tmp_path / "merged.gguf"
    exact_delta.make(base, delta, merged, kind=kind)
    return Models(base, delta, merged, MAX_NMSE if base_type == "F32" else MAX_NMSE_F16)


def test_one_token_and_a_prompt_that_is_folded_and_one_that_is_not(models: Models) -> None:
    with open_model(models.base) as rt, open_model(models.merged) as plain:
        long = rt.tokenize(TEXT * 4)
        delta = rt.load_delta(models.delta)
        assert delta.inert == []
        assert len(long) >= 40
        for n in (1, 20, len(long)):
            expected = plain.logits(long[:n])
            assert nmse(rt.logits(long[:n], delta), expected) <= models.allowed
            assert nmse(rt.logits(long[:n]), expected) > 0.1  # The delta does much, so that a part left out shows.


@pytest.mark.parametrize("other", [Kind(), Kind(n_planes=0, rank=2)], ids=["a full delta", "factors, as of LoRA"])
def test_beside_another_delta_and_the_base(models: Models, other: Kind, tmp_path: Path) -> None:
    beside = tmp_path / "other.dq.gguf"
    exact_delta.make(models.base, beside, tmp_path / "other.gguf", 2, kind=other)
    # Without flash attention, whose kernel on the CPU depends on the number of tokens.
    with open_model(models.base, flash_attn="off") as rt:
        tokens, short = rt.tokenize(TEXT * 4), rt.tokenize(OTHER)
        sparse, full = rt.load_delta(models.delta), rt.load_delta(beside)
        texts = [tokens, short, tokens, tokens, short[:1]]
        bound = [sparse, full, None, full, sparse]
        scales = [0.5, 1.0, 1.0, 1.0, 1.0]
        for got, text, own, scale in zip(rt.logits(texts, bound, scale=scales), texts, bound, scales, strict=True):
            assert nmse(got, rt.logits([text], [own], scale=[scale])[0]) <= models.allowed
        mixed = rt.logits([short] * 3, [sparse, None, full])
        assert np.array_equal(mixed[1], rt.logits([short] * 3)[1])

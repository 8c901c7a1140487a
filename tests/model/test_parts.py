"""parts.py: every tensor name of every architecture that the pin knows has a place."""

from __future__ import annotations

import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.model.parts import MODULES, block_of, module_of


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("token_embd.weight", "embed"),
        ("output.weight", "embed"),
        ("output.bias", "embed"),
        ("output_norm.weight", "norm"),
        ("blk.0.attn_norm.weight", "norm"),
        ("blk.0.attn_q_norm.weight", "norm"),
        ("blk.0.ffn_norm.weight", "norm"),
        ("blk.0.post_attention_norm.weight", "norm"),
        ("blk.0.attn_q.bias", "attn"),
        ("blk.0.attn_qkv.weight", "attn"),
        ("blk.0.ssm_in.weight", "attn"),
        ("blk.0.ffn_gate_inp.weight", "mlp"),
        ("blk.0.ffn_down_exps.weight", "mlp"),
        ("blk.0.exp_probs_b.bias", "mlp"),
        ("blk.0.channel_mix_key.weight", "mlp"),
        ("enc.blk.0.ffn_up.weight", "mlp"),
        ("dec.blk.0.cross_attn_q.weight", "attn"),
    ],
)
def test_modules(name: str, module: str) -> None:
    assert module_of(name) == module


def test_blocks() -> None:
    assert block_of("blk.12.attn_q.weight") == 12
    assert block_of("enc.blk.3.ffn_up.weight") == 3
    assert block_of("output.weight") is None


def test_every_name_has_a_place() -> None:
    for pattern in gguf.TENSOR_NAMES.values():
        name = pattern.format(bid=7, xid=0) + ".weight"
        assert module_of(name) in MODULES
        assert (block_of(name) == 7) is (".blk.7." in f".{name}"), name

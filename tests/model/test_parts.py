"""parts.py: every tensor name of every architecture that the pin knows has a place, and parts are chosen by it."""

from __future__ import annotations

import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.model.pairing import Selection
from dqrelo_gguf.model.parts import MODULES, BlockRange, block_of, module_of, modules_of


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


@pytest.mark.parametrize("n_blocks", [1, 2, 7, 8, 30, 61])
def test_the_quarters_have_every_block_once(n_blocks: int) -> None:
    quarters = [BlockRange.of(text) for text in ("0-25%", "25-50%", "50-75%", "75-100%")]
    for i in range(n_blocks):
        assert [q.has(i, n_blocks) for q in quarters].count(True) == 1
    sizes = [sum(q.has(i, n_blocks) for i in range(n_blocks)) for q in quarters]
    assert max(sizes) - min(sizes) <= 1


def test_ranges_include_both_ends() -> None:
    assert [i for i in range(12) if BlockRange.of("3-7").has(i, 12)] == [3, 4, 5, 6, 7]
    assert [i for i in range(12) if BlockRange.of("11").has(i, 12)] == [11]
    assert [i for i in range(8) if BlockRange.of("0-25%").has(i, 8)] == [0, 1]


@pytest.mark.parametrize("text", ["", "a", "7-3", "-1", "3-", "25%", "0-0%", "50-101%", "1.5", "0-25%%", "1,2"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(InputError, match=r"--layers .*: not a range of blocks, expected one such as 3, 3-7 or 0-25%"):
        BlockRange.of(text)


def test_what_is_no_module() -> None:
    assert modules_of("mlp,attn") == {"attn", "mlp"}
    with pytest.raises(
        InputError, match="--modules attn,ffn: 'ffn' is no module, expected some of attn, mlp, norm, em"
    ):
        modules_of("attn,ffn")
    with pytest.raises(InputError, match="--modules : '' is no module"):
        modules_of("")


def test_layers_and_modules_both_hold() -> None:
    chosen = Selection.of(None, None, "0-50%", "attn")
    assert chosen.compresses("blk.0.attn_q.weight", 2)
    assert not chosen.compresses("blk.1.attn_q.weight", 2)
    assert not chosen.compresses("blk.0.ffn_up.weight", 2)
    assert not Selection.of(None, None, "0-100%").compresses("token_embd.weight", 2)
    assert Selection.of(None, None, None, "embed").compresses("token_embd.weight", 2)
    assert Selection().compresses("output_norm.weight", 2)

"""Which part of a model a weight belongs to, by its GGUF name."""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

Module = Literal["attn", "mlp", "norm", "embed"]
MODULES: Final[tuple[Module, ...]] = get_args(Module)

_BLOCK = re.compile(r"(?:^|\.)blk\.(\d+)\.(.*)")
_MLP = ("ffn", "exp_probs", "channel_mix")


def block_of(name: str) -> int | None:
    """A weight's block (layer), None outside the blocks.

    >>> block_of("blk.3.attn_q.weight"), block_of("output.weight")
    (3, None)
    """
    found = _BLOCK.search(name)
    return None if found is None else int(found[1])


def module_of(name: str) -> Module:
    """The kind of module that a weight belongs to.

    norm: every normalisation, wherever it is. embed: all else outside the blocks, the embedding and the output matrix. mlp: the feed-forward part
    of a block, experts and their router included. attn: all else in a block, attention or what stands in its place.

    >>> [module_of(f"blk.0.{name}.weight") for name in ("attn_q", "attn_norm", "ffn_down_exps", "ssm_in")]
    ['attn', 'norm', 'mlp', 'attn']
    >>> module_of("token_embd.weight")
    'embed'
    """
    if "norm" in name:
        return "norm"
    found = _BLOCK.search(name)
    if found is None:
        return "embed"
    return "mlp" if found[2].startswith(_MLP) else "attn"

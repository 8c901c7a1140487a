"""Which part of a model a weight belongs to, by its GGUF name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from dqrelo_gguf.errors import InputError

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

    norm: every normalisation, wherever it is. embed: all else outside the blocks, the embedding and the output matrix.
    mlp: the feed-forward part of a block, experts and their router included. attn: all else in a block, attention or
    what stands in its place.

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


@dataclass(frozen=True)
class BlockRange:
    """Some blocks of a model: from `first` to `last`, or from `first` to under `last` percent of all.

    Block i of n lies at i / n, so that 0-25%, 25-50%, 50-75% and 75-100% have every block once.
    """

    first: int
    last: int
    in_percent: bool = False

    @classmethod
    def of(cls, text: str) -> BlockRange:
        """From the command line: "3", "3-7" (both included) or "0-25%".

        >>> BlockRange.of("0-25%")
        BlockRange(first=0, last=25, in_percent=True)

        Raises:
            InputError: it is none of these.
        """
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?(%)?", text)
        bounds = (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))
        in_percent = found is not None and found[3] is not None
        if found is None or bounds[0] > bounds[1] or (in_percent and not bounds[0] < bounds[1] <= 100):
            raise InputError(f"--layers {text}: not a range of blocks, expected one such as 3, 3-7 or 0-25%")
        return cls(*bounds, in_percent)

    def has(self, block: int, n_blocks: int) -> bool:
        """Whether a block of a model with so many is one of them."""
        if self.in_percent:
            return self.first * n_blocks <= 100 * block < self.last * n_blocks
        return self.first <= block <= self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}{'%' if self.in_percent else ''}"


def modules_of(text: str) -> frozenset[Module]:
    """Modules from the command line: names with commas between.

    Raises:
        InputError: a name is none of MODULES.
    """
    names = text.split(",")
    unknown = [name for name in names if name not in MODULES]
    if unknown:
        raise InputError(f"--modules {text}: '{unknown[0]}' is no module, expected some of {', '.join(MODULES)}")
    return frozenset(module for module in MODULES if module in names)

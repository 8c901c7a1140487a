"""The methods by name: what each is made of, and which options it takes. Planning and encoding look it up here.

A method of stages describes a weight one part at a time, each of what the parts before leave: a sign plane with one scale,
or a truncated SVD. The published method, its parts alone and its parts the other way round are all of this kind
(docs/method.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Kind = Literal["best", "stages", "groups", "pruned"]
Stage = Literal["sign", "svd"]
Keeps = Literal["random", "largest", "active"]

BEST: Final = "best"
PAPER: Final = "paper"
# What the file of a LoRA adapter names as its method: its factors are stored, and nothing is compressed.
ADAPTER: Final = "adapter"

# Options as the command line spells them.
RATIO: Final = "--ratio"
RANK: Final = "--rank"
VECTORS: Final = "--vectors"
FACTOR_TYPE: Final = "--factor-type"
SVD: Final = "--svd"
PROBE: Final = "--importance probe"
CALIBRATION: Final = "--calibrate, --calibration"
IMATRIX: Final = "--imatrix"


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        kind: which planner and which encoder it has.
        what: what it stores, a clause for --help.
        takes: its options. One without RATIO has a size of its own.
        stages: of a method of stages, in order; "svd" at most once.
        linear_only: only the linear projections of attention and MLP are converted, as a LoRA has them; all else stays
            the base's.
        keeps: of a method that prunes, which entries. No delta file can hold them, so it writes a merged model.
    """

    kind: Kind
    what: str
    takes: frozenset[str]
    stages: tuple[Stage, ...] = ()
    linear_only: bool = False
    keeps: Keeps | None = None


_LOW_RANK = frozenset({RATIO, RANK, FACTOR_TYPE, SVD})

METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        BEST: Method(
            "best",
            "planes and factors of few bits, or the changed entries alone where these are few, shared out over the weights "
            "so that least is lost",
            frozenset({RATIO, PROBE, CALIBRATION}),
        ),
        PAPER: Method(
            "stages",
            "one plane, one scale and a low-rank residual a weight, as published",
            _LOW_RANK | {VECTORS},
            ("sign", "svd"),
        ),
        "svd": Method("stages", "a truncated SVD", _LOW_RANK | {VECTORS}, ("svd",)),
        "svd-sign": Method(
            "stages", "the two parts of paper the other way round", _LOW_RANK | {VECTORS}, ("svd", "sign")
        ),
        "bitdelta": Method("stages", "one plane and one scale, about 1/16", frozenset(), ("sign",)),
        "sign-sign": Method("stages", "the same twice, about 1/8", frozenset(), ("sign", "sign")),
        "lora": Method(
            "stages", "a LoRA of one rank, extracted by SVD, of the linear projections", _LOW_RANK, ("svd",), True
        ),
        "delta-come": Method("groups", "singular vectors in groups of 8, 3 and 2 bits a number", frozenset({RATIO})),
        "random": Method(
            "pruned", "entries drawn at random, scaled up (DARE); a merged model", frozenset({RATIO}), keeps="random"
        ),
        "magnitude": Method(
            "pruned", "the largest entries of each matrix; a merged model", frozenset({RATIO}), keeps="largest"
        ),
        "wanda": Method(
            "pruned",
            "in each row the entries that are largest times their inputs; a merged model",
            frozenset({RATIO, CALIBRATION, IMATRIX}),
            keeps="active",
        ),
    }
)


def taking(option: str) -> str:
    """The names of the methods that take an option, for messages."""
    return ", ".join(name for name, method in METHODS.items() if option in method.takes)

"""adapter_config.json: what PEFT scales factors with, and what of it is not converted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from dqrelo_gguf.errors import InputError, printable
from dqrelo_gguf.model.base_config import read_json
from dqrelo_gguf.model.peft_methods import METHODS, Method

CONFIG: Final = "adapter_config.json"
MERGE: Final = "Merge it into the base with PEFT (merge_and_unload), save the model and convert that"
_MAX_RANK = 1 << 16
_MAX_PATTERN = 1000
_MAX_PATTERNS = 4096
# A regular expression may try every way to match: with so many repeats and choices, and no repeat of a group, those are few.
_MAX_REPEATS, _MAX_CHOICES = 2, 8
_SYNTAX = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(?P<group>\))?(?P<repeat>[*+{])|(?P<choice>[|?])", re.DOTALL)

# By peft_type, the key of alpha; None where nothing is scaled.
_TYPES: Final = MappingProxyType({"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha", "VERA": None})
# Keys that make a LoRA something else than a product of two factors, each with what it is called.
_OTHER: Final = MappingProxyType(
    {
        "use_qalora": "QA-LoRA",
        "use_bdlora": "BD-LoRA",
        "alora_invocation_tokens": "an aLoRA, which some tokens switch on",
        "invocation_string": "an aLoRA, which some tokens switch on",
        "arrow_config": "Arrow",
        "kasa_config": "KaSA",
        "monteclora_config": "MonteCLoRA",
        "layer_replication": "layer_replication, a model with more layers than its base",
        "lora_bias": "lora_bias, factors with biases",
        "target_parameters": "target_parameters, factors of stacked parameters",
        "trainable_token_indices": "trainable_token_indices, rows of the embedding",
    }
)
# Initialisations that change the base's weights, so that the factors belong to a base that is not the one given.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class PeftConfig:
    """What is read of adapter_config.json.

    Args:
        path: of the file.
        method: a row of peft_methods.METHODS.
        r: the rank of modules without a rank of their own.
        alpha: likewise.
        ranks, alphas: by pattern of modules' names.
        is_rank_stabilised: the scale is alpha over the root of the rank (rsLoRA).
        is_transposed: weights of the targets lie (in, out) in the base's checkpoint (GPT-2).
    """

    path: Path
    method: Method
    r: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    is_rank_stabilised: bool
    is_transposed: bool

    def rank(self, module: str) -> int:
        return int(_of_pattern(self.ranks, module, self.r))

    def scale(self, module: str) -> float:
        """What PEFT multiplies the product of a module's factors with."""
        alpha, rank = float(_of_pattern(self.alphas, module, self.alpha)), self.rank(module)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)


def read_peft_config(folder: Path) -> PeftConfig:
    """Reads adapter_config.json.

    Raises:
        InputError: it is of another method, or has numbers that are none.
    """
    path = folder / CONFIG
    if not path.exists():
        raise InputError(f"{folder}: has no {CONFIG} beside the adapter's weights. Incomplete download?")
    values = read_json(path)
    found = values.get("peft_type")
    kind = "missing" if found is None else str(found)
    if kind not in _TYPES:
        raise InputError(f"{path}: peft_type is {printable(kind)[:40]}, expected one of {', '.join(_TYPES)}. {MERGE}")
    for key, what in _OTHER.items():
        if values.get(key):
            raise InputError(f"{path}: {key}: {what} is not converted. {MERGE}")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise InputError(
            f"{path}: init_lora_weights is {printable(start)[:40]}, which changes the base's weights too, and those are "
            "not in the adapter. Save it with path_initial_model_for_weight_conversion, or merge it into its base with PEFT"
        )
    r, alpha_key, is_lora = _rank(path, "r", values.get("r")), _TYPES[kind], kind == "LORA"
    return PeftConfig(
        path=path,
        method=METHODS["DORA" if is_lora and values.get("use_dora") else kind],
        r=r,
        alpha=float(r) if alpha_key is None else _number(path, alpha_key, values.get(alpha_key)),
        ranks={p: _rank(path, f"rank_pattern of {p}", v) for p, v in _patterns(path, "rank_pattern", values)},
        alphas={p: _number(path, f"alpha_pattern of {p}", v) for p, v in _patterns(path, "alpha_pattern", values)},
        is_rank_stabilised=is_lora and bool(values.get("use_rslora")),
        is_transposed=bool(values.get("fan_in_fan_out")),
    )


def _of_pattern(by_pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """As PEFT looks a module up: the first pattern that matches the end of its name."""
    for pattern, value in by_pattern.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return value
    return default


def _patterns(path: Path, key: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = values.get(key) or {}
    if not isinstance(found, dict):
        raise InputError(f"{path}: {key} is no object of names")
    if len(found) > _MAX_PATTERNS:
        raise InputError(f"{path}: {key} has {len(found)} patterns, expected at most {_MAX_PATTERNS}")
    for pattern in found:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as e:
            raise InputError(f"{path}: {key}: '{printable(pattern)[:80]}' is no regular expression") from e
        if len(pattern) > _MAX_PATTERN:
            raise InputError(
                f"{path}: {key} has a pattern of {len(pattern)} characters, expected at most {_MAX_PATTERN}"
            )
        if not _is_cheap(pattern):
            raise InputError(
                f"{path}: {key}: '{printable(pattern)[:80]}' may take for ever to match, expected at most {_MAX_REPEATS} of "
                f"* + {{ and {_MAX_CHOICES} of | ?, and none of * + {{ after a group. Write out the modules' names"
            )
    return list(found.items())


def _is_cheap(pattern: str) -> bool:
    """Whether a regular expression has few ways to match a name."""
    found = list(_SYNTAX.finditer(pattern))
    repeats = [m for m in found if m["repeat"]]
    n_choices = sum(m["choice"] is not None for m in found)
    return len(repeats) <= _MAX_REPEATS and n_choices <= _MAX_CHOICES and not any(m["group"] for m in repeats)


def _rank(path: Path, what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MAX_RANK:
        raise InputError(f"{path}: {printable(what)[:80]} is {printable(str(value))[:40]}, expected 1 to {_MAX_RANK}")
    return value


def _number(path: Path, what: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer of JSON can be larger than any float.
    if not is_number or not -1e30 < value < 1e30:
        raise InputError(f"{path}: {printable(what)[:80]} is {printable(str(value))[:40]}, expected a finite number")
    return float(value)

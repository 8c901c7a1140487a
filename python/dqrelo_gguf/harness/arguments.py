"""The values of --model_args: texts, and what lm-evaluation-harness took for numbers in them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.errors import InputError, shown

MAX_SEQUENCES = 256  # of a runtime
AUTO_SEQUENCES = 16
_MAX_TOKENS = (1 << 31) - 1


@dataclass(frozen=True)
class Arguments:
    """What a model of the harness is, and how it runs.

    Args:
        base: the base GGUF.
        delta: a delta of it; None means the base.
        n_ctx: tokens that the model reads at most; None means what it was trained on, at most resident.MAX_LENGTH.
        n_seq: sequences that are read together: the batch size.
        max_gen_toks: tokens of an answer, where the task does not say.
        n_threads: CPU threads; None means all.
        n_gpu_layers: layers on a GPU; -1 means all.
        flash_attn: "auto", "on" or "off".
        type_k: type of the cached keys; the runtime says which there are.
        type_v: type of the cached values.
        scale: how much of the delta.
        allow_other_base: take a delta of another quantisation of the base.
    """

    base: Path
    delta: Path | None = None
    n_ctx: int | None = None
    n_seq: int = 1
    max_gen_toks: int = 256
    n_threads: int | None = None
    n_gpu_layers: int = -1
    flash_attn: str = "off"  # So no sum is split by the number of threads.
    type_k: str = "f16"
    type_v: str = "f16"
    scale: float = 1.0
    allow_other_base: bool = False

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Arguments:
        """From --model_args, --batch_size, --max_batch_size and --device.

        Raises:
            InputError: a name that is none of ours, no base, or a value that is none.
        """
        given = {name: value for name, value in values.items() if value is not None}
        unknown = [name for name in given if name not in _READERS and name not in _OF_THE_HARNESS]
        if unknown:
            names = ", ".join((*_READERS, *_OF_THE_HARNESS))
            raise InputError(f"model_args: {shown(unknown[0])} is unknown, expected some of: {names}")
        if "base" not in given:
            raise InputError("model_args: base is missing, expected base=FILE.gguf, and delta=FILE.dq.gguf for a delta")
        fields: dict[str, Any] = {}
        if given.get("device") == "cpu":
            fields["n_gpu_layers"] = 0
        fields["n_seq"] = _sequences(given.get("batch_size", 1), given.get("max_batch_size", AUTO_SEQUENCES))
        for name, (field, read) in _READERS.items():
            if name in given:
                fields[field] = read(name, given[name])
        return cls(**fields)


def _given(name: str, value: Any) -> str:
    return f"{name}={shown(str(value))}"


def _path(name: str, value: Any) -> Path:
    """What is an address is fetched."""
    if isinstance(value, (bool, list, dict)) or not str(value):
        raise InputError(f"model_args: {_given(name, value)}: expected a file")
    return local(str(value), Kind.DELTA if name == "delta" else Kind.MODEL)


def _number(least: int, most: int = _MAX_TOKENS) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,10}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InputError(f"model_args: {_given(name, value)}: expected a whole number from {least} to {most}")
        return value

    return read


def _scale(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not -4 <= number <= 4:
        raise InputError(f"model_args: {_given(name, value)}: expected a number from -4 to 4")
    return number


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"model_args: {_given(name, value)}: expected true or false")
    return value


def _word(_name: str, value: Any) -> str:
    return str(value)  # The runtime says which there are.


def _sequences(batch_size: Any, most: Any) -> int:
    """The batch size; `auto`, which the harness also writes as `auto:N`, is as many as are quick without much memory."""
    limit = _number(1, MAX_SEQUENCES)("max_batch_size", most)
    if str(batch_size).partition(":")[0] == "auto":
        return min(AUTO_SEQUENCES, limit)
    return _number(1, MAX_SEQUENCES)("batch_size", batch_size)


# The field of each name, and what reads its value.
_READERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "base": ("base", _path),
    "delta": ("delta", _path),
    "n_ctx": ("n_ctx", _number(8)),
    "max_length": ("n_ctx", _number(8)),
    "max_gen_toks": ("max_gen_toks", _number(1)),
    "n_threads": ("n_threads", _number(1, 1024)),
    "n_gpu_layers": ("n_gpu_layers", _number(-1)),
    "flash_attn": ("flash_attn", _word),
    "type_k": ("type_k", _word),
    "type_v": ("type_v", _word),
    "scale": ("scale", _scale),
    "allow_other_base": ("allow_other_base", _flag),
}
_OF_THE_HARNESS = ("batch_size", "max_batch_size", "device")

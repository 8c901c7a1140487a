"""LoRA adapters as GGUF files, as llama.cpp's convert_lora_to_gguf.py writes and `--lora` reads them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from dqrelo_gguf.errors import BaseMismatchError, InputError, shown
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.container import MAGIC, GGUFFile, TensorInfo
from dqrelo_gguf.file.open_file import file_problem
from dqrelo_gguf.file.values import INTEGER_TYPES, PLAIN_DTYPES, dequantised
from dqrelo_gguf.model.adapter import F32, Adapter, Factors
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.vocabulary import EMBEDDING

LORA = "lora"
_ALPHA = "adapter.lora.alpha"
_INVOCATION = "adapter.alora.invocation_tokens"
_A, _B = ".lora_a", ".lora_b"
# What adapters carry beside factors (mergekit's do): whole norms.
_WHOLE = "_norm.weight"


def is_adapter_gguf(path: str | os.PathLike[str]) -> bool:
    """True for a GGUF that says that it is an adapter, of whatever type."""
    if file_problem(path) is not None:
        return False
    with Path(path).open("rb") as f:
        if f.read(len(MAGIC)) != MAGIC:
            return False
    return bool(GGUFFile(path).value(fmt.KEY_GENERAL_TYPE) == fmt.GENERAL_TYPE)


def read_lora_gguf(path: Path, base: GgufModel) -> Adapter:
    """Reads the adapter; the scale of its alpha goes into the factors.

    Raises:
        InputError: it is no LoRA, its tensors are no pairs, or its alpha is no number.
        BaseMismatchError: it is of another architecture.
    """
    file = GGUFFile(path)
    kind = str(file.value(fmt.KEY_ADAPTER_TYPE, ""))
    if kind == fmt.ADAPTER_TYPE:
        raise InputError(f"{path}: is a delta file already, expected a fine-tune or a LoRA adapter")
    if kind != LORA:
        raise InputError(f"{path}: is an adapter of type '{shown(kind)}', expected {LORA}")
    architecture = str(file.value(fmt.KEY_ARCHITECTURE, ""))
    if architecture != base.architecture:
        raise BaseMismatchError(
            f"{path}: is an adapter of architecture '{shown(architecture)}', base {base.label} has '{base.architecture}'. "
            "Is it the model this was trained on?"
        )
    if file.field(_INVOCATION) is not None:
        raise InputError(f"{path}: {_INVOCATION}: an adapter that some tokens switch on (aLoRA) is not converted")
    alpha = file.value(_ALPHA, 0.0)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InputError(f"{path}: {_ALPHA} is {shown(str(alpha))}, expected a number")
    factors, whole = _tensors(file, float(alpha))
    keys = file.keys()
    fields = {key: field for key in keys if (field := file.field(key)) is not None}
    return Adapter(str(path), str(file.value(fmt.KEY_NAME) or path.stem), factors, whole, fields)


def _tensors(file: GGUFFile, alpha: float) -> tuple[dict[str, Factors], dict[str, F32]]:
    pairs: dict[str, dict[str, F32]] = {}
    whole: dict[str, F32] = {}
    for name, info in file.tensors.items():
        suffix = name[-len(_A) :]
        if suffix in (_A, _B):
            pairs.setdefault(name[: -len(_A)], {})[suffix] = _values(file, info)
        elif name.endswith(_WHOLE):
            whole[name] = _values(file, info)
        else:
            raise InputError(
                f"{file.path}: tensor '{shown(name)}' is no part of a LoRA, expected names in {_A} or {_B}"
            )
    factors = {}
    for name, pair in pairs.items():
        if len(pair) < 2:
            missing = _B if _A in pair else _A
            raise InputError(f"{file.path}: '{shown(name)}' has no {missing}. Incomplete conversion?")
        factors[name] = _factors(file, name, pair[_A], pair[_B], alpha)
    return factors, whole


def _factors(file: GGUFFile, name: str, a: F32, b: F32, alpha: float) -> Factors:
    """The pair of a weight; that of the embedding is stored the other way round, because its rows are looked up."""
    u, v = (a, np.ascontiguousarray(b.T)) if name == EMBEDDING and a.ndim == b.ndim == 2 else (b, a)
    if not 2 <= u.ndim == v.ndim <= 3 or u.shape[:-2] != v.shape[:-2] or u.shape[-1] != v.shape[-2]:
        raise InputError(
            f"{file.path}: '{shown(name)}' has factors of shapes {a.shape} and {b.shape}, which do not fit"
        )
    # As llama.cpp scales it, an alpha of 0 included.
    scale = np.float32(alpha / u.shape[-1]) if alpha else np.float32(1)
    with np.errstate(over="ignore"):
        return Factors(u * scale, v)


def _values(file: GGUFFile, info: TensorInfo) -> F32:
    where = f"{file.path}: tensor '{shown(info.name)}'"
    if info.type in INTEGER_TYPES:
        raise InputError(f"{where} holds whole numbers, which are no factors")
    kind: np.dtype[Any] = PLAIN_DTYPES.get(info.type, np.dtype(np.uint8))
    shape = tuple(reversed(info.ne))
    rows = file.raw(info).view(kind).reshape(*shape[:-1], -1)
    return dequantised(rows, info.type, where).reshape(shape)

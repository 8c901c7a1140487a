"""A LoRA adapter's factors as a delta file's: the same numbers, in the narrowest type that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.layout import Type, WeightSpec, stripped_ne
from dqrelo_gguf.model.adapter import F32, AdaptedModel, Adapter, Factors
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.lora_gguf import is_adapter_gguf, read_lora_gguf
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.model.peft_adapter import is_peft_directory, read_peft_adapter

# Signs have whole bytes a row, and a weight of factors keeps to their rows.
_ROW_STEP = 8


def is_adapter(path: Path) -> bool:
    """True for a LoRA adapter: PEFT's directory, or a GGUF that says so."""
    return is_peft_directory(path) or is_adapter_gguf(path)


def open_adapter(path: Path, base: GgufModel, config: Path | None, reference: GgufModel | None = None) -> AdaptedModel:
    """The base with an adapter.

    Args:
        path: PEFT's directory, or a GGUF.
        base: what it is for.
        config: a config.json of the base for a directory, or None.
        reference: the base in the numbers that the delta is against; None for the base itself.

    Raises:
        InputError, BaseMismatchError: it cannot be read, or is of another base.
    """
    adapter = read_peft_adapter(path, base, config) if path.is_dir() else read_lora_gguf(path, base)
    return AdaptedModel(reference or base, adapter)


def check_options(options: Options, adapter: Adapter) -> None:
    """Refuses what an adapter has no use for whose factors are stored as they are.

    Raises:
        InputError: an option that chooses parts of weights, or a method without a delta file.
    """
    if adapter.computed:
        return
    if options.selection.layers is not None or options.selection.modules is not None:
        raise InputError("--layers, --modules: an adapter is not compressed. Choose its weights with --include")
    if options.row.keeps is not None:
        raise InputError(f"--method {options.method_name}: prunes, and an adapter's factors are stored as they are")


def unused_options(options: Options, adapter: Adapter) -> list[str]:
    """Says which options do not apply to an adapter: those of methods, unless it replaces whole matrices."""
    given = options.given()
    if not given or any(w.ndim > 1 for w in adapter.whole.values()):
        return []
    return [f"{', '.join(given)}: not applied, an adapter's factors are stored as they are"]


def recorded(options: Options, adapter: Adapter) -> dict[str, str | int | float | None]:
    """What the file's options say of an adapter: its ranks, and how whole matrices were compressed."""
    has_matrices = any(w.ndim > 1 for w in adapter.whole.values())
    of_method = {**options.as_metadata(), "method": options.method_name} if has_matrices else {}
    return {**options.selection.as_metadata(), **of_method, "rank": "-".join(map(str, adapter.ranks))}


def plan_factors(pair: Pair, factors: Factors) -> Planned:
    """The spec of a weight with an adapter's factors: no planes, and the types that hold them exactly.

    Rows that signs cannot have are stored as the product.
    """
    ne = stripped_ne(pair.ne)
    if ne[0] % _ROW_STEP != 0:
        return Planned(pair, WeightSpec.dense(pair.name, ne), 0.0, factors=factors)
    stored = factors.within_sides()
    spec = WeightSpec(
        pair.name, ne, n_planes=0, rank=stored.rank, u_type=exact_type(stored.u), v_type=exact_type(stored.v)
    )
    return Planned(pair, spec, 0.0, factors=stored)


def plan_vector(pair: Pair) -> Planned:
    """A bias or norm that an adapter replaces: whole, whatever the ratio."""
    return Planned(pair, WeightSpec.dense(pair.name, stripped_ne(pair.ne)), 0.0)


def exact_type(values: F32) -> Type:
    """The narrowest type of factors that holds all values as they are."""
    with np.errstate(over="ignore"):
        if np.array_equal(values.astype(np.float16).astype(np.float32), values):
            return Type.F16
    rounded = gguf.quants.dequantize(gguf.quants.quantize(values, Type.BF16), Type.BF16)
    return Type.BF16 if np.array_equal(rounded, values) else Type.F32

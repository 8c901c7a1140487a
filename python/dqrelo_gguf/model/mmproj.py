"""The vision or audio tower of a fine-tune: no part of a delta, so it is named in the report, or compared with the base's mmproj.

llama.cpp keeps the tower and its projector in a GGUF of their own, which a server has once (`--mmproj`) for the base and all deltas.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.errors import InputError, printable
from dqrelo_gguf.file.layout import Type, ne_text, stripped_ne
from dqrelo_gguf.model.base import GgufModel, Model
from dqrelo_gguf.model.checkpoint import HfCheckpoint
from dqrelo_gguf.model.hyperparameters import same_value, show

OPTION = "--base-mmproj"
_ARCHITECTURE = "clip"
_PREFIX = "clip."
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
# The largest relative error of rounding to a type, and the absolute one of F16's smallest numbers.
_ROUNDING = {Type.F32: 0.0, Type.F16: 2.0**-11, Type.BF16: 2.0**-8}
_SMALLEST = 2.0**-24
_Q8_0_BLOCK, _Q8_0_STEPS = 32, 127


def check_tower(tuned: Model, base_mmproj: str | os.PathLike[str] | None, blocks: Blocks) -> list[str]:
    """Compares a fine-tune's vision or audio tower with the base's.

    Args:
        tuned: the fine-tune.
        base_mmproj: the base's mmproj GGUF, or None where none was given.
        blocks: for reading it.

    Returns:
        Notes for the report: what was compared, or what was not.

    Raises:
        InputError: the towers differ, and the first weight or key that does; or there are not two towers to compare.
    """
    names = tuned.tower if isinstance(tuned, HfCheckpoint) else []
    if base_mmproj is None:
        return [_not_compared(names)] if names else []
    if not isinstance(tuned, HfCheckpoint) or not names:
        raise InputError(
            f"{OPTION}: {tuned.label} has no vision or audio tower to compare. Only a Hugging Face directory has one. Leave the option out"
        )
    base = GgufModel(base_mmproj)
    if base.architecture != _ARCHITECTURE:
        raise InputError(
            f"{OPTION} {base.label}: is a model of architecture '{printable(base.architecture)}', expected '{_ARCHITECTURE}': "
            "what convert_hf_to_gguf.py --mmproj writes for the base"
        )
    if not any((tuned.path / name).is_file() for name in _PREPROCESSORS):
        raise InputError(
            f"{tuned.label}: has no {_PREPROCESSORS[0]}, which {OPTION} compares. Copy the one that it was tuned with"
        )
    differing = next(_differences(base, tuned, blocks), None)
    if differing is not None:
        raise InputError(
            f"{tuned.label}: its vision or audio tower is not the base's: {differing}. A delta carries the language model only, and a server has "
            f"one --mmproj. Leave {OPTION} out to see with the base's, or serve the fine-tune on its own with an mmproj of its own"
        )
    return [f"its vision or audio tower ({len(names)} tensors) is that of {base.label}"]


def _not_compared(names: list[str]) -> str:
    return (
        f"{len(names)} tensors of a vision or audio tower ('{printable(names[0])}', ...) are no part of a delta and were not compared: it sees "
        f"and hears with the base's --mmproj. {OPTION} FILE refuses a tower that differs"
    )


def _differences(base: GgufModel, tuned: HfCheckpoint, blocks: Blocks) -> Iterator[str]:
    """Says in which keys, shapes and values the towers differ."""
    fields, tensors = tuned.load_tower()
    for key in base.field_names():
        field, own = base.field(key), fields.get(key)
        if key.startswith(_PREFIX) and field is not None and own is not None and not same_value(field.value, own.value):
            yield f"{printable(key)} is {show(own.value)}, base {base.label} has {show(field.value)}"
    missing = set(base.infos)
    for name, values in tensors:
        if name not in base.infos:
            yield f"base {base.label} lacks '{printable(name)}'"
            continue
        missing.remove(name)
        ne, base_ne = stripped_ne(tuple(reversed(values.shape))), stripped_ne(base.infos[name][1].ne)
        if ne != base_ne:
            yield f"'{printable(name)}' is {ne_text(ne)}, base {base.label} has {ne_text(base_ne)}"
        elif not _is_rounded(base, name, values, blocks):
            yield f"'{printable(name)}' has other values than base {base.label}"
    if missing:
        yield f"it lacks '{printable(min(missing))}' of base {base.label}"


def _is_rounded(base: GgufModel, name: str, values: npt.NDArray[np.float32], blocks: Blocks) -> bool:
    """Whether the base's tensor is the fine-tune's, up to the rounding of its type."""
    kind = base.infos[name][1].type
    flat = values.reshape(-1)
    if kind == Type.Q8_0:
        step = np.abs(flat).reshape(-1, _Q8_0_BLOCK).max(axis=1, keepdims=True) / _Q8_0_STEPS
        bound = np.broadcast_to(step, (step.size, _Q8_0_BLOCK)).reshape(-1)
    elif kind in _ROUNDING:
        bound = np.abs(flat) * _ROUNDING[kind]
    else:
        raise InputError(
            f"{OPTION} {base.label}: '{printable(name)}' is stored as {base.type_of(name)}, expected F32, F16, BF16 or Q8_0, which can be compared"
        )
    return bool((np.abs(flat - base.load(name, blocks).reshape(-1)) <= bound + _SMALLEST).all())

"""A delta with no error, for any base GGUF in F32 or F16: what the delta holds and what is merged into a plain model are the same numbers.

Every tensor changes: matrices and stacks of them (experts, heads) by sign planes and factors made at random, all else whole. So logits of base+delta and
of the merged model may differ only by the arithmetic of the runtime, whatever the architecture.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.compress.codes import decode_columns, decode_rows
from dqrelo_gguf.compress.signs import pack_signs, unpack_signs
from dqrelo_gguf.compress.sparse import EntryType, pack, unpack
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.layout import SparseSpec, WeightSpec
from dqrelo_gguf.file.metadata import DeltaMeta
from dqrelo_gguf.file.weight_data import SignFactors, WeightData
from dqrelo_gguf.file.writer import DeltaWriter
from tests.support.gguf_files import copy_metadata, finish

F32 = gguf.GGMLQuantizationType.F32
BF16 = gguf.GGMLQuantizationType.BF16
RANK = 3
SCALE = re.compile(r"\.(input_)?scale$")
ENTRY_TYPES = {"F8": gguf.GGMLQuantizationType.I8, "F16": gguf.GGMLQuantizationType.F16, "BF16": BF16}
STEP = 0.02  # size of the change, against weights of about 0.1

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """What a delta of matrices is made of."""

    n_planes: int = 1
    rank: int = RANK
    row_scales: bool = False
    column_scales: bool = False
    factors: gguf.GGMLQuantizationType = F32
    code_ranks: tuple[int, ...] = ()  # of the sign factors, where a weight is large enough
    entries: EntryType | None = None  # of sparse weights, which have nothing of the above
    entry_share: float = 0.2
    has_mask: bool = False


PLAIN = Kind()


def spec_of(name: str, ne: tuple[int, ...], kind: Kind = PLAIN) -> WeightSpec:
    axes = [n for n in ne if n > 1]
    matrices = 2 <= len(axes) == len(ne) <= 3 and ne[0] % 8 == 0
    if not matrices or "norm" in name:  # A norm a head is a matrix that is multiplied elementwise.
        return WeightSpec.dense(name, ne)
    if kind.entries is not None:
        n_entries = max(1, round(kind.entry_share * prod(ne)))
        return WeightSpec.of_entries(name, ne, SparseSpec(n_entries, ENTRY_TYPES[kind.entries], kind.has_mask))
    rank = min(kind.rank, *ne[:2])
    return WeightSpec(
        name=name,
        ne=ne,
        n_planes=kind.n_planes,
        rank=rank,
        scale_per_row=kind.row_scales,
        cscale=kind.column_scales,
        u_type=_fitting(kind.factors, rank),
        v_type=_fitting(kind.factors, ne[0]),
        dense_type=None,
        plane_ranks=kind.code_ranks if kind.code_ranks and kind.code_ranks[0] <= min(ne[:2]) else (),
    )


def _fitting(factors: gguf.GGMLQuantizationType, n: int) -> gguf.GGMLQuantizationType:
    """A type whose blocks fill rows of n."""
    return factors if n % gguf.GGML_QUANT_SIZES[factors][0] == 0 else gguf.GGMLQuantizationType.F16


def change_of(spec: WeightSpec, seed: int) -> tuple[WeightData, Array]:
    """The tensors of one weight, and the change that they mean in the weight's numpy shape."""
    rng = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    shape = tuple(reversed(spec.ne))
    if spec.dense_type is not None:
        change = (STEP * rng.standard_normal(shape)).astype(np.float32)
        return WeightData(dense=change), change
    if spec.sparse is not None:
        return _entries_of(spec, spec.sparse, rng)
    *stack, n_out, n_in = shape
    planes = []
    change = np.zeros(shape, np.float32)
    for _ in range(spec.n_planes):
        bits = pack_signs(rng.standard_normal(shape))
        # There is a scale for each matrix of a stack, or for each row.
        scale = (STEP * rng.uniform(0.5, 1.5, (*stack, n_out if spec.scale_per_row else 1))).astype(np.float32)
        planes.append((bits, scale))
        change += scale[..., np.newaxis] * unpack_signs(bits, n_in)
    codes = None
    if spec.plane_ranks:
        codes = _codes_of(spec, rng)
        change += decode_columns(codes.u_bits, codes.u_scale, spec.plane_ranks) @ decode_rows(
            codes.v_bits, codes.v_scale, spec.plane_ranks
        )
    cscale = rng.uniform(0.5, 1.5, (*stack, n_in)).astype(np.float32) if spec.cscale else None
    if cscale is not None:
        change *= cscale[..., np.newaxis, :]
    if spec.rank == 0:
        return WeightData(planes=planes, cscale=cscale, sign_factors=codes), change
    u = _rounded(rng.standard_normal((*stack, n_out, spec.rank)), spec.u_type)
    v = _rounded(STEP * rng.standard_normal((*stack, spec.rank, n_in)), spec.v_type)
    return WeightData(planes=planes, cscale=cscale, u=u, v=v, sign_factors=codes), change + u @ v


def _entries_of(spec: WeightSpec, sparse: SparseSpec, rng: np.random.Generator) -> tuple[WeightData, Array]:
    shape = tuple(reversed(spec.ne))
    kept = np.zeros(shape, bool)
    kept.flat[rng.choice(kept.size, sparse.n_entries, replace=False)] = True
    # As much in all as a plane of the other kinds.
    values = (STEP / np.sqrt(kept.mean()) * rng.standard_normal(shape)).astype(np.float32)
    entry_type = next(name for name, stored in ENTRY_TYPES.items() if stored == sparse.type)
    packed = pack(values, kept, entry_type, sparse.has_mask)
    return WeightData(sparse=packed), unpack(packed, spec.ne[0])


def _codes_of(spec: WeightSpec, rng: np.random.Generator) -> SignFactors:
    n_in, n_out, *stack = spec.ne
    scale = (*stack[::-1], spec.n_codes)
    return SignFactors(
        v_bits=pack_signs(rng.standard_normal((*scale, n_in))),
        v_scale=_rounded(STEP * rng.uniform(0.5, 1.5, scale), BF16).reshape(scale),
        u_bits=pack_signs(rng.standard_normal((*stack[::-1], n_out, spec.n_codes))),
        u_scale=_rounded(rng.uniform(0.2, 0.6, scale), BF16).reshape(scale),
    )


def _rounded(values: npt.NDArray[np.float64], to: gguf.GGMLQuantizationType) -> Array:
    """Values that the type holds as they are."""
    rounded: Array = gguf.quants.dequantize(gguf.quants.quantize(values.astype(np.float32), to), to)
    return rounded.astype(np.float32)


def make(
    base: Path, delta: Path, merged: Path, seed: int = 1, unchanged: Iterable[str] = (), *, kind: Kind = PLAIN
) -> list[str]:
    """Writes the delta and the merged model; returns the names of the changed tensors."""
    reader = gguf.GGUFReader(base)
    plain = _copy_of(reader, merged)
    # A weight's separate scale belongs to the weight: W is scale * weight, and the delta is against that.
    scales = {t.name: t.data for t in reader.tensors if SCALE.search(t.name)}
    kept = {*scales, *unchanged}
    specs = {
        t.name: spec_of(t.name, tuple(int(n) for n in t.shape), kind) for t in reader.tensors if t.name not in kept
    }
    architecture = str(reader.fields["general.architecture"].contents())
    meta = DeltaMeta(
        architecture=architecture, name=f"exact-{seed}", method="exact", converter="tests", options={"seed": seed},
        base_name=base.stem, base=base_identity(base),
    )  # fmt: skip
    with DeltaWriter(delta, meta, list(specs.values()), force=True) as writer:
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if tensor.name in specs:
                data, change = change_of(specs[tensor.name], seed)
                writer.write(data)
                scale = scales.get(re.sub(r"\.weight$", ".scale", tensor.name), np.ones(1, np.float32))
                values = values + change.reshape(values.shape) / scale
            plain.add_tensor(tensor.name, values)
    finish(plain)
    return list(specs)


def write_merged(base: Path, out: Path, parts: Sequence[tuple[int, float, Kind]]) -> None:
    """A plain model: the base, and the exact deltas of some seeds and kinds, each times its scale."""

    def change(name: str, shape: tuple[int, ...]) -> Array:
        total = np.zeros(shape, np.float32)
        for seed, scale, kind in parts:
            spec = spec_of(name, tuple(reversed(shape)), kind)
            total += np.float32(scale) * change_of(spec, seed)[1].reshape(shape)
        return total

    write_changed(base, out, change)


def blend(base: Path, out: Path, models: Mapping[Path, float]) -> Path:
    """A plain model: the base, and of each other model's differences from it so much; returns its path."""
    others = [({t.name: t.data for t in gguf.GGUFReader(path).tensors}, np.float32(s)) for path, s in models.items()]
    own = {t.name: t.data for t in gguf.GGUFReader(base).tensors}

    def change(name: str, shape: tuple[int, ...]) -> Array:
        values: Array = sum(scale * (tensors[name] - own[name]) for tensors, scale in others).reshape(shape)
        return values

    write_changed(base, out, change)
    return out


def write_changed(base: Path, out: Path, change: Callable[[str, tuple[int, ...]], Array]) -> None:
    """A plain model in F32: the base, and of each tensor what `change` says for its name and numpy shape."""
    reader = gguf.GGUFReader(base)
    plain = _copy_of(reader, out)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        ne = tuple(int(n) for n in tensor.shape)
        plain.add_tensor(tensor.name, values + change(tensor.name, ne[::-1]).reshape(values.shape))
    finish(plain)


def without_scales(base: Path, out: Path) -> None:
    """A copy of a model without the separate scales that some file types give to their weights; all are optional."""
    reader = gguf.GGUFReader(base)
    plain = _copy_of(reader, out)
    for tensor in reader.tensors:
        if not SCALE.search(tensor.name):
            plain.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    finish(plain)


def with_tensor(base: Path, out: Path, name: str, values: npt.NDArray[np.float16] | Array) -> None:
    """A copy of a model with one tensor more, or with other values in one."""
    reader = gguf.GGUFReader(base)
    plain = _copy_of(reader, out)
    for tensor in reader.tensors:
        if tensor.name != name:
            plain.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    plain.add_tensor(name, values)
    finish(plain)


def _copy_of(reader: gguf.GGUFReader, out: Path) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(out, "")
    copy_metadata(reader, writer)
    return writer

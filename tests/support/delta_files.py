"""Small delta files and base files for tests, and an editor that breaks a valid file in one chosen way."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.compress.signs import pack_signs
from dqrelo_gguf.compress.sparse import pack
from dqrelo_gguf.file.container import GGUFFile, GGUFValue, ValueType, pack_header, pack_string, pack_value
from dqrelo_gguf.file.fingerprint import BaseIdentity
from dqrelo_gguf.file.layout import ENTRY_TYPES, SparseSpec, WeightSpec, padded_bytes
from dqrelo_gguf.file.metadata import DeltaMeta
from dqrelo_gguf.file.weight_data import SignFactors, WeightData
from dqrelo_gguf.file.writer import DeltaWriter

Type: TypeAlias = gguf.GGMLQuantizationType
Floats: TypeAlias = npt.NDArray[np.float32]

BaseTensor: TypeAlias = tuple[str, tuple[int, ...], Type]

# Every form of the format, over the tensors of BASE_TENSORS.
SPECS = [
    WeightSpec("token_embd.weight", (64, 40), rank=3),
    WeightSpec(
        "blk.0.attn_q.weight", (64, 48), n_planes=2, rank=32, scale_per_row=True, u_type=Type.Q8_0, v_type=Type.Q8_0
    ),
    WeightSpec("blk.0.attn_k.weight", (64, 16), rank=4, cscale=True, u_type=Type.F32, v_type=Type.Q4_0),
    WeightSpec("blk.0.ffn_up_exps.weight", (256, 4, 3), rank=2, u_type=Type.BF16, v_type=Type.BF16),
    WeightSpec("blk.1.ffn_up_exps.weight", (256, 4, 3), rank=1, scale_per_row=True, cscale=True),
    WeightSpec("blk.1.attn_k.weight", (64, 16), n_planes=4),
    WeightSpec.dense("blk.0.attn_norm.weight", (64,)),
    WeightSpec.dense("blk.0.attn_q.bias", (48,), Type.F16),
]

# What version 2 adds: sign factors beside planes, alone and of experts, and factors without a plane.
SPECS_2 = [
    WeightSpec("token_embd.weight", (64, 40), n_planes=0, plane_ranks=(16, 5, 3)),
    WeightSpec("blk.0.attn_q.weight", (64, 48), n_planes=1, scale_per_row=True, cscale=True, plane_ranks=(7, 7, 6, 4)),
    WeightSpec("blk.0.attn_k.weight", (64, 16), n_planes=0, rank=4),
    WeightSpec("blk.0.ffn_up_exps.weight", (256, 4, 3), n_planes=0, cscale=True, plane_ranks=(4, 4)),
    WeightSpec("blk.1.ffn_up_exps.weight", (256, 4, 3), rank=1, plane_ranks=(4, 2, 2)),
    WeightSpec("blk.1.attn_k.weight", (64, 16), n_planes=2),
    WeightSpec.dense("blk.0.attn_norm.weight", (64,)),
]

# Sparse weights: places as lists and as a mask, values of every type, experts, rows of several blocks; and others beside them.
SPECS_SPARSE = [
    WeightSpec.of_entries("token_embd.weight", (64, 40), SparseSpec(200, Type.I8, has_mask=False)),
    WeightSpec.of_entries("blk.0.attn_q.weight", (64, 48), SparseSpec(600, Type.I8, has_mask=True)),
    WeightSpec.of_entries("blk.0.attn_k.weight", (520, 16), SparseSpec(700, Type.BF16, has_mask=False)),
    WeightSpec.of_entries("blk.0.ffn_up_exps.weight", (256, 4, 3), SparseSpec(300, Type.F16, has_mask=False)),
    WeightSpec.of_entries("blk.1.ffn_up_exps.weight", (256, 4, 3), SparseSpec(900, Type.I8, has_mask=True)),
    WeightSpec("blk.1.attn_k.weight", (64, 16), n_planes=2),
    WeightSpec.of_entries("output.weight", (1032, 5), SparseSpec(1, Type.F16, has_mask=True)),
    WeightSpec.dense("blk.0.attn_norm.weight", (64,)),
]

BASE_TENSORS: list[BaseTensor] = [
    ("token_embd.weight", (64, 40), Type.Q8_0),
    ("blk.0.attn_norm.weight", (64,), Type.F32),
    ("blk.0.attn_q.weight", (64, 48), Type.F16),
    ("blk.0.attn_q.bias", (48,), Type.F32),
    ("blk.0.attn_k.weight", (64, 16), Type.Q4_0),
    ("blk.0.ffn_up_exps.weight", (256, 4, 3), Type.Q4_K),
    ("blk.1.attn_k.weight", (64, 16), Type.BF16),
    ("blk.1.ffn_up_exps.weight", (256, 4, 3), Type.Q6_K),
]


def steps(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Random multiples of 1/16 in [-1, 1]: sums of their products are exact in f32, so on every machine."""
    return (rng.integers(-16, 17, shape) / 16).astype(np.float32)


def weight_data(spec: WeightSpec, rng: np.random.Generator) -> WeightData:
    """Random arrays that fit a spec."""
    shape = tuple(reversed(spec.ne))
    if spec.dense_type is not None:
        return WeightData(dense=steps(rng, shape), error_delta=0.0, error_weight=0.0)
    if spec.sparse is not None:
        return _sparse(spec, spec.sparse, rng)
    *experts, n_out, n_in = shape
    planes = [
        (pack_signs(steps(rng, shape)), steps(rng, (*experts, n_out if spec.scale_per_row else 1)) / 4)
        for _ in range(spec.n_planes)
    ]
    return WeightData(
        planes,
        cscale=steps(rng, (*experts, n_in)) if spec.cscale else None,
        u=steps(rng, (*experts, n_out, spec.rank)) if spec.rank else None,
        v=steps(rng, (*experts, spec.rank, n_in)) if spec.rank else None,
        sign_factors=_sign_factors(spec, rng) if spec.plane_ranks else None,
        error_delta=0.25,
        error_weight=0.0625,
    )


def _sparse(spec: WeightSpec, sparse: SparseSpec, rng: np.random.Generator) -> WeightData:
    shape = tuple(reversed(spec.ne))
    kept = np.zeros(shape, bool)
    kept.flat[rng.choice(kept.size, sparse.n_entries, replace=False)] = True
    packed = pack(steps(rng, shape), kept, ENTRY_TYPES[sparse.type], sparse.has_mask)
    return WeightData(sparse=packed, error_delta=0.25, error_weight=0.0625)


def _sign_factors(spec: WeightSpec, rng: np.random.Generator) -> SignFactors:
    n_in, n_out, *experts = spec.ne
    return SignFactors(
        v_bits=pack_signs(steps(rng, (*experts, spec.n_codes, n_in))),
        v_scale=steps(rng, (*experts, spec.n_codes)) / 4,
        u_bits=pack_signs(steps(rng, (*experts, n_out, spec.n_codes))),
        u_scale=steps(rng, (*experts, spec.n_codes)),
    )


def meta(base: BaseIdentity | None = None, **changes: Any) -> DeltaMeta:
    """Metadata of a delta over `base`, or over an invented one."""
    identity = base or BaseIdentity("0" * 64, (), np.empty(0, np.float32))
    fields: dict[str, Any] = {
        "architecture": "llama",
        "name": "tuned",
        "method": "paper",
        "converter": "dqrelo-gguf 0.1.0",
        "options": {"ratio": "1/8", "seed": 0},
        "base_name": "base",
        "base": identity,
    }
    return DeltaMeta(**(fields | changes))


def write_delta(
    path: Path,
    specs: Sequence[WeightSpec] = SPECS,
    about: DeltaMeta | None = None,
    make: Callable[[WeightSpec, np.random.Generator], WeightData] = weight_data,
) -> list[WeightData]:
    """Writes a delta of random values; returns them."""
    rng = np.random.default_rng(1)
    data = [make(spec, rng) for spec in specs]
    with DeltaWriter(path, about or meta(), specs) as writer:
        for d in data:
            writer.write(d)
    return data


def base_values(seed: int, tensors: Sequence[BaseTensor]) -> Iterator[Floats]:
    """The values that the tensors of a base get, tensor by tensor."""
    rng = np.random.default_rng(seed)
    for _, ne, _ in tensors:
        yield rng.standard_normal(tuple(reversed(ne)), dtype=np.float32)


def write_base(
    path: Path,
    seed: int = 7,
    all_type: Type | None = None,
    tensors: Sequence[BaseTensor] = BASE_TENSORS,
    fields: Mapping[str, GGUFValue] | None = None,
) -> Path:
    """Writes a base GGUF (no model that runs), with all tensors in `all_type` if that is given."""
    infos, data = [], []
    for (name, ne, own_type), values in zip(tensors, base_values(seed, tensors), strict=True):
        t = own_type if all_type is None else all_type
        infos.append((name, ne, t))
        data.append(_quantised(values, t))
    metadata = {
        "general.architecture": GGUFValue("llama", ValueType.STRING),
        "general.name": GGUFValue("base", ValueType.STRING),
        "general.alignment": GGUFValue(64, ValueType.UINT32),
        **(fields or {}),
    }
    header = pack_header(list(metadata.items()), infos)
    path.write_bytes(header + b"".join(raw.ljust(padded_bytes(len(raw)), b"\0") for raw in data))
    return path


def _quantised(values: Floats, t: Type) -> bytes:
    if t in (Type.Q4_K, Type.Q6_K):
        return _k_quant_blocks(values, t)
    return gguf.quants.quantize(values, t).tobytes()


def _k_quant_blocks(values: Floats, t: Type) -> bytes:
    """Blocks of a K-quant with random contents and sane scales: gguf-py can read these types but not make them."""
    block, n_bytes = gguf.GGML_QUANT_SIZES[t]
    blocks = np.random.default_rng(int(t)).integers(0, 256, (values.size // block, n_bytes), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    if t == Type.Q4_K:  # d and dmin come first.
        blocks[:, 0:2] = blocks[:, 2:4] = scale
    else:  # d comes last.
        blocks[:, -2:] = scale
    return blocks.tobytes()


@dataclass
class TensorEntry:
    """A tensor of a header, free to be wrong."""

    name: str
    ne: tuple[int, ...]
    type_id: int
    offset: int


class Edited:
    """A GGUF file taken apart: change fields, tensors or data, then save."""

    def __init__(self, path: Path) -> None:
        file = GGUFFile(path)
        self.version = 3
        self.fields: dict[str, GGUFValue] = {}
        keys = file.keys()
        for key in keys:
            value_type, item_type = file.value_type(key) or (ValueType.STRING, None)
            self.fields[key] = GGUFValue(file.value(key), value_type, item_type)
        self.tensors = [TensorEntry(t.name, t.ne, int(t.type), t.offset) for t in file.tensors.values()]
        self.data = bytearray(path.read_bytes()[file.data_start :])

    def tensor(self, name: str) -> TensorEntry:
        return next(t for t in self.tensors if t.name == name)

    def header(self) -> bytes:
        parts = [b"GGUF", struct.pack("<IQQ", self.version, len(self.tensors), len(self.fields))]
        for key, value in self.fields.items():
            parts += [pack_string(key), pack_value(value)]
        for t in self.tensors:
            parts += [pack_string(t.name), struct.pack(f"<I{len(t.ne)}QIQ", len(t.ne), *t.ne, t.type_id, t.offset)]
        raw = b"".join(parts)
        return raw.ljust(padded_bytes(len(raw)), b"\0")

    def save(self, path: Path) -> Path:
        path.write_bytes(self.header() + bytes(self.data))
        return path


def split_base(base: Path, directory: Path, n: int) -> list[Path]:
    """Splits a base into n shards as gguf-split does: tensors dealt out in order, metadata in the first."""
    paths = []
    whole = GGUFFile(base)
    n_tensors = len(whole.tensors)
    for i in range(n):
        names = list(whole.tensors)[i * n_tensors // n : (i + 1) * n_tensors // n]
        part = Edited(base)
        data, part.data = part.data, bytearray()
        if i > 0:
            part.fields = {"general.alignment": part.fields["general.alignment"]}
        part.tensors = [t for t in part.tensors if t.name in names]
        for t in part.tensors:
            n_bytes, start = whole.tensors[t.name].n_bytes, t.offset
            t.offset = len(part.data)
            part.data += data[start : start + n_bytes].ljust(padded_bytes(n_bytes), b"\0")
        part.fields |= {
            "split.no": GGUFValue(i, ValueType.UINT16),
            "split.count": GGUFValue(n, ValueType.UINT16),
            "split.tensors.count": GGUFValue(n_tensors, ValueType.INT32),
        }
        paths.append(part.save(directory / f"base-{i + 1:05d}-of-{n:05d}.gguf"))
    return paths

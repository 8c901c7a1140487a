"""What a reader must check before it touches data: docs/format.md, section 4, points 2 to 6."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NoReturn

from dqrelo_gguf.errors import shown
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.carried import check_carried
from dqrelo_gguf.file.container import VERSION, GGUFFile, TensorInfo, ValueType, type_text
from dqrelo_gguf.file.entries import check_entries
from dqrelo_gguf.file.finite import has_floats, n_not_finite, n_not_finite_values
from dqrelo_gguf.file.layout import (
    SparseSpec,
    TensorSpec,
    Type,
    WeightSpec,
    ne_text,
    padded_bytes,
    padded_ne,
    spec_problem,
    stripped_ne,
    type_name,
    weight_tensors,
)
from dqrelo_gguf.file.quality import TYPES as QUALITY_TYPES

_VERSIONS = (fmt.VERSION_PLAIN, fmt.VERSION_SIGN_FACTORS)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_STRING = (ValueType.STRING, None)
_STRINGS = (ValueType.ARRAY, ValueType.STRING)
_U32S = (ValueType.ARRAY, ValueType.UINT32)
_U64S = (ValueType.ARRAY, ValueType.UINT64)
_F32S = (ValueType.ARRAY, ValueType.FLOAT32)

_REQUIRED: dict[str, tuple[ValueType, ValueType | None]] = {
    fmt.KEY_ARCHITECTURE: _STRING,
    fmt.KEY_ALIGNMENT: (ValueType.UINT32, None),
    fmt.KEY_NAME: _STRING,
    fmt.KEY_METHOD: _STRING,
    fmt.KEY_CONVERTER: _STRING,
    fmt.KEY_OPTIONS: _STRING,
    fmt.KEY_RATIO: (ValueType.FLOAT64, None),
    fmt.KEY_CONTENT_HASH: _STRING,
    fmt.KEY_REFERENCE: _STRING,
    fmt.KEY_TENSOR_NAMES: _STRINGS,
    fmt.KEY_TENSOR_TYPES: _STRINGS,
    fmt.KEY_TENSOR_NE: _U64S,
    fmt.KEY_TENSOR_SHA256: _STRINGS,
    fmt.KEY_WEIGHT_NAMES: _STRINGS,
    fmt.KEY_WEIGHT_NE: _U64S,
    fmt.KEY_WEIGHT_RANK: _U32S,
    fmt.KEY_WEIGHT_N_PLANES: _U32S,
    fmt.KEY_WEIGHT_ERROR_DELTA: _F32S,
    fmt.KEY_WEIGHT_ERROR_WEIGHT: _F32S,
    fmt.KEY_BASE_NAME: _STRING,
    fmt.KEY_BASE_DIGEST: _STRING,
    fmt.KEY_BASE_SAMPLE_TENSORS: _STRINGS,
    fmt.KEY_BASE_SAMPLES: _F32S,
}

_OPTIONAL: dict[str, tuple[ValueType, ValueType | None]] = {
    fmt.KEY_WEIGHT_N_ENTRIES: _U64S,
    fmt.KEY_CHAT_TEMPLATE: _STRING,
    fmt.KEY_ADD_BOS: (ValueType.BOOL, None),
    fmt.KEY_ADD_EOS: (ValueType.BOOL, None),
    **dict.fromkeys(fmt.TOKEN_ID_KEYS, (ValueType.UINT32, None)),
    fmt.KEY_CHAT_TEMPLATES: _STRINGS,
    fmt.KEY_END_TOKENS: _U32S,
    fmt.KEY_SAMPLERS: _STRING,
    fmt.KEY_CHANGED_IDS: _U32S,
    fmt.KEY_CHANGED_TEXTS: _STRINGS,
    fmt.KEY_CHANGED_TYPES: (ValueType.ARRAY, ValueType.INT32),
    **QUALITY_TYPES,
}


@dataclass(frozen=True)
class WeightInfo:
    """One changed weight, as the file's header describes it.

    Args:
        name: the base tensor's name.
        ne: its shape in ggml's order, without trailing ones.
        n_planes: sign planes; 0 where the weight is dense, or has factors only.
        rank: of U V; 0 where there is none.
        plane_ranks: of the sign factors, without zeros; empty where there are none.
        n_entries: of a sparse weight; 0 where it is not.
        scale_per_row: per plane, whether it has a scale per row.
        cscale: whether it has a scale per column.
        u_type, v_type: of the factors, None where rank is 0.
        dense_type: None where the weight is not dense.
        entry_type: of the entries, None where the weight is not sparse.
        n_bytes: of all its tensors' data, without padding.
        error_delta: ||D - D_hat|| / ||D||.
        error_weight: ||W_ft - W_hat|| / ||W_ft||.
    """

    name: str
    ne: tuple[int, ...]
    n_planes: int
    rank: int
    plane_ranks: tuple[int, ...]
    n_entries: int
    scale_per_row: tuple[bool, ...]
    cscale: bool
    u_type: Type | None
    v_type: Type | None
    dense_type: Type | None
    entry_type: Type | None
    n_bytes: int
    error_delta: float
    error_weight: float

    @property
    def n_elements(self) -> int:
        return int(prod(self.ne))

    @property
    def n_vectors(self) -> int:
        """Singular vectors of both kinds of factors."""
        return self.rank + max(self.plane_ranks, default=0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its numpy shape."""
        return tuple(reversed(self.ne))


def check_delta(file: GGUFFile) -> tuple[list[WeightInfo], list[TensorSpec]]:
    """Checks everything that can be checked without the base.

    Returns:
        The weights and the tensors, in file order.

    Raises:
        FormatError: with the first thing that is wrong.
    """
    if file.data_start > fmt.MAX_HEADER_BYTES:
        file.fail(f"has a header of {file.data_start} bytes, expected at most {fmt.MAX_HEADER_BYTES}")
    _check_kind(file)
    _check_texts(file)
    _check_keys(file)
    _check_no_model_keys(file)
    _check_lengths(file)
    _check_digests(file)
    check_carried(file)
    weights, tensors = _Matcher(file).weights()
    _check_offsets(file)
    _check_floats(file, tensors)
    _check_padding(file)
    for w in weights:
        if w.n_entries > 0:
            check_entries(file, w.name, w.ne[0], w.n_entries)
    return weights, tensors


def _check_kind(file: GGUFFile) -> None:
    kind, adapter = (_value_text(file, key) for key in (fmt.KEY_GENERAL_TYPE, fmt.KEY_ADAPTER_TYPE))
    if kind != f"'{fmt.GENERAL_TYPE}'":
        if kind in ("None", "'model'") and file.tensors:
            arch = _value_text(file, fmt.KEY_ARCHITECTURE).strip("'")
            file.fail(f"is a model (architecture {arch}), not a delta file. A delta is made with dqrelo-convert")
        file.fail(f"is not a delta file, its {fmt.KEY_GENERAL_TYPE} is {kind}, expected '{fmt.GENERAL_TYPE}'")
    if adapter == "'lora'":
        file.fail("is a LoRA adapter, not a delta file. llama-server takes it with --lora")
    if adapter != f"'{fmt.ADAPTER_TYPE}'":
        file.fail(f"is not a delta file, its {fmt.KEY_ADAPTER_TYPE} is {adapter}, expected '{fmt.ADAPTER_TYPE}'")
    if file.value_type(fmt.KEY_VERSION) != (ValueType.UINT32, None):
        file.fail(f"{fmt.KEY_VERSION} is {_value_text(file, fmt.KEY_VERSION)}, expected a UINT32")
    version = file.value(fmt.KEY_VERSION)
    if version not in _VERSIONS:
        hint = ". Update dqrelo-gguf to read it" if version > max(_VERSIONS) else ""
        file.fail(f"delta file version {version}, expected {_VERSIONS[0]} or {_VERSIONS[1]}{hint}")
    if file.version != VERSION:
        file.fail(f"GGUF version {file.version}, expected {VERSION}")


def _value_text(file: GGUFFile, key: str) -> str:
    """A scalar, strings in quotes, or what is there instead."""
    value_type, item_type = file.value_type(key) or (None, None)
    if value_type is None or item_type is not None:
        return "None" if value_type is None else "an array"
    value = file.value(key)
    if value_type == ValueType.STRING:
        return f"'{shown(value)}'"
    return str(value).lower() if value_type == ValueType.BOOL else str(value)


def _check_texts(file: GGUFFile) -> None:
    """Keys and strings are UTF-8 without NUL, also those that nothing here reads: they are shown, and carried into merged models."""
    keys = file.keys()
    for key in keys:
        texts = (
            file.value(key) if ValueType.STRING in (file.value_type(key) or ()) else []
        )  # It fails for what is not UTF-8.
        if any("\0" in text for text in (key, *([texts] if isinstance(texts, str) else texts))):
            file.fail(f"metadata key '{shown(key)}': has a NUL byte")


def _check_no_model_keys(file: GGUFFile) -> None:
    """A key of the base's architecture would make readers take the file for a model."""
    arch = file.value(fmt.KEY_ARCHITECTURE)
    keys = file.keys()
    for key in keys:
        if key.startswith(f"{arch}.") and not key.startswith(("dqrelo.", "general.")):
            file.fail(f"metadata key '{shown(key)}' is a model's, expected none of '{shown(arch)}'")


def _check_keys(file: GGUFFile) -> None:
    required = _REQUIRED
    if file.value(fmt.KEY_VERSION) == fmt.VERSION_SIGN_FACTORS:
        required = required | {fmt.KEY_WEIGHT_PLANE_RANKS: _U32S}
    else:
        for key in (fmt.KEY_WEIGHT_PLANE_RANKS, fmt.KEY_WEIGHT_N_ENTRIES):
            if file.value_type(key) is not None:
                file.fail(f"metadata key '{key}' belongs to version {fmt.VERSION_SIGN_FACTORS}")
    for key, expected in (required | _OPTIONAL).items():
        got = file.value_type(key)
        if got is None and key in required:
            file.fail(f"metadata key '{key}' is missing")
        if got is not None and got != expected:
            file.fail(f"metadata key '{key}' has type {type_text(*got)}, expected {type_text(*expected)}")
    _check_values(file)
    if file.alignment != fmt.ALIGNMENT:
        file.fail(f"{fmt.KEY_ALIGNMENT} is {file.alignment}, expected {fmt.ALIGNMENT}")


def _check_values(file: GGUFFile) -> None:
    """The numbers of the metadata are finite, its BOOLs 0 or 1."""
    keys = file.keys()
    for key in keys:
        value_type, item_type = file.value_type(key) or (ValueType.STRING, None)
        kind = item_type or value_type
        if kind == ValueType.STRING:
            continue
        stored = file.stored(key)
        n_bad = n_not_finite_values(kind, stored)
        if n_bad:
            file.fail(f"metadata key '{shown(key)}' has {n_bad} numbers that are NaN or infinite")
        bad = stored[stored > 1] if kind == ValueType.BOOL else stored[:0]
        if bad.size:
            file.fail(f"metadata key '{shown(key)}' has a BOOL of {bad[0]}, expected 0 or 1")


def _check_digests(file: GGUFFile) -> None:
    digests = [(key, file.value(key)) for key in (fmt.KEY_CONTENT_HASH, fmt.KEY_BASE_DIGEST)]
    digests += [(f"{fmt.KEY_TENSOR_SHA256}[{i}]", text) for i, text in enumerate(file.value(fmt.KEY_TENSOR_SHA256))]
    for where, text in digests:
        if _SHA256.fullmatch(text) is None:
            file.fail(f"{where} is '{shown(text)}', expected 64 lower-case hex digits")


def _check_lengths(file: GGUFFile) -> None:
    n_tensors, n_weights = len(file.tensors), len(file.value(fmt.KEY_WEIGHT_NAMES))
    n_sampled = len(file.value(fmt.KEY_BASE_SAMPLE_TENSORS))
    if n_sampled > fmt.SAMPLE_TENSORS:
        file.fail(
            f"metadata key '{fmt.KEY_BASE_SAMPLE_TENSORS}' has {n_sampled} items, expected at most {fmt.SAMPLE_TENSORS}"
        )
    if n_weights == 0:
        file.fail("changes no weight, expected at least one")
    expected = {
        fmt.KEY_TENSOR_NAMES: n_tensors,
        fmt.KEY_TENSOR_TYPES: n_tensors,
        fmt.KEY_TENSOR_NE: 4 * n_tensors,
        fmt.KEY_TENSOR_SHA256: n_tensors,
        fmt.KEY_WEIGHT_NE: 4 * n_weights,
        fmt.KEY_WEIGHT_RANK: n_weights,
        fmt.KEY_WEIGHT_N_PLANES: n_weights,
        fmt.KEY_WEIGHT_ERROR_DELTA: n_weights,
        fmt.KEY_WEIGHT_ERROR_WEIGHT: n_weights,
        fmt.KEY_BASE_SAMPLES: fmt.SAMPLES_PER_TENSOR * n_sampled,
    }
    if file.value(fmt.KEY_VERSION) == fmt.VERSION_SIGN_FACTORS:
        expected[fmt.KEY_WEIGHT_PLANE_RANKS] = fmt.MAX_CODE_PLANES * n_weights
    if file.value_type(fmt.KEY_WEIGHT_N_ENTRIES) is not None:
        expected[fmt.KEY_WEIGHT_N_ENTRIES] = n_weights
    for key, n in expected.items():
        got = len(file.value(key))
        if got != n:
            file.fail(f"metadata key '{key}' has {got} items, expected {n}")
    for i, (declared, stored) in enumerate(zip(file.value(fmt.KEY_TENSOR_NAMES), file.tensors, strict=True)):
        if declared != stored:
            file.fail(
                f"{fmt.KEY_TENSOR_NAMES}[{i}] is '{shown(declared)}', but tensor {i} of the file is '{shown(stored)}'"
            )


@dataclass(frozen=True)
class _Declared:
    """What the keys under dqrelo.weight say of a weight; `ne` and `plane_ranks` are padded."""

    name: str
    ne: tuple[int, ...]
    rank: int
    n_planes: int
    plane_ranks: Sequence[int]
    n_entries: int


class _Matcher:
    """Walks through the file's tensors beside the declared weights; each must be what the other says."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._stored = list(file.tensors.values())
        self._declared: list[str] = file.value(fmt.KEY_TENSOR_TYPES)
        self._logical_ne: list[int] = file.value(fmt.KEY_TENSOR_NE)
        self._specs: list[TensorSpec] = []  # They describe the tensors matched so far.

    def weights(self) -> tuple[list[WeightInfo], list[TensorSpec]]:
        file = self._file
        names = file.value(fmt.KEY_WEIGHT_NAMES)
        if len(set(names)) != len(names):
            counts = Counter(names)
            file.fail(f"weight '{shown(next(n for n in names if counts[n] > 1))}' is declared twice")
        flat_ne, ranks, planes, error_delta, error_weight = (
            file.value(key)
            for key in (
                fmt.KEY_WEIGHT_NE,
                fmt.KEY_WEIGHT_RANK,
                fmt.KEY_WEIGHT_N_PLANES,
                fmt.KEY_WEIGHT_ERROR_DELTA,
                fmt.KEY_WEIGHT_ERROR_WEIGHT,
            )
        )
        plane_ranks = file.value(fmt.KEY_WEIGHT_PLANE_RANKS, [0] * (fmt.MAX_CODE_PLANES * len(names)))
        entries = file.value(fmt.KEY_WEIGHT_N_ENTRIES, [0] * len(names))
        if file.value_type(fmt.KEY_WEIGHT_N_ENTRIES) is not None and not any(entries):
            file.fail(f"metadata key '{fmt.KEY_WEIGHT_N_ENTRIES}' has zeros only, expected it where a weight is sparse")
        weights, version = [], fmt.VERSION_PLAIN
        for i, name in enumerate(names):
            codes = plane_ranks[fmt.MAX_CODE_PLANES * i : fmt.MAX_CODE_PLANES * (i + 1)]
            ne = tuple(flat_ne[4 * i : 4 * i + 4])
            spec, per_row = self._spec(_Declared(name, ne, ranks[i], planes[i], codes, entries[i]))
            version = max(version, spec.version)
            for expected in weight_tensors(spec, per_row):
                self._match(expected)
            weights.append(_weight_info(spec, per_row, error_delta[i], error_weight[i]))
        if len(self._specs) < len(self._stored):
            file.fail(f"tensor '{shown(self._stored[len(self._specs)].name)}' belongs to no declared weight")
        if version < file.value(fmt.KEY_VERSION):
            file.fail(
                f"is version {file.value(fmt.KEY_VERSION)} but has nothing that version {version} lacks, "
                f"expected version {version}"
            )
        return weights, self._specs

    def _spec(self, declared: _Declared) -> tuple[WeightSpec, list[bool]]:
        """What the declarations, and the types of the tensors found under the weight's name, make of it."""
        tensors = self._file.tensors
        name, ne, rank, n_planes = declared.name, declared.ne, declared.rank, declared.n_planes
        plane_ranks, n_entries = declared.plane_ranks, declared.n_entries
        if min(ne) < 1:
            self._file.fail(f"weight '{shown(name)}' has the impossible shape {ne_text(ne)}")
        version = self._file.value(fmt.KEY_VERSION)
        has_codes = any(plane_ranks)
        is_empty = n_planes == 0 and rank == 0 and not has_codes and n_entries == 0
        is_dense = is_empty or (n_planes == 0 and version == fmt.VERSION_PLAIN)
        dense, u, v = (tensors.get(name + s) for s in (fmt.SUFFIX_DENSE, fmt.SUFFIX_U, fmt.SUFFIX_V))
        spec = WeightSpec(
            name,
            stripped_ne(ne),
            n_planes=n_planes,
            rank=rank,
            plane_ranks=_without_zeros(plane_ranks),
            cscale=(n_planes > 0 or has_codes) and name + fmt.SUFFIX_CSCALE in tensors,
            u_type=u.type if u is not None else Type.F16,
            v_type=v.type if v is not None else Type.F16,
            dense_type=(dense.type if dense is not None else Type.F32) if is_dense else None,
            sparse=self._sparse(name, n_entries) if n_entries else None,
        )
        problem = spec_problem(spec)
        if problem is not None:
            self._file.fail(str(problem))
        scales = (tensors.get(name + fmt.suffix_scale(p)) for p in range(n_planes))
        return spec, [s is not None and s.ne[0] != 1 for s in scales]

    def _sparse(self, name: str, n_entries: int) -> SparseSpec:
        """How the entries that a weight declares are stored, by the tensors found under its name."""
        entries = self._file.tensors.get(name + fmt.SUFFIX_ENTRY)
        entry_type = entries.type if entries is not None else Type.F16
        return SparseSpec(n_entries, entry_type, name + fmt.SUFFIX_MASK in self._file.tensors)

    def _match(self, expected: TensorSpec) -> None:
        """Takes the next tensor of the file, which must be `expected`."""
        i = len(self._specs)
        if i == len(self._stored) or self._stored[i].name != expected.name:
            self._fail_order(expected.name, self._stored[i] if i < len(self._stored) else None)
        stored, logical_ne = self._stored[i], tuple(self._logical_ne[4 * i : 4 * i + 4])
        where = f"tensor '{shown(expected.name)}'"
        if len(expected.name.encode("utf-8")) > fmt.MAX_NAME_BYTES:
            self._file.fail(f"{where} has a name of more than {fmt.MAX_NAME_BYTES} bytes, ggml's limit")
        if self._declared[i] != expected.declared:
            self._file.fail(f"{where} is declared {shown(self._declared[i])}, expected {expected.declared}")
        if stored.type != expected.type:
            self._file.fail(f"{where} is stored as {type_name(stored.type)}, expected {type_name(expected.type)}")
        if padded_ne(stored.ne) != padded_ne(expected.ne):
            self._file.fail(f"{where} has shape {ne_text(stored.ne)}, expected {ne_text(expected.ne)}")
        if logical_ne != expected.logical_ne:
            self._file.fail(
                f"{where} is declared with shape {ne_text(logical_ne)}, expected {ne_text(expected.logical_ne)}"
            )
        self._specs.append(expected)

    def _fail_order(self, expected: str, found: TensorInfo | None) -> NoReturn:
        if expected not in self._file.tensors:
            self._file.fail(f"tensor '{shown(expected)}' is missing")
        at = f"'{shown(found.name)}'" if found is not None else "the end"
        self._file.fail(f"tensor '{shown(expected)}' is out of order, {at} is in its place")


def _without_zeros(plane_ranks: Sequence[int]) -> tuple[int, ...]:
    """The plane ranks up to the last one that is not 0."""
    n = len(plane_ranks)
    while n > 0 and plane_ranks[n - 1] == 0:
        n -= 1
    return tuple(plane_ranks[:n])


def _weight_info(spec: WeightSpec, per_row: Sequence[bool], error_delta: float, error_weight: float) -> WeightInfo:
    return WeightInfo(
        spec.name,
        spec.ne,
        spec.n_planes,
        spec.rank,
        spec.plane_ranks,
        spec.sparse.n_entries if spec.sparse is not None else 0,
        tuple(per_row),
        spec.cscale,
        spec.u_type if spec.rank > 0 else None,
        spec.v_type if spec.rank > 0 else None,
        spec.dense_type,
        spec.sparse.type if spec.sparse is not None else None,
        sum(t.n_bytes for t in weight_tensors(spec, per_row)),
        error_delta,
        error_weight,
    )


def _check_offsets(file: GGUFFile) -> None:
    """One tensor after the other without a gap, and the file ends where the last one's padding does."""
    end = 0
    for info in file.tensors.values():
        if info.offset != end:
            what = "overlaps the tensor before it" if info.offset < end else "leaves a gap before it"
            file.fail(f"tensor '{shown(info.name)}' {what}: begins at byte {info.offset} of the data, expected {end}")
        end += padded_bytes(info.n_bytes)
    n_behind = file.n_file_bytes - file.data_start - end
    if n_behind > 0:
        file.fail(f"has {n_behind} bytes behind its last tensor, expected none")
    if n_behind < 0:
        file.fail(f"ends {-n_behind} bytes before the end of its last tensor's padding. Truncated download?")


def _check_padding(file: GGUFFile) -> None:
    """Between the header and the data, and behind every tensor, are zeros only."""
    begin, where = file.header_end, "the header"
    for info in file.tensors.values():
        at = file.data_start + info.offset
        if file.bytes_at(begin, at).any():
            file.fail(f"the padding behind {where} has bytes that are not 0")
        begin, where = at + info.n_bytes, f"tensor '{shown(info.name)}'"
    if file.bytes_at(begin, file.n_file_bytes).any():
        file.fail(f"the padding behind {where} has bytes that are not 0")


def _check_floats(file: GGUFFile, tensors: Sequence[TensorSpec]) -> None:
    for spec in tensors:
        if not has_floats(spec):
            continue
        n_bad = n_not_finite(spec, file.raw(file.tensors[spec.name]))
        if n_bad:
            file.fail(f"tensor '{shown(spec.name)}' has {n_bad} numbers that are NaN or infinite")

"""Which tensors a weight has in a delta file, with their types, shapes and sizes (docs/format.md, section 2).

Shapes are ggml's: ne[0] is the row length. A numpy array of the same tensor has the reversed shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import FormatError, ShapeError, shown
from dqrelo_gguf.file import format as fmt

if TYPE_CHECKING:
    from dqrelo_gguf.compress.sparse import EntryType

Type: TypeAlias = gguf.GGMLQuantizationType

FACTOR_TYPES = (Type.F16, Type.BF16, Type.F32, Type.Q8_0, Type.Q4_0)
DENSE_TYPES = (Type.F32, Type.F16)
# Of the entries of a sparse weight, with their names in compress/sparse.py.
ENTRY_TYPES: Mapping[Type, EntryType] = {Type.F16: "F16", Type.BF16: "BF16", Type.I8: "F8"}


def type_name(t: Type) -> str:
    """ggml's name of a type, in lower case: `f16`, `q8_0`, `q4_k`."""
    return str(t.name).lower()


def padded_ne(ne: Sequence[int]) -> tuple[int, int, int, int]:
    """A shape as four numbers, with ones behind."""
    n0, n1, n2, n3 = (*ne, 1, 1, 1, 1)[:4]
    return n0, n1, n2, n3


def stripped_ne(ne: Sequence[int]) -> tuple[int, ...]:
    """A shape without trailing ones, but never empty."""
    n = len(ne)
    while n > 1 and ne[n - 1] == 1:
        n -= 1
    return tuple(ne[:n])


def ne_text(ne: Sequence[int]) -> str:
    """`4096x4096`: a shape in messages."""
    return "x".join(str(n) for n in ne)


def type_bytes(t: Type) -> int:
    """Bytes of a block of the type, or of a number where it has no blocks."""
    return int(gguf.GGML_QUANT_SIZES[t][1])


def n_data_bytes(t: Type, ne: Sequence[int]) -> int:
    """Bytes of a tensor's data, without padding. Rows must be whole blocks."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[t]
    return int(prod(ne) // block * block_bytes)


def padded_bytes(n_bytes: int, alignment: int = fmt.ALIGNMENT) -> int:
    """n_bytes up to the next multiple of the alignment."""
    return -(-n_bytes // alignment) * alignment


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the file."""

    name: str
    declared: str  # DQ_SIGN, ...
    type: Type  # type as stored
    ne: tuple[int, ...]  # shape as stored
    logical_ne: tuple[int, int, int, int]  # shape as declared in dqrelo.tensor.ne

    @property
    def n_bytes(self) -> int:
        return n_data_bytes(self.type, self.ne)


@dataclass(frozen=True)
class SparseSpec:
    """How the entries of a sparse weight are stored.

    Args:
        n_entries: how many, of all matrices.
        type: of their values.
        has_mask: the places are a bit for each element instead of lists.
    """

    n_entries: int
    type: Type
    has_mask: bool


@dataclass(frozen=True)
class WeightSpec:
    """How a weight's delta is stored. All byte sizes follow from it.

    Args:
        name: the base tensor's name.
        ne: its shape in ggml's order, ne[0] the row length.
        n_planes: sign planes, 0 to 4; 0 for a dense weight.
        rank: of U V; 0 for none.
        plane_ranks: r_0 to at most r_7 of the sign factors, without zeros; empty for none.
        scale_per_row: a scale per row instead of one per matrix.
        cscale: a scale per column, too.
        u_type: stored type of U.
        v_type: stored type of V.
        dense_type: the whole delta in this type instead of signs and factors.
        sparse: single entries instead of all that.
    """

    name: str
    ne: tuple[int, ...]
    n_planes: int = 1
    rank: int = 0
    scale_per_row: bool = False
    cscale: bool = False
    u_type: Type = Type.F16
    v_type: Type = Type.F16
    dense_type: Type | None = None
    plane_ranks: tuple[int, ...] = ()
    sparse: SparseSpec | None = None

    @classmethod
    def dense(cls, name: str, ne: tuple[int, ...], dense_type: Type = Type.F32) -> WeightSpec:
        """A weight kept whole."""
        return cls(name, ne, n_planes=0, dense_type=dense_type)

    @classmethod
    def of_entries(cls, name: str, ne: tuple[int, ...], sparse: SparseSpec) -> WeightSpec:
        """A sparse weight."""
        return cls(name, ne, n_planes=0, sparse=sparse)

    @property
    def n_elements(self) -> int:
        return int(prod(self.ne))

    @property
    def n_codes(self) -> int:
        """C: the sign planes of all singular vectors of the sign factors."""
        return sum(self.plane_ranks)

    @property
    def n_vectors(self) -> int:
        """Singular vectors of both kinds of factors: the rank of everything but the planes."""
        return self.rank + max(self.plane_ranks, default=0)

    @property
    def version(self) -> int:
        """The lowest version of the format that can store it."""
        is_plain = self.dense_type is not None or (self.n_planes > 0 and not self.plane_ranks)
        return fmt.VERSION_PLAIN if is_plain else fmt.VERSION_SIGN_FACTORS

    @property
    def n_bytes(self) -> int:
        """Bytes of the data of all its tensors, without padding: what the ratio counts."""
        return sum(t.n_bytes for t in self.tensors())

    @property
    def n_file_bytes(self) -> int:
        """Bytes that it takes in the file, padding included."""
        return sum(padded_bytes(t.n_bytes) for t in self.tensors())

    def tensors(self) -> list[TensorSpec]:
        """Its tensors in file order."""
        return weight_tensors(self, [self.scale_per_row] * self.n_planes)

    def check(self) -> None:
        """Raises ShapeError or FormatError if the format cannot store this."""
        problem = spec_problem(self)
        if problem is not None:
            raise problem


def spec_problem(spec: WeightSpec) -> FormatError | ShapeError | None:
    """What rule of the format a spec breaks, or None."""
    name, ne, rank = shown(spec.name), spec.ne, spec.rank
    if not 1 <= len(ne) <= 4 or any(n < 1 for n in ne):
        return ShapeError(f"{name}: shape {ne_text(ne)}, expected 1 to 4 dimensions of at least 1")
    if prod(ne) >= 1 << 62:
        return ShapeError(f"{name}: shape {ne_text(ne)} has too many elements")
    has_parts = spec.n_planes != 0 or rank != 0 or spec.cscale or spec.plane_ranks
    if has_parts and (spec.dense_type is not None or spec.sparse is not None):
        what = "dense" if spec.dense_type is not None else "sparse"
        return FormatError(f"{name}: a {what} weight has no planes, factors or column scale")
    if spec.dense_type is not None:
        return _type_problem(f"{name}{fmt.SUFFIX_DENSE}", spec.dense_type, DENSE_TYPES, ne[0])
    if not 2 <= len(stripped_ne(ne)) <= 3 or ne[0] % 8 != 0:
        return ShapeError(
            f"{name}: shape {ne_text(ne)} cannot have sign bits, expected 2 or 3 dimensions, rows of a multiple of 8. "
            "Store it dense"
        )
    if spec.sparse is not None:
        return _entries_problem(name, spec.sparse, spec.n_elements)
    if not 0 <= spec.n_planes <= fmt.MAX_PLANES:
        return FormatError(f"{name}: {spec.n_planes} sign planes, expected at most {fmt.MAX_PLANES}")
    if spec.n_planes == 0 and rank == 0 and not spec.plane_ranks:
        return FormatError(f"{name}: has no planes, factors or codes, and is not dense")
    return _codes_problem(name, spec.plane_ranks, ne) or _factors_problem(spec)


def _entries_problem(name: str, sparse: SparseSpec, n_elements: int) -> FormatError | None:
    most = min(n_elements, fmt.MAX_ENTRIES)
    if not 1 <= sparse.n_entries <= most:
        return FormatError(f"{name}: {sparse.n_entries} entries, expected 1 to {most}")
    return _type_problem(f"{name}{fmt.SUFFIX_ENTRY}", sparse.type, ENTRY_TYPES, sparse.n_entries)


def _factors_problem(spec: WeightSpec) -> FormatError | None:
    name, ne, rank = shown(spec.name), spec.ne, spec.rank
    if rank <= 0:
        return None if rank == 0 else FormatError(f"{name}: rank {rank}, expected 0 or more")
    if rank > min(ne[0], ne[1]):
        return FormatError(
            f"{name}: rank {rank}, expected at most {min(ne[0], ne[1])}, the smaller side of {ne_text(ne)}"
        )
    return _type_problem(f"{name}{fmt.SUFFIX_U}", spec.u_type, FACTOR_TYPES, rank) or _type_problem(
        f"{name}{fmt.SUFFIX_V}", spec.v_type, FACTOR_TYPES, ne[0]
    )


def _codes_problem(name: str, plane_ranks: Sequence[int], ne: Sequence[int]) -> FormatError | None:
    if not plane_ranks:
        return None
    side, n_codes = min(ne[0], ne[1]), sum(plane_ranks)
    if list(plane_ranks) != sorted(plane_ranks, reverse=True):
        return FormatError(f"{name}: plane ranks {', '.join(map(str, plane_ranks))} do not descend")
    if plane_ranks[0] > side:
        return FormatError(
            f"{name}: plane rank {plane_ranks[0]}, expected at most {side}, the smaller side of {ne_text(ne)}"
        )
    if n_codes % 8 != 0:
        return FormatError(f"{name}: {n_codes} codes, expected a multiple of 8")
    most = fmt.MAX_CODES_A_SIDE * side
    if n_codes > most:
        return FormatError(
            f"{name}: {n_codes} codes, expected at most {most}, four times the smaller side of {ne_text(ne)}"
        )
    return None


def _type_problem(tensor: str, t: Type, allowed: Collection[Type], n_row: int) -> FormatError | None:
    if t not in allowed:
        return FormatError(f"{tensor}: type {type_name(t)}, expected {', '.join(map(type_name, allowed))}")
    block = gguf.GGML_QUANT_SIZES[t][0]
    if n_row % block != 0:
        return FormatError(f"{tensor}: rows of {n_row}, expected a multiple of {block} for type {type_name(t)}")
    return None


def weight_tensors(spec: WeightSpec, per_row: Sequence[bool]) -> list[TensorSpec]:
    """The tensors of a weight in file order; per_row[p] says whether plane p has a scale per row."""
    ne = stripped_ne(spec.ne)
    if spec.dense_type is not None:
        return [_stored(spec.name + fmt.SUFFIX_DENSE, fmt.DQ_DENSE, spec.dense_type, ne)]
    n_in, n_out, *experts = ne  # `experts` is [] or [ne2].
    if spec.sparse is not None:
        return _sparse_tensors(spec.name, ne, spec.sparse)
    tensors = []
    for p in range(spec.n_planes):
        tensors.append(_bits(spec.name + fmt.suffix_sign(p), fmt.DQ_SIGN, ne))
        scale_ne = (n_out if per_row[p] else 1, *experts)
        tensors.append(_stored(spec.name + fmt.suffix_scale(p), fmt.DQ_SCALE, Type.F32, scale_ne))
    if spec.cscale:
        tensors.append(_stored(spec.name + fmt.SUFFIX_CSCALE, fmt.DQ_CSCALE, Type.F32, (n_in, *experts)))
    if spec.rank > 0:
        tensors.append(_stored(spec.name + fmt.SUFFIX_U, fmt.DQ_U, spec.u_type, (spec.rank, n_out, *experts)))
        tensors.append(_stored(spec.name + fmt.SUFFIX_V, fmt.DQ_V, spec.v_type, (n_in, spec.rank, *experts)))
    if spec.plane_ranks:
        scale_ne = (spec.n_codes, *experts)
        tensors += [
            _bits(spec.name + fmt.SUFFIX_VSIGN, fmt.DQ_VSIGN, (n_in, spec.n_codes, *experts)),
            _stored(spec.name + fmt.SUFFIX_VSCALE, fmt.DQ_VSCALE, Type.BF16, scale_ne),
            _bits(spec.name + fmt.SUFFIX_USIGN, fmt.DQ_USIGN, (spec.n_codes, n_out, *experts)),
            _stored(spec.name + fmt.SUFFIX_USCALE, fmt.DQ_USCALE, Type.BF16, scale_ne),
        ]
    return tensors


def _sparse_tensors(name: str, ne: tuple[int, ...], sparse: SparseSpec) -> list[TensorSpec]:
    """The tensors of a sparse weight in file order."""
    n_in, *rows = ne  # `rows` is [ne1] or [ne1, ne2].
    if sparse.has_mask:
        tensors = [_bits(name + fmt.SUFFIX_MASK, fmt.DQ_MASK, ne)]
    else:
        n_blocks = -(-n_in // fmt.BLOCK_COLUMNS)
        tensors = [
            _stored(name + fmt.SUFFIX_COUNT, fmt.DQ_COUNT, Type.I8, (n_blocks, *rows)),
            _stored(name + fmt.SUFFIX_COLUMN, fmt.DQ_COLUMN, Type.I8, (sparse.n_entries,)),
        ]
    tensors += [
        _stored(name + fmt.SUFFIX_START, fmt.DQ_START, Type.I32, tuple(rows)),
        _stored(name + fmt.SUFFIX_ENTRY, fmt.DQ_ENTRY, sparse.type, (sparse.n_entries,)),
    ]
    if sparse.type == Type.I8:
        tensors.append(_stored(name + fmt.SUFFIX_ESCALE, fmt.DQ_ESCALE, Type.F32, tuple(rows)))
    return tensors


def delta_ratio(specs: Sequence[WeightSpec]) -> float:
    """Bytes of all tensors, padding left out, over the 16-bit size of the weights that they change."""
    return sum(s.n_bytes for s in specs) / (2 * sum(s.n_elements for s in specs))


def content_hash(tensors: Sequence[TensorSpec], sha256: Sequence[str]) -> str:
    """The delta's identity, docs/format.md section 5."""
    lines = (
        f"{t.name} {t.declared} {type_name(t.type)} {ne_text(t.logical_ne)} {digest}\n"
        for t, digest in zip(tensors, sha256, strict=True)
    )
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


def delta_version(specs: Sequence[WeightSpec]) -> int:
    """The lowest version of the format that can store all weights, which is the one that a file has."""
    return max((s.version for s in specs), default=fmt.VERSION_PLAIN)


def _bits(name: str, declared: str, ne: tuple[int, ...]) -> TensorSpec:
    """A tensor of bits; ne counts them."""
    return TensorSpec(name, declared, Type.I8, (ne[0] // 8, *ne[1:]), padded_ne(ne))


def _stored(name: str, declared: str, t: Type, ne: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name, declared, t, ne, padded_ne(ne))

"""Malformed deltas with sparse weights: one edit of the fixture small_sparse_delta for every check of docs/format.md, section 4."""

from __future__ import annotations

import struct
from collections.abc import Callable

from dqrelo_gguf.file.container import GGUFValue, ValueType
from tests.support.delta_files import Edited, Type
from tests.support.malformed import (
    ARRAY,
    EMBD,
    U32,
    Edit,
    Q,
    drop_field,
    drop_tensor,
    set_field,
    set_item,
    set_number,
    set_tensor,
)

ENTRIES = "dqrelo.weight.n_entries"
K, EXPERTS = "blk.0.attn_k.weight", "blk.0.ffn_up_exps.weight"
# Of EMBD, weight 0, the tensors are 0 to 4: count, column, start, entry, escale. Of Q, weight 1, they begin with its mask.
NORM = 7  # the weight that is dense


def set_bytes_of(name: str, change: Callable[[bytearray], object], at: int = 0, n: int = 1) -> Edit:
    """Changes n bytes of a tensor's data, of which the first is byte `at`."""

    def edit(e: Edited) -> None:
        begin = e.tensor(name).offset + at
        part = e.data[begin : begin + n]
        change(part)
        e.data[begin : begin + n] = part

    return edit


def set_start(name: str, row: int, value: int) -> Edit:
    """Gives a row another first entry."""
    return set_bytes_of(name, lambda part: part.__setitem__(slice(4), struct.pack("<i", value)), 4 * row, 4)


def put(at: int, byte: int) -> Callable[[bytearray], object]:
    return lambda part: part.__setitem__(at, byte)


def flip(at: int, bits: int) -> Callable[[bytearray], object]:
    return lambda part: part.__setitem__(at, part[at] ^ bits)


def equal_columns(e: Edited) -> None:
    """Gives the second entry of a block the column of the first one."""
    begin = e.tensor(f"{EMBD}.dq_column").offset
    e.data[begin + 1] = e.data[begin]


def other_counts(e: Edited) -> None:
    """Moves an entry from the first row to the second one."""
    begin = e.tensor(f"{EXPERTS}.dq_count").offset
    e.data[begin] -= 1
    e.data[begin + 1] += 1


def moved_bit(e: Edited) -> None:
    """Moves an entry of the mask from the last row that has one to another."""
    begin = e.tensor(f"{Q}.dq_mask").offset
    first = next(i for i in range(8) if e.data[begin + i])
    e.data[begin + first] &= e.data[begin + first] - 1
    other = next(i for i in range(8, 16) if e.data[begin + i] != 255)
    e.data[begin + other] |= e.data[begin + other] + 1


def version_1(e: Edited) -> None:
    e.fields["dqrelo.version"] = GGUFValue(1, U32)
    del e.fields["dqrelo.weight.plane_ranks"]


MALFORMED_SPARSE: dict[str, tuple[Edit, str]] = {
    # --- 2, 3: the key
    "no entries": (drop_field(ENTRIES), f"tensor '{EMBD}.dq_dense' is missing"),
    "entries' type": (
        set_field(ENTRIES, [1] * 8, ARRAY, U32),
        rf"'{ENTRIES}' has type \[UINT32\], expected \[UINT64\]",
    ),
    "a number of entries": (set_field(ENTRIES, 1, ValueType.UINT64), r"has type UINT64, expected \[UINT64\]"),
    "short entries": (lambda e: e.fields[ENTRIES].value.pop(), f"'{ENTRIES}' has 7 items, expected 8"),
    "no entry anywhere": (
        set_field(ENTRIES, [0] * 8, ARRAY, ValueType.UINT64),
        f"'{ENTRIES}' has zeros only, expected",
    ),
    "entries in version 1": (version_1, f"'{ENTRIES}' belongs to version 2"),
    # --- 4: what the weight is
    "entries missing": (set_item(ENTRIES, 0, 0), f"tensor '{EMBD}.dq_dense' is missing"),
    "more entries than elements": (set_item(ENTRIES, 0, 2561), f"{EMBD}: 2561 entries, expected 1 to 2560"),
    "most entries": (set_item(ENTRIES, 0, (1 << 64) - 1), f"{EMBD}: 18446744073709551615 entries, expected 1 to 2560"),
    "one entry more": (set_item(ENTRIES, 0, 201), f"'{EMBD}.dq_column' has shape 200, expected 201"),
    "entries of a vector": (
        set_item(ENTRIES, NORM, 8),
        "attn_norm.weight: shape 64 cannot have sign bits, expected 2 or 3",
    ),
    "entries and planes": (
        set_item("dqrelo.weight.n_planes", 0, 1),
        f"{EMBD}: a sparse weight has no planes, factors or column scale",
    ),
    "entries and a rank": (set_item("dqrelo.weight.rank", 0, 4), f"{EMBD}: a sparse weight has no planes"),
    "entries and codes": (set_item("dqrelo.weight.plane_ranks", 0, 8), f"{EMBD}: a sparse weight has no planes"),
    "entries of a weight with planes": (set_item(ENTRIES, 5, 8), "blk.1.attn_k.weight: a sparse weight has no planes"),
    "odd rows": (set_item("dqrelo.weight.ne", 0, 60), "rows of a multiple of 8"),
    # --- 4: its tensors
    "no places": (drop_tensor(f"{Q}.dq_mask"), f"tensor '{Q}.dq_count' is missing"),
    "no columns": (drop_tensor(f"{EMBD}.dq_column"), f"tensor '{EMBD}.dq_column' is missing"),
    "no starts": (drop_tensor(f"{EMBD}.dq_start"), f"tensor '{EMBD}.dq_start' is missing"),
    "no values": (drop_tensor(f"{EMBD}.dq_entry"), f"tensor '{EMBD}.dq_entry' is missing"),
    "no scales": (drop_tensor(f"{EMBD}.dq_escale"), f"tensor '{EMBD}.dq_escale' is missing"),
    "values' type": (
        set_tensor(f"{EMBD}.dq_entry", type_id=int(Type.I16)),
        f"{EMBD}.dq_entry: type i16, expected f16, bf16, i8",
    ),
    "values of 16 bits with scales": (
        set_tensor(f"{EMBD}.dq_entry", type_id=int(Type.F16), ne=(100,)),
        f"'{EMBD}.dq_entry' has shape 100, expected 200",
    ),
    "values of 8 bits without scales": (
        set_tensor(f"{K}.dq_entry", type_id=int(Type.I8)),
        f"'{K}.dq_escale' is missing",
    ),
    "starts' type": (
        set_tensor(f"{EMBD}.dq_start", type_id=int(Type.F32)),
        f"'{EMBD}.dq_start' is stored as f32, expected i32",
    ),
    "starts' shape": (set_tensor(f"{EMBD}.dq_start", ne=(20, 2)), f"'{EMBD}.dq_start' has shape 20x2, expected 40"),
    "counts' shape": (set_tensor(f"{EMBD}.dq_count", ne=(2, 20)), f"'{EMBD}.dq_count' has shape 2x20, expected 1x40"),
    "counts of one block": (set_tensor(f"{K}.dq_count", ne=(1, 16)), f"'{K}.dq_count' has shape 1x16, expected 3x16"),
    "mask's shape": (set_tensor(f"{Q}.dq_mask", ne=(48, 8)), f"'{Q}.dq_mask' has shape 48x8, expected 8x48"),
    "mask's logical shape": (
        set_item("dqrelo.tensor.ne", 4 * 5, 8),
        "is declared with shape 8x48x1x1, expected 64x48x1x1",
    ),
    "columns' logical shape": (
        set_item("dqrelo.tensor.ne", 4, 199),
        "is declared with shape 199x1x1x1, expected 200x1x1x1",
    ),
    "declared type": (set_item("dqrelo.tensor.types", 0, "DQ_COLUMN"), "is declared DQ_COLUMN, expected DQ_COUNT"),
    # --- 6: numbers
    **{
        f"{value} in {name}": (set_number(name, kind, value), f"'{name}' has 1 numbers that are NaN or infinite")
        for name, kind in ((f"{EMBD}.dq_escale", "<f4"), (f"{EXPERTS}.dq_entry", "<f2"), (f"{K}.dq_entry", "bf16"))
        for value in ("nan", "inf", "-inf")
    },
    **{
        f"F8 of {byte:#x}": (
            set_bytes_of(f"{EMBD}.dq_entry", put(0, byte)),
            f"'{EMBD}.dq_entry' has 1 numbers that are NaN or infinite",
        )
        for byte in (0x7C, 0x7D, 0x7F, 0xFC, 0xFF)
    },
    # --- 6: places
    "a bit more": (
        set_bytes_of(f"{Q}.dq_mask", flip(0, 1)),
        f"'{Q}.dq_mask' has the places of (599|601) entries, expected 600",
    ),
    "an entry counted more": (
        set_bytes_of(f"{EMBD}.dq_count", lambda part: put(0, part[0] + 1)(part)),
        f"'{EMBD}.dq_count' has the places of 201 entries, expected 200",
    ),
    "255 entries counted": (
        set_bytes_of(f"{EXPERTS}.dq_count", put(0, 255)),
        rf"'{EXPERTS}.dq_count' has the places of \d+ entries, expected 300",
    ),
    "an entry in another row": (moved_bit, rf"'{Q}.dq_start' has \d+ for row 1, expected \d+"),
    "first start": (set_start(f"{EMBD}.dq_start", 0, 1), f"'{EMBD}.dq_start' has 1 for row 0, expected 0"),
    "negative start": (set_start(f"{EMBD}.dq_start", 3, -1), rf"'{EMBD}.dq_start' has -1 for row 3, expected \d+"),
    "largest start": (
        set_start(f"{Q}.dq_start", 47, (1 << 31) - 1),
        rf"'{Q}.dq_start' has 2147483647 for row 47, expected",
    ),
    "start in a later matrix": (
        set_start(f"{EXPERTS}.dq_start", 9, 0),
        rf"'{EXPERTS}.dq_start' has 0 for row 9, expected \d+",
    ),
    "equal columns": (equal_columns, rf"'{EMBD}.dq_column' has column (\d+) in entry 1, expected more than \1"),
    "column behind the row": (
        set_bytes_of(f"{EMBD}.dq_column", put(0, 64)),
        f"'{EMBD}.dq_column' has column 64 in entry 0, expected less than 64",
    ),
    "column behind the row's last block": (
        set_bytes_of(f"{K}.dq_column", put(-1, 255), 699),
        f"'{K}.dq_column' has column 255 in entry 699, expected less than 8",
    ),
    "columns that descend": (
        other_counts,
        rf"'{EXPERTS}.dq_column' has column \d+ in entry \d+, expected more than \d+",
    ),
}

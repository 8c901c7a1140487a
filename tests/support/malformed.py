"""Malformed delta files: one edit of a sound one for every check of docs/format.md, section 4."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dqrelo_gguf.file.container import GGUFValue, ValueType, pack_string, pack_value
from dqrelo_gguf.file.quality import RULES
from tests.support.delta_files import Edited, Type

Edit = Callable[[Edited], Any]

Q = "blk.0.attn_q.weight"
EMBD = "token_embd.weight"


def set_field(key: str, value: Any, value_type: ValueType, item_type: ValueType | None = None) -> Edit:
    return lambda e: e.fields.update({key: GGUFValue(value, value_type, item_type)})


def set_item(key: str, index: int, value: Any) -> Edit:
    return lambda e: e.fields[key].value.__setitem__(index, value)


def drop_field(key: str) -> Edit:
    return lambda e: e.fields.pop(key)


def set_tensor(name: str, **changes: Any) -> Edit:
    return lambda e: vars(e.tensor(name)).update(changes)


def set_scale(name: str, value: float) -> Edit:
    def edit(e: Edited) -> None:
        at = e.tensor(name).offset
        e.data[at : at + 4] = struct.pack("<f", value)

    return edit


# A tensor of every type that holds floats, and how its first number, or the scale of its first block, is stored.
FLOATS = {
    f"{EMBD}.dq_u": "<f2",
    "blk.0.attn_k.weight.dq_u": "<f4",
    "blk.0.attn_k.weight.dq_v": "<f2",  # Q4_0 in the file
    f"{Q}.dq_u": "<f2",  # Q8_0 in the file
    "blk.0.ffn_up_exps.weight.dq_v": "bf16",
    "blk.0.attn_norm.weight.dq_dense": "<f4",
    "blk.0.attn_q.bias.dq_dense": "<f2",
}


def set_number(name: str, kind: str, text: str) -> Edit:
    """Puts a number at a tensor's beginning."""
    raw = np.array([float(text)], "<f4" if kind == "bf16" else kind).tobytes()
    stored = raw[2:] if kind == "bf16" else raw

    def edit(e: Edited) -> None:
        at = e.tensor(name).offset
        e.data[at : at + len(stored)] = stored

    return edit


def set_bytes(value_type: ValueType, raw: bytes) -> Edit:
    """A key `other.flag` whose value is stored as these bytes."""
    marker = GGUFValue(int.from_bytes(raw, "little"), ValueType.UINT8)

    def edit(e: Edited) -> None:
        e.fields["other.flag"] = marker
        whole = e.header

        def header() -> bytes:
            key = pack_string("other.flag")
            return whole().replace(key + pack_value(marker), key + struct.pack("<I", value_type) + raw)

        e.header = header  # type: ignore[method-assign]

    return edit


def set_data(at: int, byte: int) -> Edit:
    return lambda e: e.data.__setitem__(at, byte)


def set_header_end(e: Edited) -> None:
    """Puts a byte into the header's padding."""
    raw = e.header()
    assert raw[-1] == 0
    e.header = lambda: raw[:-1] + b"x"  # type: ignore[method-assign]


def many_samples(e: Edited) -> None:
    e.fields["dqrelo.base.sample_tensors"].value[:] = ["token_embd.weight"] * 17
    e.fields["dqrelo.base.samples"].value[:] = [0.5] * (17 * 32)


def changed_tokens(*ids: int) -> Edit:
    """Tokens with other texts."""
    return lambda e: e.fields.update(
        {
            "dqrelo.token.ids": GGUFValue(list(ids), ARRAY, U32),
            "dqrelo.token.texts": GGUFValue(["a"] * len(ids), ARRAY, STRING),
            "dqrelo.token.types": GGUFValue([1] * len(ids), ARRAY, ValueType.INT32),
        }
    )


def swap_tensors(i: int, j: int) -> Edit:
    """Changes the order of two tensors everywhere but in the data."""

    def edit(e: Edited) -> None:
        e.tensors[i], e.tensors[j] = e.tensors[j], e.tensors[i]
        for key in ("names", "types", "sha256"):
            items = e.fields[f"dqrelo.tensor.{key}"].value
            items[i], items[j] = items[j], items[i]

    return edit


def drop_tensor(name: str) -> Edit:
    def edit(e: Edited) -> None:
        i = [t.name for t in e.tensors].index(name)
        del e.tensors[i]
        for key, n in (("names", 1), ("types", 1), ("sha256", 1), ("ne", 4)):
            del e.fields[f"dqrelo.tensor.{key}"].value[n * i : n * (i + 1)]

    return edit


def rename_tensor(i: int, name: str) -> Edit:
    def edit(e: Edited) -> None:
        e.tensors[i].name = name
        e.fields["dqrelo.tensor.names"].value[i] = name

    return edit


def drop_last_weight(e: Edited) -> None:
    for key, n in (("names", 1), ("ne", 4), ("rank", 1), ("n_planes", 1), ("error_delta", 1), ("error_weight", 1)):
        del e.fields[f"dqrelo.weight.{key}"].value[-n:]


def empty_weights(e: Edited) -> None:
    for key, field in e.fields.items():
        if key.startswith("dqrelo.weight."):
            field.value.clear()


# A quality record as dqrelo-eval writes it.
QUALITY: dict[str, Any] = {
    "evaluator": "dqrelo-eval 0.1.0",
    "tuned_sha256": "a" * 64,
    "base_digest": "b" * 64,
    "text": "wiki.txt",
    "text_sha256": "c" * 64,
    "n_ctx": 512,
    "n_tokens": 2550,
    "kl": 0.001855,
    "kl_error": 0.0001,
    "kl_base": 2.8476,
    "top_p": 0.99183,
    "problems": "math.jsonl",
    "problems_sha256": "d" * 64,
    "n_problems": 300,
    "retention": 0.981,
    "retention_low": 0.95,
    "retention_high": 1.0,
}
ON_PROBLEMS = ("problems", "problems_sha256", "n_problems", "retention", "retention_low", "retention_high")
ON_TEXT = ("text", "text_sha256", "n_ctx", "n_tokens", "kl", "kl_error", "kl_base", "top_p")


def set_quality(**changes: Any) -> Edit:
    """Gives a file a quality record with these changes; None leaves a field out."""
    record = {name: value for name, value in (QUALITY | changes).items() if value is not None}

    def edit(e: Edited) -> None:
        for rule in RULES:
            if rule.name in record:
                e.fields[rule.key] = GGUFValue(record[rule.name], rule.type)

    return edit


def without(names: Sequence[str]) -> dict[str, None]:
    return dict.fromkeys(names)


class Bytes(str):
    """A string that is written as bytes that are none."""

    __slots__ = ()

    def encode(self, *_args: Any, **_kwargs: Any) -> bytes:
        return b"\xff\xfe"


NO_TEXT = Bytes()
STRING, U32, ARRAY = ValueType.STRING, ValueType.UINT32, ValueType.ARRAY
SIGN, SIGN1, SCALE = f"{EMBD}.dq_sign", f"{Q}.dq_sign1", f"{EMBD}.dq_scale"

# The edit of the fixture small_delta, and what is said of the file then, as a regular expression.
MALFORMED: dict[str, tuple[Edit, str]] = {
    # --- 1: GGUF
    "gguf version": (lambda e: setattr(e, "version", 4), "GGUF version 4, expected 3"),
    "gguf version 2": (lambda e: setattr(e, "version", 2), "GGUF version 2, expected 3"),
    "big endian": (lambda e: setattr(e, "version", 3 << 24), "big-endian"),
    "unknown type id": (set_tensor(SIGN, type_id=142), "unknown type id 142"),
    "five dimensions": (set_tensor(SIGN, ne=(8, 40, 1, 1, 1)), "5 dimensions, expected at most 4"),
    "zero dimension": (set_tensor(SIGN, ne=(8, 0)), "impossible shape 8x0"),
    "overflowing shape": (set_tensor(SIGN, ne=(1 << 32, 1 << 32)), "impossible shape"),
    "broken block": (set_tensor(f"{Q}.dq_u", ne=(31, 48)), "rows of 31, expected a multiple of 32"),
    "duplicate tensor": (lambda e: e.tensors.append(e.tensors[0]), f"tensor '{SIGN}' occurs twice"),
    # --- 2: what it is
    "no general.type": (drop_field("general.type"), "is a model .*, not a delta file"),
    "general.type": (set_field("general.type", "mmproj", STRING), "general.type is 'mmproj', expected 'adapter'"),
    "lora": (set_field("adapter.type", "lora", STRING), "is a LoRA adapter, not a delta file"),
    "adapter.type": (set_field("adapter.type", "x", STRING), "adapter.type is 'x', expected 'dqrelo'"),
    "newer version": (set_field("dqrelo.version", 3, U32), "version 3, expected 1 or 2. Update dqrelo-gguf"),
    "version 2 without its key": (set_field("dqrelo.version", 2, U32), "'dqrelo.weight.plane_ranks' is missing"),
    "version 2 for nothing": (
        lambda e: e.fields.update(
            {
                "dqrelo.version": GGUFValue(2, U32),
                "dqrelo.weight.plane_ranks": GGUFValue([0] * 64, ARRAY, U32),
            }
        ),
        "is version 2 but has nothing that version 1 lacks, expected version 1",
    ),
    "version 0": (set_field("dqrelo.version", 0, U32), "version 0, expected 1 or 2$"),
    "version's type": (set_field("dqrelo.version", 1, ValueType.UINT64), "dqrelo.version is 1, expected a UINT32"),
    "no version": (drop_field("dqrelo.version"), "dqrelo.version is None"),
    "missing key": (drop_field("dqrelo.base.digest"), "'dqrelo.base.digest' is missing"),
    "key's type": (set_field("dqrelo.ratio", 0.5, ValueType.FLOAT32), "type FLOAT32, expected FLOAT64"),
    "array's type": (
        set_field("dqrelo.weight.rank", [0] * 8, ARRAY, ValueType.UINT64),
        r"type \[UINT64\], expected \[UINT32\]",
    ),
    "optional key's type": (set_field("tokenizer.chat_template", 1, U32), "type UINT32, expected STRING"),
    "alignment 32": (set_field("general.alignment", 32, U32), "general.alignment is 32, expected 64"),
    "alignment 48": (set_field("general.alignment", 48, U32), "expected a power of two"),
    "alignment 0": (set_field("general.alignment", 0, U32), "expected a power of two"),
    "no alignment": (drop_field("general.alignment"), "'general.alignment' is missing"),
    "token id": (set_field("tokenizer.ggml.eos_token_id", 1 << 31, U32), "expected a token id under 2\\^31"),
    "end token": (
        set_field("dqrelo.end_token_ids", [2, 1 << 31], ARRAY, U32),
        "'dqrelo.end_token_ids' has 2147483648, expected token ids under 2\\^31",
    ),
    "no end tokens": (
        set_field("dqrelo.end_token_ids", [], ARRAY, U32),
        "has 0 tokens, 0 of them different, expected 1 to 64",
    ),
    "65 end tokens": (
        set_field("dqrelo.end_token_ids", list(range(65)), ARRAY, U32),
        "has 65 tokens, 65 of them different",
    ),
    "end token twice": (set_field("dqrelo.end_token_ids", [2, 2], ARRAY, U32), "has 2 tokens, 1 of them different"),
    "end tokens' type": (set_field("dqrelo.end_token_ids", 2, U32), r"type UINT32, expected \[UINT32\]"),
    "template that is not listed": (
        set_field("tokenizer.chat_template.tool_use", "x", STRING),
        "'tokenizer.chat_templates' does not list the named chat templates, each once",
    ),
    "template that is not there": (
        set_field("tokenizer.chat_templates", ["tool_use"], ARRAY, STRING),
        "'tokenizer.chat_templates' does not list the named chat templates, each once",
    ),
    "template's type": (
        set_field("tokenizer.chat_template.tool_use", 1, U32),
        "'tokenizer.chat_template.tool_use' has type UINT32, expected STRING",
    ),
    "template's name": (
        set_field("tokenizer.chat_template.tool use", "x", STRING),
        "a name of other characters than letters",
    ),
    "template without a name": (
        set_field("tokenizer.chat_template.", "x", STRING),
        "a name of other characters than letters",
    ),
    "65 templates": (
        lambda e: e.fields.update(
            {f"tokenizer.chat_template.t{i}": GGUFValue("x", STRING) for i in range(65)}
            | {"tokenizer.chat_templates": GGUFValue([f"t{i}" for i in range(65)], ARRAY, STRING)}
        ),
        "has 65 named chat templates, expected at most 64",
    ),
    "bos id": (set_field("tokenizer.ggml.bos_token_id", 1 << 31, U32), "expected a token id under 2\\^31"),
    "padding id": (
        set_field("tokenizer.ggml.padding_token_id", (1 << 32) - 1, U32),
        "expected a token id under 2\\^31",
    ),
    "changed tokens' ids": (
        changed_tokens(1, 1 << 31),
        "'dqrelo.token.ids' has 2147483648, expected token ids under 2\\^31",
    ),
    "NUL in a text": (set_field("general.license", "a\0b", STRING), "'general.license': has a NUL byte"),
    "NUL in texts": (set_field("general.tags", ["a", "\0"], ARRAY, STRING), "'general.tags': has a NUL byte"),
    "NUL in a key": (set_field("general.x\0", 1, U32), "'general.x\\?': has a NUL byte"),
    "NUL in a name": (set_item("dqrelo.weight.names", 0, "a\0"), "'dqrelo.weight.names': has a NUL byte"),
    "text of an unknown key": (set_field("general.license", NO_TEXT, STRING), "'general.license': is not UTF-8"),
    "texts of an unknown key": (
        set_field("general.tags", ["a", NO_TEXT], ARRAY, STRING),
        "'general.tags': is not UTF-8",
    ),
    "a model's key": (
        set_field("llama.block_count", 2, U32),
        "'llama.block_count' is a model's, expected none of 'llama'",
    ),
    "changed tokens' type": (
        set_field("dqrelo.token.ids", ["a"], ARRAY, STRING),
        r"type \[STRING\], expected \[UINT32\]",
    ),
    # --- 2: the quality record
    "kl's type": (set_field("dqrelo.quality.kl", 0.5, ValueType.FLOAT32), "type FLOAT32, expected FLOAT64"),
    "kl of several": (
        set_field("dqrelo.quality.kl", [0.5], ARRAY, ValueType.FLOAT64),
        r"type \[FLOAT64\], expected FLOAT64",
    ),
    "no evaluator": (set_quality(evaluator=None), "'dqrelo.quality.evaluator' is missing"),
    "no measure": (set_quality(**without([*ON_TEXT, *ON_PROBLEMS])), "has a quality record without a measure"),
    "half a text": (set_quality(top_p=None), "'dqrelo.quality.top_p' is missing"),
    "half of problems": (set_quality(**without(ON_TEXT), n_problems=None), "'dqrelo.quality.n_problems' is missing"),
    "a lone field": (set_field("dqrelo.quality.kl", 0.5, ValueType.FLOAT64), "'dqrelo.quality.evaluator' is missing"),
    "digest of a text": (set_quality(text_sha256="xyz"), "dqrelo.quality.text_sha256 is 'xyz', expected 64 lower-case"),
    "long text": (set_quality(text="x" * 256), "has a text of 256 bytes, expected at most 255"),
    "long problems": (set_quality(problems="\u00e4" * 128), "has a text of 256 bytes, expected at most 255"),
    "negative kl": (set_quality(kl=-0.5), "'dqrelo.quality.kl' is -0.5, expected a number from 0 to 1e\\+06"),
    "nan kl": (set_quality(kl=math.nan), "'dqrelo.quality.kl' has 1 numbers that are NaN or infinite"),
    "top p over 1": (set_quality(top_p=1.5), "'dqrelo.quality.top_p' is 1.5, expected a number from 0 to 1$"),
    "no tokens": (set_quality(n_tokens=0), "'dqrelo.quality.n_tokens' is 0, expected a number from 1"),
    "too many problems": (
        set_quality(n_problems=(1 << 32) - 1),
        "'dqrelo.quality.n_problems' is 4.29497e\\+09, expected",
    ),
    "huge retention": (
        set_quality(retention=-2e6),
        "'dqrelo.quality.retention' is -2e\\+06, expected a number from -1e",
    ),
    "interval": (
        set_quality(retention_low=0.9, retention_high=0.8),
        "retention_low is 0.9, expected at most dqrelo.quality.retention_high, 0.8",
    ),
    # --- 3: array lengths
    "changed tokens": (set_field("dqrelo.token.ids", [5], ARRAY, U32), r"\[1, 0, 0\] entries, expected equal numbers"),
    "short names": (lambda e: e.fields["dqrelo.tensor.names"].value.pop(), "has 33 items, expected 34"),
    "short ne": (lambda e: e.fields["dqrelo.tensor.ne"].value.pop(), "has 135 items, expected 136"),
    "short ranks": (lambda e: e.fields["dqrelo.weight.rank"].value.pop(), "has 7 items, expected 8"),
    "short samples": (lambda e: e.fields["dqrelo.base.samples"].value.pop(), "has 191 items, expected 192"),
    "many samples": (many_samples, "'dqrelo.base.sample_tensors' has 17 items, expected at most 16"),
    "other names": (set_item("dqrelo.tensor.names", 1, "x"), r"names\[1\] is 'x', but tensor 1 of the file is"),
    "no weights": (empty_weights, "changes no weight"),
    "digest": (set_item("dqrelo.tensor.sha256", 2, "abc"), r"sha256\[2\] is 'abc', expected 64"),
    "content hash": (set_field("dqrelo.content_hash", "A" * 64, STRING), "expected 64 lower-case hex digits"),
    # --- 4: tensors of weights
    "weight twice": (set_item("dqrelo.weight.names", 1, EMBD), f"weight '{EMBD}' is declared twice"),
    "left over": (drop_last_weight, "'blk.0.attn_q.bias.dq_dense' belongs to no declared weight"),
    "missing scale": (drop_tensor(SCALE), f"tensor '{SCALE}' is missing"),
    "missing u": (drop_tensor(f"{EMBD}.dq_u"), f"tensor '{EMBD}.dq_u' is missing"),
    "missing last": (drop_tensor("blk.0.attn_q.bias.dq_dense"), "'blk.0.attn_q.bias.dq_dense' is missing"),
    "stray name": (rename_tensor(0, "token_embd.weight.dq_bits"), f"tensor '{SIGN}' is missing"),
    "swapped": (swap_tensors(0, 1), f"tensor '{SIGN}' is out of order, '{SCALE}' is in its place"),
    "declared type": (set_item("dqrelo.tensor.types", 0, "DQ_SCALE"), "is declared DQ_SCALE, expected DQ_SIGN"),
    "logical shape": (set_item("dqrelo.tensor.ne", 0, 8), "is declared with shape 8x40x1x1, expected 64x40x1x1"),
    "stored type": (set_tensor(SIGN, type_id=int(Type.F16), ne=(4, 40)), "is stored as f16, expected i8"),
    "factor's type": (set_tensor(f"{EMBD}.dq_u", type_id=int(Type.I16)), "type i16, expected f16, bf16"),
    "dense type": (set_tensor("blk.0.attn_q.bias.dq_dense", type_id=int(Type.I16)), "type i16, expected f32, f16"),
    "stored shape": (set_tensor(SIGN, ne=(40, 8)), "has shape 40x8, expected 8x40"),
    "scale's shape": (set_tensor(SCALE, ne=(2,)), "has shape 2, expected 40"),
    "rank too large": (set_item("dqrelo.weight.rank", 0, 4), "'token_embd.weight.dq_u' has shape 3x40, expected 4x40"),
    "rank over the shape": (
        set_item("dqrelo.weight.rank", 0, 41),
        "rank 41, expected at most 40, the smaller side of 64x40",
    ),
    "rank 0": (set_item("dqrelo.weight.rank", 0, 0), f"out of order, '{EMBD}.dq_u' is in its place"),
    "rank of a quantised u": (set_item("dqrelo.weight.rank", 1, 31), "rows of 31, expected a multiple of 32"),
    "planes": (set_item("dqrelo.weight.n_planes", 0, 2), "'token_embd.weight.dq_sign1' is missing"),
    "five planes": (set_item("dqrelo.weight.n_planes", 0, 5), "5 sign planes, expected at most 4"),
    "no planes": (set_item("dqrelo.weight.n_planes", 0, 0), "a dense weight has no planes, factors"),
    "weight's shape": (set_item("dqrelo.weight.ne", 1, 41), "has shape 8x40, expected 8x41"),
    "weight without columns": (set_item("dqrelo.weight.ne", 0, 0), "impossible shape 0x40x1x1"),
    "odd rows": (set_item("dqrelo.weight.ne", 0, 60), "rows of a multiple of 8"),
    "four dimensions": (set_item("dqrelo.weight.ne", 3, 2), "2 or 3 dimensions"),
    "weight overflows": (set_item("dqrelo.weight.ne", 1, 1 << 62), "too many elements"),
    # --- 5: offsets
    "odd offset": (set_tensor(SCALE, offset=321), "begins at byte 321 of the data, expected a multiple of 64"),
    "overlap": (set_tensor(SCALE, offset=256), f"'{SCALE}' overlaps the tensor before it"),
    "gap": (lambda e: [vars(t).update(offset=t.offset + 64) for t in e.tensors[3:-4]], "leaves a gap before it"),
    "outside": (set_tensor("blk.0.attn_q.bias.dq_dense", offset=1 << 40), r"ends at byte \d+, file has \d+ bytes"),
    "truncated": (lambda e: e.data.__delitem__(slice(-80, None)), "'blk.0.attn_q.bias.dq_dense' ends at byte"),
    "bytes behind": (lambda e: e.data.extend(bytes(64)), "has 64 bytes behind its last tensor, expected none"),
    "a byte behind": (lambda e: e.data.extend(b"x"), "has 1 bytes behind its last tensor, expected none"),
    "padding cut": (
        lambda e: e.data.__delitem__(slice(-1, None)),
        "ends 1 bytes before the end of its last tensor's padding",
    ),
    "no padding": (
        lambda e: e.data.__delitem__(slice(-32, None)),
        "ends 32 bytes before the end of its last tensor's padding",
    ),
    "padding of the header": (set_header_end, "the padding behind the header has bytes that are not 0"),
    "padding between tensors": (
        lambda e: e.data.__setitem__(e.tensor(SCALE).offset + 4, 1),  # It has one number.
        f"the padding behind tensor '{SCALE}' has bytes that are not 0",
    ),
    "padding at the end": (set_data(-1, 255), "the padding behind tensor 'blk.0.attn_q.bias.dq_dense' has bytes"),
    # --- 6: numbers
    "nan scale": (set_scale(SCALE, float("nan")), f"'{SCALE}' has 1 numbers that are NaN or infinite"),
    "infinite cscale": (set_scale("blk.0.attn_k.weight.dq_cscale", float("-inf")), "dq_cscale' has 1 numbers"),
    **{
        f"{value} in {name}": (set_number(name, kind, value), f"'{name}' has 1 numbers that are NaN or infinite")
        for name, kind in FLOATS.items()
        for value in ("nan", "inf", "-inf")
    },
    # --- 2: numbers of the metadata
    **{
        f"{value} in {key}": (set_item(key, 1, float(value)), f"'{key}' has 1 numbers that are NaN or infinite")
        for key in ("dqrelo.weight.error_delta", "dqrelo.weight.error_weight", "dqrelo.base.samples")
        for value in ("nan", "-inf")
    },
    "nan ratio": (set_field("dqrelo.ratio", math.nan, ValueType.FLOAT64), "'dqrelo.ratio' has 1 numbers"),
    "nan temperature": (set_field("general.sampling.temp", math.nan, ValueType.FLOAT32), "'general.sampling.temp' has"),
    "infinite items": (
        set_field("other.numbers", [1.0, math.inf, -math.inf], ARRAY, ValueType.FLOAT64),
        "'other.numbers' has 2 numbers",
    ),
    "bool 255": (set_bytes(ValueType.BOOL, b"\xff"), "'other.flag' has a BOOL of 255, expected 0 or 1"),
}

# Options that are no JSON object of text and finite numbers, and such that are one.
BAD_OPTIONS = {
    "no JSON": "--ratio 1/8",
    "empty": "",
    "a list": "[]",
    "a scalar": "1",
    "space in front": ' {"a": 1}',
    "BOM": '\ufeff{"a": 1}',
    "cut": "{",
    "cut in a string": '{"a',
    "cut behind a member": '{"a": 1,',
    "text behind": '{"a": 1} x',
    "two objects": "{}{}",
    "comma at the end": '{"a": 1,}',
    "comma at the list's end": '{"a": [1,]}',
    "no comma": '{"a": 1 "b": 2}',
    "no colon": '{"a" 1}',
    "a number as name": "{1: 1}",
    "no quotes": "{a: 1}",
    "single quotes": "{'a': 1}",
    "wrong bracket": '{"a": [1}]',
    "a comment": '{"a": 1 /* b */}',
    "a large integer": '{"a": ' + "9" * 5000 + "}",
    "an integer over a double": '{"a": ' + "9" * 400 + "}",
    "a float over a double": '{"a": 1e999}',
    "NaN": '{"a": NaN}',
    "Infinity": '{"a": -Infinity}',
    "zero in front": '{"a": 01}',
    "plus in front": '{"a": +1}',
    "minus alone": '{"a": -}',
    "no digits in front": '{"a": .5}',
    "no digits behind": '{"a": 1.}',
    "no exponent": '{"a": 1e}',
    "hexadecimal": '{"a": 0x10}',
    "other digits": '{"a": \u0661}',
    "half of a pair": '{"a": "\\ud800"}',
    "half of a pair and a letter": '{"a": "\\ud800\\u0041"}',
    "the other half": '{"\\udc00": 1}',
    "a short escape": '{"a": "\\u12"}',
    "an unknown escape": '{"a": "\\x41"}',
    "an escaped newline": '{"a": "\\\n"}',
    "a control": '{"a": "\t"}',
    "a word": '{"a": True}',
    "half of a word": '{"a": nul}',
    "33 levels": '{"a": ' * 33 + "1" + "}" * 33,
    "33 mixed levels": '{"a": ' + "[" * 32 + "]" * 32 + "}",
    "deep": '{"a": ' * 20000 + "1" + "}" * 20000,
    "deep lists": '{"a": ' + "[" * 100000,
}
GOOD_OPTIONS = {
    "nothing": "{}",
    "space": '{ \t\r\n"a" : [ ] , "b" : { } } \n',
    "every kind": '{"a": null, "b": [true, false, "x", {"c": []}], "": ""}',
    "numbers": '{"a": [0, -0, -1.5e-3, 1E+30, 0.0, 123456789012345678901234567890, 1e-999]}',
    "escapes": '{"a": "\\" \\\\ \\/ \\b\\f\\n\\r\\t \\u00e9 \\uD83D\\uDE00 \\u0000"}',
    "characters": '{"é日\U0001f600": "\x7f\u2028"}',
    "a name twice": '{"a": 1, "a": 2}',
    "32 levels": '{"a": ' * 32 + "1" + "}" * 32,
    "32 mixed levels": '{"a": ' + "[" * 31 + "]" * 31 + "}",
}
MALFORMED |= {
    f"options: {name}": (set_field("dqrelo.options", text, STRING), "dqrelo.options is not a JSON object")
    for name, text in BAD_OPTIONS.items()
}

# Sampling defaults that no sampler can have: the key, the value, its type, what is said.
SAMPLING: dict[str, tuple[str, Any, ValueType, str]] = {
    "negative": ("min_p", -0.5, ValueType.FLOAT32, "is -0.5, expected a number from 0 to 1"),
    "over one": ("top_p", 1.0001, ValueType.FLOAT64, "is 1.0001, expected a number from 0 to 1"),
    "memory": (
        "penalty_last_n",
        2**31 - 1,
        ValueType.INT32,
        r"is 2.14748e\+09, expected a number from -1 to 1.04858e\+06",
    ),
    "division": ("penalty_repeat", 0.0, ValueType.FLOAT32, "is 0, expected a number from 0.001 to 1000"),
    "64 bits": ("top_k", 2**64 - 1, ValueType.UINT64, r"is 1.84467e\+19, expected a number from -1 to 1e\+09"),
    "text": ("top_k", "many\nlines", STRING, "has type STRING, expected a number"),
    "bool": ("temp", True, ValueType.BOOL, "has type BOOL, expected a number"),
    "sequence": ("sequence", ";".join(["top_k"] * 100000), STRING, "has 100000 samplers, expected at most 32"),
    "a number as sequence": ("sequence", 1, U32, "has type UINT32, expected STRING"),
}
MALFORMED |= {
    f"sampling: {name}": (
        set_field(f"general.sampling.{key}", value, value_type),
        f"'general.sampling.{key}' {message}",
    )
    for name, (key, value, value_type, message) in SAMPLING.items()
}
MALFORMED["sampling: a list"] = (
    set_field("general.sampling.temp", [0.5], ARRAY, ValueType.FLOAT32),
    r"'general.sampling.temp' has type \[FLOAT32\], expected a number",
)

RANKS = "dqrelo.weight.plane_ranks"  # eight a weight; EMBD is weight 0, Q is weight 1
CODES = f"{EMBD}.dq_vsign"

# The same for the fixture small_delta_2.
MALFORMED_2: dict[str, tuple[Edit, str]] = {
    "no plane ranks": (drop_field(RANKS), f"'{RANKS}' is missing"),
    "plane ranks' type": (set_field(RANKS, [0] * 56, ARRAY, ValueType.UINT64), r"type \[UINT64\], expected \[UINT32\]"),
    "short plane ranks": (lambda e: e.fields[RANKS].value.pop(), "has 55 items, expected 56"),
    "codes in version 1": (set_field("dqrelo.version", 1, U32), f"'{RANKS}' belongs to version 2"),
    "ascending": (set_item(RANKS, 0, 1), "token_embd.weight: plane ranks 1, 5, 3 do not descend"),
    "a hole": (set_item(RANKS, 1, 0), "token_embd.weight: plane ranks 16, 0, 3 do not descend"),
    "plane rank over the shape": (
        set_item(RANKS, 0, 48),
        "token_embd.weight: plane rank 48, expected at most 40, the smaller side of 64x40",
    ),
    "odd codes": (set_item(RANKS, 0, 17), "token_embd.weight: 25 codes, expected a multiple of 8"),
    "too many codes": (
        lambda e: e.fields[RANKS].value.__setitem__(slice(0, 8), [40, 40, 40, 40, 40, 40, 40, 40]),
        "token_embd.weight: 320 codes, expected at most 160, four times the smaller side of 64x40",
    ),
    "largest codes": (
        lambda e: e.fields[RANKS].value.__setitem__(slice(0, 8), [(1 << 32) - 1] * 8),
        "token_embd.weight: plane rank 4294967295, expected at most 40",
    ),
    "other plane ranks": (set_item(RANKS, 0, 24), f"'{CODES}' has shape 8x24, expected 8x32"),
    "codes missing": (
        lambda e: e.fields[RANKS].value.__setitem__(slice(0, 8), [0] * 8),
        f"tensor '{EMBD}.dq_dense' is missing",
    ),
    "codes of a dense weight": (set_item(RANKS, 6 * 8, 8), "2 or 3 dimensions"),
    "vscale missing": (drop_tensor(f"{EMBD}.dq_vscale"), f"tensor '{EMBD}.dq_vscale' is missing"),
    "usign missing": (drop_tensor(f"{EMBD}.dq_usign"), f"tensor '{EMBD}.dq_usign' is missing"),
    "uscale missing": (drop_tensor(f"{EMBD}.dq_uscale"), f"tensor '{EMBD}.dq_uscale' is missing"),
    "codes' declared type": (set_item("dqrelo.tensor.types", 0, "DQ_SIGN"), "is declared DQ_SIGN, expected DQ_VSIGN"),
    "codes' logical shape": (set_item("dqrelo.tensor.ne", 0, 8), "is declared with shape 8x24x1x1, expected 64x24x1x1"),
    "scale's type": (
        set_tensor(f"{EMBD}.dq_vscale", type_id=int(Type.F16)),
        f"'{EMBD}.dq_vscale' is stored as f16, expected bf16",
    ),
    **{
        f"{value} in {name}": (set_number(name, "bf16", value), f"'{name}' has 1 numbers that are NaN or infinite")
        for name in (f"{EMBD}.dq_vscale", f"{Q}.dq_uscale")
        for value in ("nan", "inf", "-inf")
    },
}

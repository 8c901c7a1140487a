"""bench/traffic.py: the bytes that a step reads."""

from __future__ import annotations

from pathlib import Path

from dqrelo_gguf.bench.traffic import Traffic
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.file.model_file import ModelFile
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.delta_files import Type, write_base, write_delta

# Name, shape and type; an element of F16 has 2 bytes, of F32 4, 32 of Q8_0 have 34, 32 of Q4_0 18.
COUNTED: list[tuple[str, tuple[int, ...], Type]] = [
    ("token_embd.weight", (64, 40), Type.Q8_0),  # 2720 bytes
    ("position_embd.weight", (64, 100), Type.F32),  # Only a row of it is read.
    ("blk.0.attn_norm.weight", (64,), Type.F32),  # 256 bytes
    ("blk.0.attn_q.weight", (64, 48), Type.F16),  # 6144 bytes
    ("blk.0.ffn_up_exps.weight", (64, 4, 8), Type.Q4_0),  # 1152 bytes for 8 experts
    ("blk.0.nextn.eh_proj.weight", (64, 64), Type.F16),  # 8192 bytes, in a layer that no graph has
]
OUTPUT = ("output.weight", (64, 40), Type.F16)  # 5120 bytes
EXPERTS = {
    "llama.expert_count": GGUFValue(8, ValueType.UINT32),
    "llama.expert_used_count": GGUFValue(2, ValueType.UINT32),
}


def test_bytes_of_a_token_are_those_of_the_weights_it_reads(tmp_path: Path) -> None:
    untied = ModelFile(write_base(tmp_path / "untied.gguf", tensors=[*COUNTED, OUTPUT], fields=EXPERTS))
    counted = Traffic(untied, {"blk.0.nextn.eh_proj.weight"})
    assert counted.of_base() == 256 + 6144 + 1152 // 4 + 5120
    assert counted.of_base(3) == 256 + 6144 + 1152 * 3 // 4 + 5120
    assert counted.of_base(16) == 256 + 6144 + 1152 + 5120
    assert Traffic(untied).of_base() == counted.of_base() + 8192
    tied = ModelFile(write_base(tmp_path / "tied.gguf", tensors=COUNTED[:5]))
    assert Traffic(tied).of_base() == 256 + 6144 + 1152 + 2720  # Without counts, all experts are read.


def test_bytes_of_a_delta_follow_its_base(tmp_path: Path) -> None:
    # A row has 8 bytes of signs and 4 of scale, and the factors have 2 (64 + n_out).
    specs = [
        WeightSpec("token_embd.weight", (64, 40), rank=1),  # 320 + 4 + 208 bytes
        WeightSpec("blk.0.attn_q.weight", (64, 48)),  # 384 + 4 bytes
        WeightSpec("blk.0.ffn_up_exps.weight", (64, 4, 8)),  # 256 + 8 * 4 bytes
        WeightSpec.dense("blk.0.attn_norm.weight", (64,)),  # 256 bytes
    ]
    write_delta(tmp_path / "a.dq.gguf", specs)
    reader = DeltaReader(tmp_path / "a.dq.gguf")
    untied = ModelFile(write_base(tmp_path / "untied.gguf", tensors=[*COUNTED, OUTPUT], fields=EXPERTS))
    tied = ModelFile(write_base(tmp_path / "tied.gguf", tensors=COUNTED, fields=EXPERTS))
    assert Traffic(untied).of_delta(reader) == 388 + 288 // 4 + 256
    assert Traffic(tied).of_delta(reader, 2) == 532 + 388 + 288 // 2 + 256
    assert Traffic(tied, {"blk.0.attn_q.weight"}).of_delta(reader, 4) == reader.n_bytes - 388

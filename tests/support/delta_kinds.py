"""The forms that the weights of a delta have, by name."""

from __future__ import annotations

from dqrelo_gguf._pin import gguf
from tests.support.exact_delta import Kind

Type = gguf.GGMLQuantizationType

KINDS = {
    "two planes": Kind(n_planes=2, rank=0),
    "scales a row": Kind(row_scales=True, factors=Type.F16),
    "scales a column": Kind(column_scales=True, factors=Type.BF16),
    "everything": Kind(n_planes=2, rank=32, row_scales=True, column_scales=True, factors=Type.Q8_0),
    "sign factors, no planes": Kind(n_planes=0, factors=Type.F16, code_ranks=(8,)),
    "sign factors, a plane, scales a column": Kind(rank=0, column_scales=True, code_ranks=(16, 11, 5)),
    "sparse, F8 by lists": Kind(entries="F8"),
    "sparse, F16 by a mask": Kind(entries="F16", has_mask=True),
}

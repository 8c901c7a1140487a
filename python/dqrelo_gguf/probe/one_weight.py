"""A delta file of one weight: how a weight is decoded that has just been compressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.file.fingerprint import BaseIdentity
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.file.metadata import DeltaMeta
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.file.weight_data import Pack, WeightData
from dqrelo_gguf.file.writer import DeltaWriter

_NO_BASE = BaseIdentity("0" * 64, (), np.empty(0, np.float32))


def write_one(path: Path, spec: WeightSpec, data: WeightData | Pack) -> npt.NDArray[np.float32]:
    """Writes a weight to a file of its own, in place of an earlier one.

    Returns:
        D_hat in the weight's numpy shape, by the reader.
    """
    meta = DeltaMeta("probe", "one", "probe", "dqrelo-convert", {}, "probe", _NO_BASE)
    with DeltaWriter(path, meta, [spec], force=True) as writer:
        writer.write(data)
    return DeltaReader(path).reconstruct(spec.name)

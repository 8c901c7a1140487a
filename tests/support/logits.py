"""Logits that two runs give for the same texts, and how far they are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dqrelo_gguf.runtime.session import Runtime

Floats: TypeAlias = npt.NDArray[np.float32]
Tokens: TypeAlias = npt.NDArray[np.int32]

TEXT = "the dog sees a cat and makes two? three dogs and five cats. 2+3=5"
OTHER = "a cat sees the five dogs"


def nmse(got: Floats, expected: Floats) -> float:
    """Squared error over squared length, of values about their mean."""
    wide = expected.astype(np.float64)
    return float(np.sum((got - wide) ** 2) / np.sum((wide - wide.mean()) ** 2))


def open_model(path: Path, n_threads: int = 1, **options: Any) -> Runtime:
    """A runtime on one thread, unless the test is about threads: these models are too small to share out."""
    return Runtime(path, n_threads=n_threads, **options)

"""The native module `dqrelo_gguf._core`. It is found and imported here, once; everything else takes `core` from here."""

from __future__ import annotations

import os
import sys

__all__ = ["core"]

_ENV = "DQRELO_CORE_DIR"

# The wheel has the native module in the package. A C++ build beside a source tree has it in a directory of its own.
if _directory := os.environ.get(_ENV):
    sys.modules["dqrelo_gguf"].__path__.append(_directory)
try:
    import dqrelo_gguf._core as core
except ImportError as error:
    raise ImportError(
        f"dqrelo_gguf._core: {error}. Install the wheel, or set {_ENV} to a C++ build's directory that has it"
    ) from error

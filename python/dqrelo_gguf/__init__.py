"""D-QReLO: fine-tunes of one GGUF base as small delta files, several of them served at once.

The names below are imported when they are first used, so that a command's --help does not wait for numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dqrelo_gguf.compress.signs import pack_signs, unpack_signs
    from dqrelo_gguf.errors import (
        BaseMismatchError,
        DiskFullError,
        DqreloError,
        FormatError,
        InputError,
        NonFiniteError,
        OutputExistsError,
        ShapeError,
    )
    from dqrelo_gguf.file.fingerprint import BaseIdentity, Match, base_identity, compare
    from dqrelo_gguf.file.layout import WeightSpec
    from dqrelo_gguf.file.metadata import DeltaMeta
    from dqrelo_gguf.file.reader import DeltaReader
    from dqrelo_gguf.file.weight_data import WeightData
    from dqrelo_gguf.file.writer import DeltaWriter
    from dqrelo_gguf.runtime.calls import ResumePoints
    from dqrelo_gguf.runtime.deltas import Delta
    from dqrelo_gguf.runtime.session import Runtime
    from dqrelo_gguf.version import __version__

__all__ = [
    "BaseIdentity",
    "BaseMismatchError",
    "Delta",
    "DeltaMeta",
    "DeltaReader",
    "DeltaWriter",
    "DiskFullError",
    "DqreloError",
    "FormatError",
    "InputError",
    "Match",
    "NonFiniteError",
    "OutputExistsError",
    "ResumePoints",
    "Runtime",
    "ShapeError",
    "WeightData",
    "WeightSpec",
    "__version__",
    "base_identity",
    "compare",
    "pack_signs",
    "unpack_signs",
]

_NAMES_OF = {
    "errors": [name for name in __all__ if name.endswith("Error")],
    "file.fingerprint": ["BaseIdentity", "Match", "base_identity", "compare"],
    "file.layout": ["WeightSpec"],
    "file.metadata": ["DeltaMeta"],
    "file.reader": ["DeltaReader"],
    "file.weight_data": ["WeightData"],
    "file.writer": ["DeltaWriter"],
    "runtime.calls": ["ResumePoints"],
    "runtime.deltas": ["Delta"],
    "runtime.session": ["Runtime"],
    "compress.signs": ["pack_signs", "unpack_signs"],
    "version": ["__version__"],
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)

"""Imports the gguf and conversion packages of the pinned llama.cpp, and no others.

PyPI's gguf carries the same version number but lacks newer tensor types, so whichever gguf happens to be installed must
not win. The wheel bundles both packages under `_vendor`; a source run takes them from the llama.cpp tree named by
DQRELO_LLAMA_CPP_DIR.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dqrelo_gguf.errors import PinError

__all__ = ["conversion_module", "conversion_script", "gguf", "lora_module"]

_VENDOR = Path(__file__).resolve().parent / "_vendor"
_ENV = "DQRELO_LLAMA_CPP_DIR"


def _roots() -> tuple[Path, Path]:
    """The directories that hold the pin's `gguf` and `conversion` packages."""
    if (_VENDOR / "gguf").is_dir():
        return _VENDOR, _VENDOR
    tree = os.environ.get(_ENV)
    if not tree:
        raise PinError(
            "gguf: the pinned package is not bundled with this copy. "
            f"Install the wheel, or set {_ENV} to a llama.cpp tree"
        )
    root = Path(tree).resolve()
    if not (root / "gguf-py" / "gguf").is_dir():
        raise PinError(f"{_ENV}={tree}: has no gguf-py/gguf, expected a llama.cpp source tree")
    return root / "gguf-py", root


def _import_from(root: Path, name: str) -> ModuleType:
    """Imports package `name`, which must lie in `root`."""
    if name not in sys.modules:
        sys.path.insert(0, str(root))
    module = importlib.import_module(name)
    found = Path(module.__file__ or "").resolve()
    if not found.is_relative_to(root):
        raise PinError(
            f"{name}: already imported from {found.parent}, expected the pinned copy in {root / name}. "
            f"Import dqrelo_gguf before {name}"
        )
    return module


def conversion_module() -> ModuleType:
    """The pin's `conversion` package (HF checkpoint to GGUF tensors). Imported late: it brings torch."""
    gguf_root, conversion_root = _roots()
    _import_from(gguf_root, "gguf")
    return _import_from(conversion_root, "conversion")


def lora_module() -> ModuleType:
    """The pin's convert_lora_to_gguf.py as a module: its pairs of factors that act as weights. Imported late: it brings torch."""
    conversion_module()
    return _import_from(_roots()[1], "convert_lora_to_gguf")


def conversion_script() -> Path:
    """The pin's convert_hf_to_gguf.py, the program."""
    return _roots()[1] / "convert_hf_to_gguf.py"


if TYPE_CHECKING:
    import gguf
else:
    gguf = _import_from(_roots()[0], "gguf")

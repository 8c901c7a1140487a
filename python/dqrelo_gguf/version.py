"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("dqrelo-gguf")
except PackageNotFoundError:  # The package runs from a source tree.
    __version__ = "0+source"

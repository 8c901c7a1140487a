"""The golden files of the format."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The golden files."""
    return Path(__file__).parents[1] / "data"

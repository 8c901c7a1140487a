"""Where calibrated conversions of tiny models go, and a text that they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.calibrations import TEXT


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.dq.gguf"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path

"""MKL's mode is set on Intel's processors alone, and never over the user's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dqrelo_gguf.compress.reproducible import ask_for_reproducible_sums


@pytest.mark.parametrize(
    ("vendor", "before", "after"),
    [
        ("GenuineIntel", None, "AUTO,STRICT"),
        ("GenuineIntel", "COMPATIBLE", "COMPATIBLE"),
        ("AuthenticAMD", None, None),
    ],
)
def test_the_mode_of_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, before: str | None, after: str | None
) -> None:
    monkeypatch.setenv("MKL_CBWR", before or "")
    if before is None:
        monkeypatch.delenv("MKL_CBWR")
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n", encoding="utf-8")
    ask_for_reproducible_sums(info)
    assert os.environ.get("MKL_CBWR") == after

"""What tests of addresses share: a cache of their own, small ranges, short pauses."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from dqrelo_gguf.address import reading, settings

RANGE_BYTES = 1000


def own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache below a folder, and no setting or credential of the user who runs the tests."""
    cache = folder / "cache"
    own = (settings.OFFLINE, settings.HUB_OFFLINE, settings.ALLOW_HTTP, settings.MAX_DOWNLOAD, settings.CACHE_MAX)
    for name in (*own, "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(settings.CACHE, str(cache / "dqrelo"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(reading, "RANGE_BYTES", RANGE_BYTES)
    monkeypatch.setattr(reading, "FIRST_PAUSE_SECONDS", 0.001)
    return cache

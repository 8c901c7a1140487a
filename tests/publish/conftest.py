"""A Hub on this machine that knows a token, and no cache of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.addresses import own_cache
from tests.support.hub_server import TOKEN, HubServer
from tests.support.web_server import serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    own_cache(tmp_path, monkeypatch)
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server = HubServer()
    with serving(server):
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server

"""A cache of its own for each test, a Hub and a web server on this machine, small ranges and short pauses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.addresses import own_cache
from tests.support.hub_server import HubServer
from tests.support.web_server import WebServer, serving


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_cache(tmp_path, monkeypatch)


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving(WebServer()) as server:
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    with serving(server):
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        yield server

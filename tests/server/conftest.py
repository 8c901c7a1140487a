"""A server with a folder of deltas, and what its deltas say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.delta_server import CONTEXT, make_folder, text
from tests.support.server_fixtures import Artefacts, Server, serve


@pytest.fixture
def delta_server(artefacts: Artefacts, tmp_path: Path) -> Iterator[Server]:
    """A server with a --deltas-dir that the test may change."""
    folder = make_folder(artefacts, tmp_path / "dir")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, "--delta-admin", *CONTEXT) as running:
        yield running


@pytest.fixture(scope="session")
def delta_texts(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each delta says to delta_server.PROMPT, by a server that has them from the start."""
    deltas = ("--delta", f"words={artefacts.words},json={artefacts.json},loud={artefacts.loud}")
    with serve(artefacts.base, tmp_path_factory.mktemp("texts"), *deltas, *CONTEXT) as running:
        return {name: text(running, name) for name in ("base", "words", "json", "loud")}

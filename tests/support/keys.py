"""A llama-server with --delta-keys, and requests under its keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from tests.support.delta_server import CONTEXT
from tests.support.server_fixtures import Artefacts, Server, serve

MASTER = "master"  # It is a key of --api-key, which is not limited.
LIMITED = {"tenant": ["words", "broken"], "guest": ["base"], "nobody": []}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ask(server: Server, method: str, path: str, key: str | None, **more: Any) -> requests.Response:
    """One request under a key; None: without one."""
    more["headers"] = (bearer(key) if key is not None else {}) | more.get("headers", {})
    return requests.request(method, server.url + path, timeout=60, **more)


def delta_names(folder: Path) -> set[str]:
    return {path.name.removesuffix(".dq.gguf") for path in folder.iterdir() if path.name.endswith(".dq.gguf")}


@contextmanager
def serve_keys(artefacts: Artefacts, deltas: Path | None, folder: Path, *more: str | Path) -> Iterator[Server]:
    """A server whose keys are MASTER and LIMITED; `deltas`: its --deltas-dir."""
    keys = folder / "keys.json"
    keys.write_text(json.dumps(LIMITED))
    options = ("--deltas-dir", deltas) if deltas else ()
    limits = ("--delta-keys", keys, "--api-key", MASTER)
    with serve(artefacts.base, folder, *options, *limits, *CONTEXT, *more) as server:
        yield server

"""A pytest plugin for upstream's server tests: local models in place of the hub's, and one delta for each of them.

It is loaded into their own pytest run (`-p offline_plugin`), so it imports nothing of this project. Settings:

LLAMA_CACHE              a cache of llama.cpp that has every model under the hub's names (upstream/hub.py makes it)
DQRELO_UPSTREAM_LOCAL    JSON: {"downloads": {url: file}, "deltas": {"repo" or "repo/file": delta}}
DQRELO_UPSTREAM_RESULTS  where a JSON line for each test goes: {"test", "outcome", "message"}
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LOCAL = json.loads(os.environ["DQRELO_UPSTREAM_LOCAL"])
RESULTS = Path(os.environ["DQRELO_UPSTREAM_RESULTS"])
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


def _refuse(url: str, out: str | None = None) -> str:  # noqa: ARG001 the name is that of wget's argument
    raise OSError(f"{url}: the tests run offline")


def _stand_in_for_wget() -> None:
    """Upstream's utils import wget for one function that goes to the network."""
    wget = types.ModuleType("wget")
    wget.download = _refuse  # type: ignore[attr-defined]
    sys.modules["wget"] = wget


def _keep_offline() -> None:
    """No name but this machine's is looked up, so that a test which needs the hub fails alike everywhere."""
    lookup = socket.getaddrinfo

    def local_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in LOOPBACK:
            raise socket.gaierror(f"{host}: the tests run offline")
        return lookup(host, *args, **kwargs)

    socket.getaddrinfo = local_lookup


def _download(url: str, output_file_path: str | None = None) -> str:  # noqa: ARG001 upstream's signature
    found: str = LOCAL["downloads"].get(url) or _refuse(url)
    return found


def _started_with_a_delta(start: Callable[..., None]) -> Callable[..., None]:
    """The same start, offline, and with the delta of the server's model where there is one."""

    def start_server(server: Any, *args: Any, **kwargs: Any) -> None:
        server.offline = True
        repo, file = (server.model_hf_repo or "").split(":")[0], server.model_hf_file
        delta = LOCAL["deltas"].get(f"{repo}/{file}" if file else repo)
        # The server takes options from its environment too.
        added = {"LLAMA_ARG_DELTA": f"tuned={delta}", "LLAMA_ARG_DELTA_UNKNOWN": "base"} if delta else {}
        os.environ.update(added)
        try:
            start(server, *args, **kwargs)
        finally:
            for key in added:
                del os.environ[key]

    return start_server


_stand_in_for_wget()  # This runs before upstream's conftest is imported.


def pytest_configure() -> None:
    _keep_offline()
    utils = importlib.import_module("utils")
    utils.ServerPreset.load_all = staticmethod(lambda: None)  # type: ignore[attr-defined] nothing to download
    utils.ServerProcess.start = _started_with_a_delta(utils.ServerProcess.start)  # type: ignore[attr-defined]
    utils.download_file = _download  # type: ignore[attr-defined]
    Path(utils.TMP_DIR).mkdir(exist_ok=True)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Writes a test's outcome; a test whose set-up or tear-down failed has failed."""
    if report.when == "call" or report.outcome != "passed":
        message = "" if report.passed else str(report.longreprtext).strip().rsplit("\n", 1)[-1]
        if report.skipped:
            message = str(report.longrepr)
        with RESULTS.open("a") as out:
            json.dump({"test": report.nodeid, "outcome": report.outcome, "message": message}, out)
            out.write("\n")

"""The way to a Ray cluster: one that runs, or one of this machine alone that ends with the conversion."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from dqrelo_gguf.compress.blocks import n_cores
from dqrelo_gguf.errors import InputError, printable

OPTION = "--ray"
# A cluster that runs on this machine or that RAY_ADDRESS names; else one of this machine alone.
AUTO = "auto"
# One of this machine alone, in any case.
LOCAL = "local"
CONNECT_SECONDS = 30
# Of a cluster of this machine alone: for packs that wait to be written.
_STORE_BYTES = 512 << 20
_ADDRESS = re.compile(r"[A-Za-z0-9_.:\[\]-]+:[0-9]{1,5}")
_ENV = "RAY_ADDRESS"

# Ray itself tries for two minutes, writes to stderr meanwhile, and then ends the process: so another process tries first.
_PROBE = """
import json, sys
import ray
try:
    ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
    found = {"ok": True}
except ConnectionError as e:
    found = {"none": True, "reason": str(e)}
except (Exception, SystemExit) as e:
    found = {"reason": str(e) or type(e).__name__}
print("\\n" + json.dumps(found), flush=True)
"""


def import_ray() -> ModuleType:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report the use of it over the network.
    try:
        return importlib.import_module("ray")
    except ImportError as e:
        raise InputError(
            f"{OPTION}: needs the package ray ({e}). Install it with: pip install 'dqrelo-gguf[ray]'"
        ) from e


@contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """Ray, connected to a cluster; at the end the connection is closed, and a cluster that was started ends.

    Args:
        address: HOST:PORT of a cluster of which this machine is a part, AUTO or LOCAL.

    Raises:
        InputError: there is no Ray, or the cluster does not answer.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray  # The caller's own connection.
        return
    found = address if address == LOCAL else _reachable(address)
    try:
        with _own_signals():
            _init(ray, found)
        yield ray
    finally:
        ray.shutdown()


def _init(ray: ModuleType, address: str) -> None:
    own: dict[str, Any] = {}
    if address == LOCAL:
        own = {"num_cpus": n_cores(), "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **own)
    except Exception as e:
        raise InputError(f"{OPTION} {address}: {_line(str(e))}") from e
    except SystemExit as e:  # Ray's own way out when its processes do not answer.
        raise InputError(f"{OPTION} {address}: Ray did not start, its log is in /tmp/ray/session_latest/logs") from e


def _reachable(address: str) -> str:
    """The address, once it has answered; LOCAL where none is given and no cluster runs.

    Raises:
        InputError: it does not answer in time.
    """
    if address != AUTO and not _ADDRESS.fullmatch(address):
        raise InputError(
            f"{OPTION} {printable(address)}: is no address, expected HOST:PORT, {AUTO} or {LOCAL}. Give it after the inputs, "
            f"or as {OPTION}=HOST:PORT"
        )
    named = os.environ.get(_ENV, "") if address == AUTO else ""
    label = f"{OPTION} {address}" + (f" ({_ENV} is {printable(named)})" if named else "")
    try:
        made = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            timeout=CONNECT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{label}: no Ray cluster answers within {CONNECT_SECONDS} s. Is it running there ('ray status'), with this "
            "version of Ray?"
        ) from None
    lines = made.stdout.decode(errors="replace").strip().splitlines()
    found = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {"reason": f"exit code {made.returncode}"}
    if found.get("ok"):
        return address
    if found.get("none") and address == AUTO and not named:
        return LOCAL
    raise InputError(f"{label}: {_line(str(found.get('reason')))}")


def _line(text: str) -> str:
    return printable(text)[:300]


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keeps the handler of SIGTERM, which Ray replaces: what is half-written must be removed (cli/__init__.py)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

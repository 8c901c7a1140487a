"""`--load-from` of dqrelo-server: which addresses clients may load, and the process beside llama-server that fetches them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dqrelo_gguf.address.reach import prefix_of
from dqrelo_gguf.errors import InputError, shown

HELP = """--load-from PREFIX        deltas below PREFIX may be loaded by address over HTTP, such as hf://owner/ or https://host/folder/;
                          may be repeated, or comma-separated (default: none)
--load-max-size GiB       the largest file that is fetched so (default: 16)
--load-timeout SECONDS    how long fetching one may take (default: 600)
"""
# Where llama-server finds its end of the pair of sockets, and how many seconds an answer may take (cpp/server/delta-resolver.cpp).
CHANNEL = "DQRELO_RESOLVER"

_FROM, _SIZE, _TIMEOUT = "--load-from", "--load-max-size", "--load-timeout"
_VARIABLES = {_FROM: "LLAMA_ARG_LOAD_FROM", _SIZE: "LLAMA_ARG_LOAD_MAX_SIZE", _TIMEOUT: "LLAMA_ARG_LOAD_TIMEOUT"}
_MOST = {_SIZE: 1 << 20, _TIMEOUT: 86400}


@dataclass(frozen=True)
class Loading:
    """What clients may load.

    Args:
        prefixes: of addresses, checked.
        max_gib: the largest file.
        timeout_seconds: for one address.
    """

    prefixes: tuple[str, ...]
    max_gib: int = 16
    timeout_seconds: int = 600


def take_loading(args: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], Loading | None]:
    """Takes these options out of llama-server's arguments.

    Args:
        args: llama-server's arguments.
        environment: has the same options as variables, which count where the arguments have none.

    Returns:
        The arguments that are left, and what may be loaded; None where nothing may.

    Raises:
        InputError: an option has no value, or one that makes no sense.
    """
    left: list[str] = []
    given: dict[str, list[str]] = {}
    remaining = iter(args)
    for arg in remaining:
        if arg not in _VARIABLES:
            left.append(arg)
            continue
        value = next(remaining, None)
        if value is None:
            raise InputError(f"{arg}: expected a value behind it")
        given.setdefault(arg, []).append(value)
    for option, variable in _VARIABLES.items():
        if option not in given and environment.get(variable):
            given[option] = [environment[variable]]
    prefixes = tuple(prefix for value in given.get(_FROM, []) for prefix in value.split(","))
    for prefix in prefixes:
        prefix_of(prefix)
    numbers = {option: _number(option, given[option][-1]) for option in _MOST if option in given}
    if not prefixes:
        return left, None
    return left, Loading(prefixes, numbers.get(_SIZE, Loading.max_gib), numbers.get(_TIMEOUT, Loading.timeout_seconds))


def _number(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10) or not 1 <= int(text) <= _MOST[option]:
        raise InputError(f"{option} {shown(text)}: expected a whole number from 1 to {_MOST[option]}")
    return int(text)


def start_resolver(loading: Loading) -> str:
    """Starts the process that fetches addresses. It ends when this process does, or the program that takes this process over.

    Returns:
        The value of CHANNEL for llama-server, which inherits the socket.

    Raises:
        InputError: this system cannot.
    """
    if os.name == "nt":
        raise InputError(f"{_FROM}: is not there on Windows, where no socket can be handed to another process so")
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-P", "-m", "dqrelo_gguf.address.resolver"]
        options = [str(theirs.fileno()), str(loading.timeout_seconds), str(loading.max_gib), *loading.prefixes]
        # In a session of its own: Ctrl-C is for the server, which then lets requests finish.
        subprocess.Popen(
            [*command, *options], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
        )
    ours.set_inheritable(True)
    return f"{ours.detach()}:{loading.timeout_seconds}"

"""What a fleet is told: `serve run ... base=base.gguf deltas=DIR replicas=3`, or the same as `args` in a Serve config file."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dqrelo_gguf.errors import InputError, shown
from dqrelo_gguf.integrations.fleet.placement import PLACED_SECONDS

_MAX_REPLICAS = 10_000
_WEEK_SECONDS = 7 * 24 * 3600

# What the fleet says to its servers itself, or would have no effect behind the front.
_MODELS = ("-m", "--model", "--deltas-dir", "--delta", "--blend", "--delta-memory")
_KEYS = ("--api-key", "--api-key-file", "--delta-keys", "--delta-admin", "--no-delta-admin")
_SIZES = ("-np", "--parallel", "-c", "--ctx-size", "-t", "--threads", "--shutdown-timeout", "--sleep-idle-seconds")
_ADDRESS = ("--host", "--port", "--api-prefix", "--ssl-key-file", "--ssl-cert-file", "--path")
_TAKEN = frozenset(_MODELS + _KEYS + _SIZES + _ADDRESS)


@dataclass(frozen=True)
class Arguments:
    """A fleet.

    Args:
        base: the base GGUF, on every node; or an address.
        deltas: a directory of `*.dq.gguf` on every node: the same files under the same names.
        replicas: servers; with max_replicas the fewest.
        max_replicas: servers at most; None means always `replicas`.
        fronts: deployments of the endpoint that clients reach.
        delta_memory: memory for all loaded deltas of a replica, in MiB; None is no limit.
        slots: requests that a replica computes at a time.
        context: tokens of each slot; None means what the model was trained on, over all slots.
        threads: CPU threads of a replica; None means llama.cpp's choice.
        cpus: CPUs that Ray reserves for a replica.
        gpus: GPUs that Ray reserves for a replica.
        api_key_file: keys, one a line, that may use everything.
        delta_keys: keys that may use some models (docs/security.md).
        max_body: MiB of a request's body.
        max_waiting: requests that wait in a front for a replica.
        wait_seconds: how long one waits for a replica.
        answer_seconds: how long an answer may take.
        drain_seconds: how long a replica that has to go may finish its answers.
        start_seconds: how long a replica may take to load the base.
        stats_seconds: how often replicas tell the fronts what they have in memory.
        server_args: further options of dqrelo-server.
    """

    base: str
    deltas: str
    replicas: int = 1
    max_replicas: int | None = None
    fronts: int = 1
    delta_memory: int | None = None
    slots: int = 4
    context: int | None = None
    threads: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    api_key_file: str | None = None
    delta_keys: str | None = None
    max_body: int = 16
    max_waiting: int = 512
    wait_seconds: float = 60.0
    answer_seconds: float = 3600.0
    drain_seconds: float = 600.0
    start_seconds: float = 600.0
    stats_seconds: float = 1.0
    server_args: tuple[str, ...] = ()

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Arguments:
        """From Serve's arguments: texts from a command line, numbers from a config file.

        Raises:
            InputError: a name that is none of ours, one that is missing, or a value that is none.
        """
        unknown = [name for name in values if name not in _READERS]
        if unknown:
            raise InputError(f"{shown(str(unknown[0]))} is unknown, expected some of: {', '.join(_READERS)}")
        for name, what in (("base", "a GGUF file"), ("deltas", "a directory of *.dq.gguf files")):
            if name not in values:
                raise InputError(f"{name} is missing, expected {name}=PATH, {what}")
        found = cls(**{name: _READERS[name](name, value) for name, value in values.items() if value is not None})
        if found.max_replicas is not None and found.max_replicas < found.replicas:
            raise InputError(
                f"max_replicas={found.max_replicas}: expected at least replicas, which is {found.replicas}"
            )
        return found

    @property
    def has_keys(self) -> bool:
        """Whether the servers ask for a key."""
        return self.api_key_file is not None or self.delta_keys is not None

    @property
    def budget_bytes(self) -> int | None:
        """Memory for the deltas of a replica; None is no limit."""
        return None if self.delta_memory is None else self.delta_memory << 20

    def server_command(self) -> list[str]:
        """The options of dqrelo-server, but for where it listens."""
        command = ["--model", self.base, "--deltas-dir", self.deltas, "--parallel", str(self.slots)]
        command += ["--no-delta-admin", "--no-ui"]
        for option, value in (
            ("--delta-memory", self.delta_memory),
            ("--ctx-size", None if self.context is None else self.context * self.slots),
            ("--threads", self.threads),
            ("--api-key-file", self.api_key_file),
            ("--delta-keys", self.delta_keys),
        ):
            if value is not None:
                command += [option, str(value)]
        return [*command, *self.server_args]


def _refused(name: str, value: Any, expected: str) -> InputError:
    return InputError(f"{name}={shown(str(value))}: expected {expected}")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise _refused(name, value, "a path")
    return value


def _whole(least: int, most: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,10}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _refused(name, value, f"a whole number from {least} to {most}")
        return value

    return read


def _number(least: float, most: float) -> Callable[[str, Any], float]:
    def read(name: str, value: Any) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not least <= number <= most:
            raise _refused(name, value, f"a number from {least:g} to {most:g}")
        return number

    return read


def _options(name: str, value: Any) -> tuple[str, ...]:
    """Options of the server; those that the fleet sets are refused."""
    try:
        words = shlex.split(value) if isinstance(value, str) else [str(word) for word in value]
    except (TypeError, ValueError):
        raise _refused(name, value, "options of dqrelo-server, as on a command line") from None
    taken = [word for word in words if word.partition("=")[0] in _TAKEN]
    if taken:
        raise InputError(
            f"{name}: {shown(taken[0])} is not taken here. The fleet sets it, by an argument of its own where there is one"
        )
    return tuple(words)


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "base": _text,
    "deltas": _text,
    "replicas": _whole(1, _MAX_REPLICAS),
    "max_replicas": _whole(1, _MAX_REPLICAS),
    "fronts": _whole(1, _MAX_REPLICAS),
    "delta_memory": _whole(1, 1 << 30),
    "slots": _whole(1, 256),
    "context": _whole(1, 1 << 24),
    "threads": _whole(1, 1024),
    "cpus": _number(0, 1024),
    "gpus": _number(0, 64),
    "api_key_file": _text,
    "delta_keys": _text,
    "max_body": _whole(1, 1024),
    "max_waiting": _whole(0, 100_000),
    "wait_seconds": _number(0.1, _WEEK_SECONDS),
    "answer_seconds": _number(1, _WEEK_SECONDS),
    "drain_seconds": _number(0, _WEEK_SECONDS),
    "start_seconds": _number(1, _WEEK_SECONDS),
    "stats_seconds": _number(0.1, PLACED_SECONDS / 2),  # Until then a front goes by where it sent what.
    "server_args": _options,
}

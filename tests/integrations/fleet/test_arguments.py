"""The arguments of a fleet."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.integrations.fleet.arguments import _READERS, Arguments

LEAST = {"base": "base.gguf", "deltas": "deltas"}


def test_every_argument_is_read() -> None:
    assert [field.name for field in dataclasses.fields(Arguments)] == list(_READERS)


def test_defaults() -> None:
    assert Arguments.read(LEAST) == Arguments("base.gguf", "deltas")


def test_texts_of_a_command_line_and_values_of_a_file_are_the_same() -> None:
    values = {"replicas": 3, "max_replicas": 5, "delta_memory": 64, "cpus": 0.5, "wait_seconds": 2}
    texts = {name: str(value) for name, value in values.items()}
    found = Arguments.read(LEAST | texts)
    assert found == Arguments.read(LEAST | values)
    assert (found.replicas, found.max_replicas, found.delta_memory, found.cpus) == (3, 5, 64, 0.5)
    assert Arguments.read(LEAST | {"max_replicas": None}).max_replicas is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"deltas": "d"}, "base is missing, expected base=PATH"),
        ({"base": "b"}, "deltas is missing, expected deltas=PATH"),
        (LEAST | {"replica": 3}, "replica is unknown, expected some of: base, deltas, replicas"),
        (LEAST | {"a\nb": 3}, "a?b is unknown"),
        (LEAST | {"base": ""}, "base=: expected a path"),
        (LEAST | {"base": 3}, "base=3: expected a path"),
        (LEAST | {"deltas": "a\0b"}, "deltas=a?b: expected a path"),
        (LEAST | {"replicas": "0"}, "replicas=0: expected a whole number from 1 to 10000"),
        (LEAST | {"replicas": "three"}, "replicas=three: expected a whole number"),
        (LEAST | {"replicas": "3.0"}, "replicas=3.0: expected a whole number"),
        (LEAST | {"replicas": True}, "replicas=True: expected a whole number"),
        (LEAST | {"replicas": "9" * 5000}, "expected a whole number"),
        (LEAST | {"replicas": 3, "max_replicas": 2}, "max_replicas=2: expected at least replicas, which is 3"),
        (LEAST | {"cpus": "nan"}, "cpus=nan: expected a number from 0 to 1024"),
        (LEAST | {"cpus": []}, "cpus=[]: expected a number"),
        (LEAST | {"drain_seconds": "-1"}, "drain_seconds=-1: expected a number from 0"),
        (LEAST | {"server_args": "--port 80"}, "server_args: --port is not taken here"),
        (LEAST | {"server_args": ["--api-key", "x"]}, "server_args: --api-key is not taken here"),
        (LEAST | {"server_args": "--a 'b"}, "expected options of dqrelo-server"),
        (LEAST | {"server_args": 3}, "expected options of dqrelo-server"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Arguments.read(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_of_a_server() -> None:
    given = {"delta_memory": 64, "slots": 2, "context": 512, "threads": 1, "delta_keys": "keys.json"}
    found = Arguments.read(LEAST | given | {"server_args": "--mmproj 'my tower.gguf'"})
    command = found.server_command()
    pairs = {option: command[command.index(option) + 1] for option in command if option.startswith("--")}
    assert pairs["--model"] == "base.gguf"
    assert pairs["--deltas-dir"] == "deltas"
    assert pairs["--parallel"] == "2"
    assert pairs["--ctx-size"] == "1024"
    assert pairs["--delta-memory"] == "64"
    assert pairs["--threads"] == "1"
    assert pairs["--delta-keys"] == "keys.json"
    assert "--no-delta-admin" in command
    assert command[-2:] == ["--mmproj", "my tower.gguf"]
    assert found.has_keys
    assert not Arguments.read(LEAST).has_keys

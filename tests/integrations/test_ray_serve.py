"""A fleet of servers on a local Ray cluster: one endpoint, many deltas, replicas that come, go and die."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.programs import need_program
from tests.support.ray_fleet import ANSWER_SECONDS, Fleet, FleetServer, events, running_fleet, wait_until
from tests.support.server_fixtures import serve
from tests.support.tiny_llama import Shape, Type, base_weights, write_model, write_random_delta

pytestmark = pytest.mark.slow

SHAPE = Shape(n_layer=4)
NAMES = [f"d{i}" for i in range(6)]
LIMITED, FULL = "key-of-a-team", "key-of-all"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base and six deltas, for a fleet without keys."""
    need_program("llama-server")
    folder = tmp_path_factory.mktemp("fleet")
    base = write_model(folder / "base.gguf", SHAPE, base_weights(SHAPE), Type.F16)
    (folder / "deltas").mkdir()
    for i, name in enumerate(NAMES):
        write_random_delta(folder / "deltas" / f"{name}.dq.gguf", base, SHAPE, rank=16 + i)
    return {
        "base": str(base),
        "deltas": str(folder / "deltas"),
        "delta_memory": 64,
        "slots": 4,
        "context": 256,
        "threads": 1,
        "cpus": 0.5,
        "max_body": 1,
        "server_args": "--alias base --context-shift",
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Fleet]:
    with running_fleet() as running:
        yield running


@pytest.fixture
def fleet(cluster: Fleet, arguments: dict[str, Any]) -> Fleet:
    """Three replicas, none of which has a delta or a request."""
    cluster.deploy(3, **arguments)
    wait_until(lambda: len(cluster.servers()) == 3, "three servers run")
    wait_until(cluster.is_known_to_the_front, "requests reach every server")
    return cluster


@pytest.fixture(scope="module")
def texts(arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each model says, by a server alone."""
    folder = tmp_path_factory.mktemp("alone")
    with serve(Path(arguments["base"]), folder, "--deltas-dir", arguments["deltas"], "--alias", "base") as alone:
        return {name: Fleet(alone.url, folder).text(name) for name in ("base", *NAMES)}


def spread(fleet: Fleet) -> dict[str, FleetServer]:
    """Has every delta in memory somewhere; of each server that has some, a delta that no other one has."""
    for name in NAMES:
        fleet.text(name)
    loaded = [(server, server.loaded()) for server in fleet.servers()]
    everywhere = [name for _, names in loaded for name in names]
    alone = [(server, [name for name in names if everywhere.count(name) == 1]) for server, names in loaded]
    return {names[0]: server for server, names in alone if names}


def test_the_front_answers_as_a_server_does(
    fleet: Fleet, arguments: dict[str, Any], texts: dict[str, str], tmp_path: Path
) -> None:
    assert requests.get(fleet.url + "/health", timeout=ANSWER_SECONDS).json() == {"status": "ok"}
    models = requests.get(fleet.url + "/v1/models", timeout=ANSWER_SECONDS).json()["data"]
    assert [model["id"] for model in models] == ["base", *NAMES]
    assert {name: fleet.text(name) for name in texts} == texts
    assert len(set(texts.values())) > 1
    with serve(Path(arguments["base"]), tmp_path, "--deltas-dir", arguments["deltas"], "--alias", "base") as alone:
        for path, body in (
            ("/v1/completions", {"model": "nobody", "prompt": "a"}),
            ("/v1/completions", {"model": 7, "prompt": "a"}),
            ("/v1/completions", {"model": "d0"}),
            ("/v1/nothing", {}),
        ):
            expected = requests.post(alone.url + path, json=body, timeout=ANSWER_SECONDS)
            found = requests.post(fleet.url + path, json=body, timeout=ANSWER_SECONDS)
            assert (found.status_code, found.json()) == (expected.status_code, expected.json())
            assert found.status_code >= 400
        for name in ("d1", "nobody"):
            one = f"/v1/models/{name}"
            found = requests.get(fleet.url + one, timeout=ANSWER_SECONDS)
            assert found.status_code == requests.get(alone.url + one, timeout=ANSWER_SECONDS).status_code


def test_what_must_not_pass_does_not(fleet: Fleet) -> None:
    for method, path in (("GET", "/metrics"), ("GET", "/slots"), ("GET", "/deltas"), ("POST", "/deltas/unload")):
        assert requests.request(method, fleet.url + path, timeout=ANSWER_SECONDS).status_code == 404
    body = json.dumps({"model": "base", "prompt": "a" * (1 << 20)}).encode()
    assert requests.post(fleet.url + "/v1/completions", data=body, timeout=ANSWER_SECONDS).status_code == 413
    chunks = iter([body[:1000], body[1000:]])  # Without a length that could be looked at.
    assert requests.post(fleet.url + "/v1/completions", data=chunks, timeout=ANSWER_SECONDS).status_code == 413


def test_cold_deltas_are_spread_and_stay_where_they_are(fleet: Fleet) -> None:
    for name in NAMES * 3:
        fleet.text(name)
    loaded = [server.loaded() for server in fleet.servers()]
    assert sorted(itertools.chain(*loaded)) == NAMES
    # test_placement.py has how evenly; here Ray may take another server than the first of a ranking.
    assert all(loaded)


def test_a_stream_passes_chunk_by_chunk_and_ends_with_its_client(fleet: Fleet) -> None:
    with fleet.endless("d0") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        reader = events(answer)  # Held to the end: where it is dropped, the stream ends.
        found = list(itertools.islice(reader, 20))  # It has no end, so nobody waited for that.
        assert all(chunk["choices"] for chunk in found)
        server = fleet.server_with("d0")
        assert server.running() == 1
    wait_until(lambda: server.running() == 0, "the server forgets a client that left")


def test_a_server_that_dies_fails_its_own_streams_only_and_is_replaced(fleet: Fleet) -> None:
    servers = spread(fleet)
    assert len(servers) == 3
    streams = {name: fleet.endless(name) for name in servers}
    readers = {name: events(stream) for name, stream in streams.items()}
    for reader in readers.values():
        next(reader)
    hit, *others = servers
    servers[hit].process.kill()
    last = list(readers[hit])[-1]
    assert last["error"]["code"] == 503
    assert last["error"]["type"] == "unavailable_error"
    assert "the replica ended within this answer" in last["error"]["message"]
    for name in others:
        assert all(chunk["choices"] for chunk in itertools.islice(readers[name], 200))
        streams[name].close()
    assert fleet.text(hit)
    gone = servers[hit].process.pid
    wait_until(
        lambda: len(fleet.servers()) == 3 and gone not in {server.process.pid for server in fleet.servers()},
        "another replica is there",
    )


@pytest.mark.parametrize("who", ["server", "actor"])
def test_a_request_of_which_nothing_was_answered_goes_to_another_replica(
    fleet: Fleet, texts: dict[str, str], who: str
) -> None:
    name, server = next(iter(spread(fleet).items()))
    server.process.suspend()  # It takes the request and does not answer.
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(fleet.text, name)
        time.sleep(1)
        assert not answer.done()
        (server.process if who == "server" else server.actor).kill()
        assert answer.result() == texts[name]
    wait_until(lambda: not server.process.is_running(), "the server is gone with its replica")
    assert fleet.server_with(name).process.pid != server.process.pid


def test_scaling_loses_no_request(cluster: Fleet, arguments: dict[str, Any], texts: dict[str, str]) -> None:
    cluster.deploy(2, **arguments)
    stop, failures, counts = threading.Event(), [], []

    def ask(names: Iterator[str]) -> int:
        n = 0
        while not stop.is_set():
            name = next(names)
            try:
                found = cluster.text(name)
                if n % 2:
                    with cluster.endless(name) as answer:
                        chunks = list(itertools.islice(events(answer), 30))
                        assert all(chunk["choices"] for chunk in chunks)
            except (AssertionError, requests.RequestException) as error:
                failures.append(f"{name}: {error!r}")
                break
            if found != texts[name]:
                failures.append(f"{name}: {found!r}, expected {texts[name]!r}")
            n += 1
        return n

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(ask, itertools.cycle(NAMES[i:] + NAMES[:i])) for i in range(4)]
        for replicas in (3, 1):
            cluster.deploy(replicas, **arguments)
            wait_until(lambda n=replicas: len(cluster.servers()) == n, f"{replicas} servers run")  # type: ignore[misc]
            counts.append(replicas)
            time.sleep(1)
        stop.set()
        n_asked = [worker.result() for worker in workers]
    assert not failures
    assert counts == [3, 1]
    assert min(n_asked) > 0


def test_keys_are_the_servers(cluster: Fleet, arguments: dict[str, Any], tmp_path: Path) -> None:
    keys, limited = tmp_path / "keys", tmp_path / "limited.json"
    keys.write_text(FULL + "\n")
    limited.write_text(json.dumps({LIMITED: ["d0"]}))
    cluster.deploy(1, **arguments, api_key_file=str(keys), delta_keys=str(limited))
    url = cluster.url

    def status(model: str, headers: dict[str, str]) -> int:
        body = {"model": model, "prompt": "a", "max_tokens": 1}
        answer = requests.post(url + "/v1/completions", json=body, headers=headers, timeout=ANSWER_SECONDS)
        return answer.status_code

    assert requests.get(url + "/health", timeout=ANSWER_SECONDS).status_code == 200
    assert requests.get(url + "/v1/models", timeout=ANSWER_SECONDS).status_code == 401
    full, team = {"Authorization": f"Bearer {FULL}"}, {"X-Api-Key": LIMITED}
    assert [status("d1", headers) for headers in ({}, full, team, full | team)] == [401, 200, 403, 400]
    assert status("d0", team) == 200
    models = requests.get(url + "/v1/models", headers=team, timeout=ANSWER_SECONDS).json()["data"]
    assert [model["id"] for model in models] == ["d0"]

"""What a key of --delta-keys reaches: its models, through the endpoints that keep to names, and nothing else."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.delta_server import PROMPT, error
from tests.support.keys import LIMITED, MASTER, ask, delta_names, serve_keys
from tests.support.routes import OPEN, PUBLIC, routes
from tests.support.server_fixtures import Artefacts, Server, serve


@pytest.fixture(scope="module")
def server(
    artefacts: Artefacts, delta_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, set[str]]]:
    folder = tmp_path_factory.mktemp("gate")
    options = ("--metrics", "--props", "--slot-save-path", folder, "--delta-admin")
    with serve_keys(artefacts, delta_folder, folder, *options) as running:
        yield running, delta_names(delta_folder)


def test_the_list_of_routes_is_whole() -> None:
    found = routes()
    assert len(found) > 50
    assert found > OPEN | PUBLIC


@pytest.mark.parametrize("key", LIMITED)
def test_a_limited_key_reaches_no_route_but_those_of_its_models(server: tuple[Server, set[str]], key: str) -> None:
    running, _ = server
    opened = set()
    for method, route in sorted(routes() - PUBLIC):
        path = route.replace(":id_slot", "0").replace(".+", "nothing")
        answer = ask(running, method, path, key, json={})
        if answer.status_code != 403 or "not this endpoint" not in answer.text:
            opened.add((method, route))
    assert opened <= OPEN
    # What only some modes of the server have is not there: those paths are closed before anyone looks for them.
    assert opened == OPEN


def test_a_path_that_nobody_has_is_closed(server: tuple[Server, set[str]]) -> None:
    running, _ = server
    for method, path in (("GET", "/nothing"), ("POST", "/predict"), ("PUT", "/deltas"), ("GET", "/v1/models/")):
        assert ask(running, method, path, "tenant").status_code == 403
        assert ask(running, method, path, MASTER).status_code == 404
    for path in ("//deltas/load", "/deltas/load/", "/deltas/../metrics", "/%6detrics", "/v1/completions/../../metrics"):
        assert ask(running, "GET", path, "tenant").status_code in (403, 404)


# --- names


def model_requests(name: str) -> list[tuple[str, str, dict[str, Any]]]:
    """A valid request for a model at every open endpoint that this server can serve."""
    message = [{"role": "user", "content": "a"}]
    completion = {"model": name, "prompt": PROMPT, "n_predict": 1}
    chat = {"model": name, "messages": message, "max_tokens": 1}
    responses = {"model": name, "input": "a", "max_output_tokens": 1}
    found: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", path, {"json": completion}) for path in ("/completion", "/completions", "/v1/completions")
    ]
    chats = ("/chat/completions", "/v1/chat/completions", "/v1/messages", "/apply-template")
    counts = ("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens", "/v1/messages/count_tokens")
    found += [("POST", path, {"json": chat}) for path in (*chats, *counts)]
    paths = ("/responses", "/v1/responses", "/responses/input_tokens", "/v1/responses/input_tokens")
    found += [("POST", path, {"json": responses}) for path in paths]
    found.append(("POST", "/tokenize", {"json": {"model": name, "content": "a"}}))
    found.append(("POST", "/tokenize", {"json": {"model": name, "prompt": "a"}}))
    found.append(("GET", f"/tokenizer_info?model={name}", {}))
    found.append(("POST", "/detokenize", {"json": {"model": name, "tokens": [5]}}))
    found.append(("POST", "/v1/completions", {"json": completion | {"echo": True, "logprobs": 1}}))
    found.append(("GET", f"/props?model={name}", {}))
    found.append(("GET", f"/v1/models/{name}", {}))
    return found


def test_a_key_has_what_is_written_for_it(server: tuple[Server, set[str]]) -> None:
    running, _ = server
    for key, own in (LIMITED | {MASTER: ["words", "json", "base"]}).items():
        for name in ("words", "json", "base"):
            for method, path, body in model_requests(name):
                expected = 200 if name in own else 404 if path.startswith("/v1/models/") else 403
                answer = ask(running, method, path, key, **body)
                assert answer.status_code == expected, (key, name, path, answer.text)
    for key in (None, "", "wrong"):
        for method, path, body in model_requests("words"):
            assert ask(running, method, path, key, **body).status_code == 401


def test_without_a_name_a_request_is_for_the_base(server: tuple[Server, set[str]]) -> None:
    running, _ = server
    for model in ({}, {"model": None}, {"model": ""}):
        body = model | {"prompt": PROMPT, "n_predict": 1}
        assert ask(running, "POST", "/completion", "guest", json=body).status_code == 200
        assert ask(running, "POST", "/completion", "tenant", json=body).status_code == 403
    assert ask(running, "GET", "/props", "guest").status_code == 200
    assert ask(running, "GET", "/props", "tenant").status_code == 403


def test_a_limited_key_does_not_learn_other_names(server: tuple[Server, set[str]]) -> None:
    running, names = server
    paths = [("GET", route.replace(".+", "made-up")) for method, route in routes() if method == "GET"]
    bodies = [{"model": name, "prompt": PROMPT, "n_predict": 1, "delta_scale": 2} for name in ("made-up", "broken", "")]
    bodies.append({"filename": "x.slot", "model": "made-up"})
    told = [ask(running, method, path, "tenant").text for method, path in paths]
    posts = ("/completion", "/tokenize", "/slots/0?action=restore", "/deltas/load", "/deltas/unload")
    told += [ask(running, "POST", path, "tenant", json=body).text for body in bodies for path in posts]
    for name in names - set(LIMITED["tenant"]):
        assert not [text for text in told if f"'{name}'" in text or f'"{name}"' in text or f"{name}.dq" in text], name
    assert not [text for text in told if str(running.log.parent) in text or "base.gguf" in text]
    # Whether a name exists is no different from whether it is the key's.
    answers = [
        ask(running, "POST", "/completion", "tenant", json={"model": n, "prompt": "a"}) for n in ("json", "xxxx")
    ]
    assert answers[0].status_code == answers[1].status_code == 403
    assert answers[0].text.replace("json", "xxxx") == answers[1].text


def test_lists_have_the_names_of_the_key(server: tuple[Server, set[str]]) -> None:
    running, names = server

    def listed(key: str, path: str, field: str) -> set[str]:
        return {row[field] for row in ask(running, "GET", path, key).json()["data"]}

    servable = names - {"broken"}  # A delta that failed is in no list of models.
    ask(running, "POST", "/completion", MASTER, json={"model": "broken", "prompt": "a"})
    for key, deltas, models in (
        ("tenant", {"words", "broken"}, {"words"}),
        ("guest", set(), {"base"}),
        ("nobody", set(), set()),
        (MASTER, names, servable | {"base"}),
    ):
        assert listed(key, "/deltas", "name") == deltas
        assert listed(key, "/v1/models", "id") == listed(key, "/models", "id") == models
        short = ask(running, "GET", "/v1/models", key).json()["models"]
        assert {model["name"] for model in short} == models
        for name in names | {"base"}:
            assert ask(running, "GET", f"/v1/models/{name}", key).status_code == (200 if name in models else 404)
    assert ask(running, "GET", "/deltas", "tenant").json()["bytes_max"] is None


def test_streams_that_are_kept_are_not_the_limited_keys(server: tuple[Server, set[str]]) -> None:
    """Whoever knows the name of such a stream reads it, or ends it by one of the same name."""
    running, _ = server
    headers = {"X-Conversation-Id": "talk"}
    body = {"model": "words", "prompt": PROMPT, "n_predict": 4, "stream": True}
    assert ask(running, "POST", "/completion", "tenant", json=body, headers=headers).status_code == 200
    assert ask(running, "GET", "/v1/stream?conv_id=talk", MASTER).status_code == 404
    assert ask(running, "POST", "/completion", MASTER, json=body, headers=headers).status_code == 200
    assert ask(running, "POST", "/completion", "tenant", json=body, headers=headers).status_code == 200
    assert ask(running, "GET", "/v1/stream?conv_id=talk", MASTER).status_code == 200


def test_without_deltas_the_keys_limit_the_base(artefacts: Artefacts, tmp_path: Path) -> None:
    with serve_keys(artefacts, None, tmp_path) as running:
        for key, status in (("tenant", 403), ("guest", 200), ("nobody", 403), (MASTER, 200)):
            for name in ("base", "any"):
                body = {"model": name, "prompt": "a", "n_predict": 1}
                assert ask(running, "POST", "/completion", key, json=body).status_code == status
            models = ask(running, "GET", "/v1/models", key).json()["data"]
            assert [model["id"] for model in models] == (["base"] if status == 200 else [])


def test_an_unknown_name_is_the_base_for_a_key_that_has_it(
    artefacts: Artefacts, delta_folder: Path, tmp_path: Path
) -> None:
    with serve_keys(artefacts, delta_folder, tmp_path, "--delta-unknown", "base") as running:

        def model(key: str, name: str) -> tuple[int, str | None]:
            answer = ask(running, "POST", "/completion", key, json={"model": name, "prompt": "a", "n_predict": 1})
            return answer.status_code, answer.json().get("model")

        # A delta that is not the key's is as unknown to it as one that is not there.
        assert model("guest", "json") == model("guest", "xxxx") == model("guest", "base") == (200, "base")
        assert model("tenant", "json") == model("tenant", "xxxx") == (403, None)
        assert model(MASTER, "json") == (200, "json")


def test_a_router_has_nothing_for_a_limited_key(tmp_path: Path) -> None:
    """It has no deltas, and which of its models a key may use is written nowhere."""
    (tmp_path / "models").mkdir()
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(LIMITED))
    options = ("--models-dir", tmp_path / "models", "--delta-keys", keys, "--api-key", MASTER)
    with serve(None, tmp_path, *options) as router:
        for path in ("/v1/models", "/props", "/deltas", "/models/sse"):
            assert error(ask(router, "GET", path, "tenant"), 403)
        assert error(ask(router, "POST", "/v1/completions", "tenant", json={"model": "words", "prompt": "a"}), 403)
        assert ask(router, "GET", "/v1/models", MASTER).status_code == 200


# --- credentials


def raw(server: Server, method: str, path: str, headers: list[str], body: str = "") -> int:
    """The status of a request whose header lines are sent as they are."""
    host, port = server.url.removeprefix("http://").split(":")
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    with socket.create_connection((host, int(port)), timeout=60) as s:
        s.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
        answer = b""
        while chunk := s.recv(65536):
            answer += chunk
    return int(answer.split(b" ", 2)[1])


BODY = '{"model": "json", "prompt": "a", "n_predict": 1}'
GUEST, WRONG, FULL = "Authorization: Bearer guest", "Authorization: Bearer wrong", f"Authorization: Bearer {MASTER}"


@pytest.mark.parametrize(
    "headers",
    [
        [GUEST, WRONG],
        [WRONG, GUEST],
        [GUEST, FULL],
        [FULL, GUEST],
        [FULL, FULL],
        [GUEST, GUEST],
        ["Authorization: guest", GUEST],
        ["X-Api-Key: guest", "x-api-key: guest"],
        [GUEST, GUEST, "X-Api-Key: guest"],
        ["authorization: Bearer guest", WRONG],
        [GUEST, "X-Api-Key: wrong"],
        [GUEST, f"X-Api-Key: {MASTER}"],
        ["X-Api-Key: wrong", FULL],
        ["X-Api-Key: guest", "X-Api-Key: wrong"],
        ["X-Api-Key: guest", f"x-api-key: {MASTER}"],
        ["Authorization:", "X-Api-Key: guest"],
    ],
)
def test_several_credentials_are_refused(server: tuple[Server, set[str]], headers: list[str]) -> None:
    running, _ = server
    assert raw(running, "POST", "/v1/completions", headers, BODY) == 400
    assert raw(running, "GET", "/deltas", headers) == 400
    assert raw(running, "POST", "/deltas/unload", headers, '{"name": "json"}') == 400
    assert raw(running, "GET", "/health", headers) == 200


@pytest.mark.parametrize(
    "headers",
    [
        [GUEST, "X-Api-Key: guest"],
        ["X-Api-Key: Bearer guest", GUEST],
    ],
)
def test_one_key_may_be_sent_in_both_headers(server: tuple[Server, set[str]], headers: list[str]) -> None:
    """Clients exist that send both headers; whoever reads one of them reads the same key."""
    running, _ = server
    assert raw(running, "POST", "/v1/completions", headers, BODY) == 403
    assert raw(running, "POST", "/v1/completions", headers, BODY.replace("json", "base")) == 200
    assert raw(running, "GET", "/deltas", [line.replace("guest", MASTER) for line in headers]) == 200


@pytest.mark.parametrize(
    "header",
    [
        "Authorization: Bearer guest",
        "Authorization: guest",
        "AUTHORIZATION:   Bearer guest  ",
        "X-Api-Key: guest",
        "x-api-key: Bearer guest",
    ],
)
def test_a_key_is_the_one_that_was_accepted(server: tuple[Server, set[str]], header: str) -> None:
    running, _ = server
    assert raw(running, "POST", "/v1/completions", [header], BODY) == 403
    assert raw(running, "POST", "/v1/completions", [header], BODY.replace("json", "base")) == 200


@pytest.mark.parametrize(
    "header",
    ["Authorization: bearer guest", "Authorization: Bearer guest x", "Authorization: Basic guest", "Cookie: key=guest"],
)
def test_what_is_no_key(server: tuple[Server, set[str]], header: str) -> None:
    running, _ = server
    assert raw(running, "POST", "/v1/completions", [header], BODY) == 401
    assert raw(running, "POST", "/v1/completions?api_key=guest", [], BODY) == 401


def test_a_preflight_needs_no_key_and_gets_no_data(server: tuple[Server, set[str]]) -> None:
    running, _ = server
    answer = ask(running, "OPTIONS", "/deltas", None, headers={"Origin": "https://elsewhere.example"})
    assert (answer.status_code, answer.text) == (200, "")


def test_metrics_need_a_full_key(server: tuple[Server, set[str]]) -> None:
    running, _ = server
    assert "llamacpp:delta_" in ask(running, "GET", "/metrics", MASTER).text
    assert error(ask(running, "GET", "/metrics", "tenant"), 403)

"""docs/openapi.yaml against running servers: every operation is called, every answer is one that it describes, and every bound holds."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from dqrelo_gguf.address import settings
from tests.support.delta_server import CONTEXT, PROMPT, make_folder, stream
from tests.support.fill_in import with_fill_in_tokens
from tests.support.keys import MASTER, ask, serve_keys
from tests.support.openapi import Operation, Schema, document, operations, resolved, validator
from tests.support.routes import OPEN, PUBLIC, routes
from tests.support.server_fixtures import Artefacts, Server, serve
from tests.support.web_server import Rule, Served, WebServer, serving
from tests.upstream.bert import write_bert

spec_validator = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")

# llama.cpp's routes that this project leaves as they are.
LEFT_ALONE = {
    ("POST", "/props"),
    ("POST", "/v1/chat/completions/control"),
    ("GET", "/lora-adapters"),
    ("POST", "/lora-adapters"),
    ("GET", "/slots"),
    ("POST", "/slots/:id_slot"),
    ("GET", "/v1/stream"),
    ("DELETE", "/v1/stream"),
    ("POST", "/v1/streams/lookup"),
    ("GET", "/cors-proxy"),
    ("POST", "/cors-proxy"),
    ("GET", "/tools"),
    ("POST", "/tools"),
    ("POST", "/models"),
    ("DELETE", "/models"),
    ("POST", "/models/load"),
    ("POST", "/models/unload"),
    ("GET", "/models/sse"),
}
# Statuses that no call of this file gets, and why.
NOT_CALLED = {("createTranscription", status): "needs a projector for audio" for status in (200, 403, 404, 500)}

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "a"}]
CHAT = {"messages": MESSAGES, "max_tokens": 1}
COMPLETION = {"prompt": PROMPT, "max_tokens": 1}
# What each operation is asked with besides the model.
BODIES: dict[str, dict[str, Any]] = {
    "nameBlend": {"spec": "words*0.5+loud*0.5"},
    "createChatCompletion": CHAT,
    "createCompletion": COMPLETION,
    "createLlamaCompletion": COMPLETION,
    "createResponse": {"input": "a", "max_output_tokens": 1},
    "createMessage": CHAT,
    "infill": {"input_prefix": "a", "input_suffix": "b", "n_predict": 1},
    "createTranscription": {},
    "createEmbedding": {"input": "a"},
    "rerank": {"query": "a", "documents": ["b", "c"]},
    "tokenize": {"prompt": "a b"},
    "detokenize": {"tokens": [5]},
    "applyTemplate": CHAT,
    "countChatTokens": CHAT,
    "countResponseTokens": {"input": "a"},
    "countMessageTokens": CHAT,
}
# More ways to ask, each with an answer of 200.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("createChatCompletion", {"model": "words*0.5+loud*0.5", "delta_scale": -2}),
    ("createChatCompletion", {"model": "words", "prompt_logprobs": 20, "return_token_ids": True, "logprobs": True}),
    ("createChatCompletion", {"model": "words", "stream": True}),
    ("createCompletion", {"deltas": [{"name": "words", "scale": 4}, {"name": "loud"}], "echo": True, "logprobs": 2}),
    ("createCompletion", {"model": "words", "prompt_logprobs": 1, "return_token_ids": True, "logprobs": 0}),
    ("createCompletion", {"deltas": [], "return_tokens_as_token_ids": True, "logprobs": 1, "max_tokens": 0}),
    ("createCompletion", {"model": "words", "stream": True}),
    ("tokenize", {"model": "words", "prompt": "a é", "return_token_strs": True, "add_special_tokens": False}),
    ("tokenize", {"model": None, "content": "a"}),
    ("getProps", {"model": "words*0.5+loud*0.5"}),
    ("getTokenizerInfo", {}),
    ("loadDelta", {"name": "loud", "file": None, "pin": None}),
    ("nameBlend", {"name": "two", "deltas": [{"name": "words", "scale": -4}, {"name": "loud"}], "template": "loud"}),
    ("getModel", {"model": "base"}),
    ("getModel", {"model": "two"}),
]

Calls = dict[tuple[str, int], list[tuple[Operation, requests.Response]]]


def body_for(op: Operation, name: str) -> dict[str, Any]:
    """A good request to an operation for the delta `name`."""
    if op.id in ("loadDelta", "reloadDelta", "unloadDelta", "nameBlend"):
        return {"name": name} | BODIES.get(op.id, {})
    if op.id == "loadLoraAdapter":
        return {"lora_name": name, "lora_path": f"{name}.dq.gguf", "load_inplace": True}
    if op.id == "unloadLoraAdapter":
        return {"lora_name": name}
    return {"model": name} | BODIES.get(op.id, {})


class Caller:
    """Calls operations and keeps their answers by operation and status."""

    def __init__(self) -> None:
        self.answers: Calls = defaultdict(list)

    def call(
        self, server: Server, op: Operation, body: dict[str, Any], key: str | None = None, path: str = "", **more: Any
    ) -> requests.Response:
        path = (path or op.paths[0]).replace("{model}", str(body.get("model")))
        if op.method == "GET":
            parameters = [p["name"] for p in op.spec.get("parameters", []) if p["in"] == "query"]
            more.setdefault("params", {name: body[name] for name in parameters if name in body})
        elif op.id == "createTranscription":
            more |= {"files": {"file": b"RIFF"}, "data": body}
        elif "data" not in more:
            more["json"] = body
        answer = ask(server, op.method, path, key, **more)
        self.answers[op.id, answer.status_code].append((op, answer))
        return answer


def by_id(name: str) -> Operation:
    return next(op for op in operations() if op.id == name)


@pytest.fixture(scope="module")
def folder(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_folder(artefacts, tmp_path_factory.mktemp("openapi") / "dir")
    (made / ("n" * 200 + ".dq.gguf")).symlink_to(artefacts.words)
    return made


@pytest.fixture(scope="module")
def base(artefacts: Artefacts, folder: Path) -> Path:
    """It has what /infill needs."""
    return with_fill_in_tokens(artefacts.base, folder.parent / "base.gguf")


@pytest.fixture(scope="module")
def open_server(base: Path, folder: Path) -> Iterator[Server]:
    with serve(base, folder.parent, "--deltas-dir", folder, "--delta-admin", "--metrics", *CONTEXT) as server:
        yield server


def call_open(caller: Caller, server: Server) -> None:
    """What a server without keys answers: to good requests, and to those for what is not there or cannot be served."""
    for op in operations():
        for path in op.paths:
            name = {"nameBlend": "mix"}.get(op.id, "again" if "nload" in op.id else "words")
            if name == "again":
                caller.call(server, by_id("loadDelta"), {"name": "again"})
            caller.call(server, op, body_for(op, name), path=path)
        for name in () if op.id == "nameBlend" else ("nobody",) if "nload" in op.id else ("nobody", "broken"):
            caller.call(server, op, body_for(op, name))
        if op.method == "POST":
            caller.call(server, op, {}, data=b"{", headers={"Content-Type": "application/json"})
            caller.call(server, op, {}, data=b"{}", headers={"Content-Type": "text/plain"})
            caller.call(server, op, {"model": 3, "name": 3, "lora_name": 3} | BODIES.get(op.id, {}))
    for name, body in VARIANTS:
        caller.call(server, by_id(name), body if name == "nameBlend" else BODIES.get(name, {}) | body)
    for name in ("loadDelta", "reloadDelta", "unloadDelta"):
        caller.call(server, by_id(name), {"name": "words", "if_content_hash": "0" * 64})
    caller.call(server, by_id("loadLoraAdapter"), {"lora_name": "words", "lora_path": "words.dq.gguf"})
    caller.call(server, by_id("listModels"), {})
    caller.call(server, by_id("listDeltas"), {})


def call_with_keys(caller: Caller, server: Server) -> None:
    for op in operations():
        body = body_for(op, "words")
        caller.call(server, op, body)
        caller.call(server, op, body, key="guest")
        caller.call(server, op, body, key=MASTER, headers={"X-Api-Key": "another"})
        caller.call(server, op, body, key=MASTER)


def call_by_address(caller: Caller, artefacts: Artefacts, folder: Path) -> None:
    """What only loads by address answer: the file is there, too large, not to be had, or does not come."""
    launcher = (sys.executable, "-c", "import sys; from dqrelo_gguf.cli.server import main; sys.exit(main())")
    with serving(WebServer()) as web, pytest.MonkeyPatch.context() as patch:
        patch.setenv(settings.CACHE, str(folder / "cache"))
        web.files["/sql.dq.gguf"] = Served.of(artefacts.words.read_bytes())
        web.rules += [
            Rule("/large", lambda handler: handler.plain(206, b"x", ETag='"1"', Content_Range=f"bytes 0-0/{5 << 30}")),
            Rule("/private", lambda handler: handler.plain(403, b"")),
            Rule("/silent", lambda handler: handler.rfile.read()),
        ]
        options = ("--load-from", web.url, "--load-max-size", "1", "--load-timeout", "20", "--delta-admin", *CONTEXT)
        with serve(artefacts.base, folder, *options, launcher=launcher) as server, ThreadPoolExecutor(3) as pool:
            late = [
                pool.submit(caller.call, server, by_id(name), address_body(name, f"{web.url}/silent"))
                for name in ("loadDelta", "reloadDelta", "loadLoraAdapter")
            ]
            for name in ("loadDelta", "reloadDelta", "loadLoraAdapter"):
                for path in ("sql.dq.gguf", "gone", "large", "private"):
                    caller.call(server, by_id(name), address_body(name, f"{web.url}/{path}"))
                caller.call(server, by_id(name), address_body(name, "https://elsewhere.example/x"))
            assert [answer.result(60).status_code for answer in late] == [504] * 3


def address_body(name: str, address: str) -> dict[str, Any]:
    if name == "loadLoraAdapter":
        return {"lora_name": "sql", "lora_path": address, "load_inplace": True}
    return {"name": "sql", "uri": address}


def call_while_it_ends(caller: Caller, artefacts: Artefacts, folder: Path) -> None:
    """An answer that goes on keeps the server from ending while it takes nothing new."""
    options = ("--delta", artefacts.words, "--context-shift", "--shutdown-timeout", "3", *CONTEXT)
    with serve(artefacts.base, folder, *options) as server, ThreadPoolExecutor(1) as pool:
        started = threading.Event()
        running = pool.submit(stream, server, "words", -1, started)
        assert started.wait(60)
        server.process.terminate()
        while requests.get(server.url + "/health", timeout=60).status_code == 200:
            pass
        for op in operations():
            caller.call(server, op, body_for(op, "words"))
        with pytest.raises(AssertionError, match="shutting down"):
            running.result(timeout=60)
        server.process.wait(60)  # A second signal would end it at once, with another exit code.


def call_bert(caller: Caller, op: Operation, option: str, folder: Path) -> None:
    """What only a server for this operation answers; its deltas are of another base, so none can be loaded."""
    bert = write_bert(folder.parent / f"{op.id}.gguf", is_reranker=op.id == "rerank")
    keys = ("--delta-keys", folder.parent / "keys.json", "--api-key", MASTER)
    with serve(bert, folder.parent, option, "-c", "512", "--alias", "base", "--deltas-dir", folder, *keys) as server:
        for path in op.paths:
            caller.call(server, op, body_for(op, "base"), key="guest", path=path)
        caller.call(server, op, body_for(op, "words"), key="guest")
        for name in ("words", "nobody"):
            caller.call(server, op, body_for(op, name), key=MASTER)
        caller.call(server, by_id("infill"), body_for(by_id("infill"), "base"), key=MASTER)


@pytest.fixture(scope="module")
def answers(artefacts: Artefacts, base: Path, folder: Path, open_server: Server) -> Calls:
    """All answers, by operation and status."""
    caller = Caller()
    call_open(caller, open_server)
    with serve_keys(replace(artefacts, base=base), folder, folder.parent) as server:
        call_with_keys(caller, server)
    with serve(None, folder.parent) as router:
        for op in operations():
            if 501 in op.statuses and op.spec["responses"]["501"]["$ref"].endswith("/Router"):
                caller.call(router, op, body_for(op, "words"))
    call_by_address(caller, artefacts, folder.parent)
    call_while_it_ends(caller, artefacts, folder.parent)
    for name, option in (("createEmbedding", "--embeddings"), ("rerank", "--rerank")):
        call_bert(caller, by_id(name), option, folder)
    return caller.answers


def test_the_document_is_valid_openapi() -> None:
    spec_validator.validate(document())


def test_the_document_has_every_route_that_is_ours_or_names_a_model() -> None:
    documented = {(op.method, path.replace("{model}", ".+")) for op in operations() for path in op.paths}
    assert documented == OPEN | PUBLIC | (routes() - LEFT_ALONE)
    assert not LEFT_ALONE - routes()


@pytest.mark.parametrize("op", operations(), ids=lambda op: op.id)
def test_answers_are_as_they_are_described(op: Operation, answers: Calls) -> None:
    found = [answer for (name, _), calls in answers.items() if name == op.id for _, answer in calls]
    assert found
    for answer in found:
        assert op.faults(answer) == [], (
            f"{answer.request.method} {answer.request.url} {answer.request.body!r}: {answer.text[:500]}"
        )


@pytest.mark.parametrize(
    ("status", "value", "fault"),
    [
        (200, {"name": "a", "state": "unloaded"}, ""),
        (200, {"name": "a", "state": "unloaded", "more": 1}, "'more' was unexpected"),
        (200, {"name": "a"}, "'state' is a required property"),
        (200, {"name": "a/b", "state": "unloaded"}, "does not match"),
        (418, {"name": "a", "state": "unloaded"}, "status 418 is not one of"),
        (404, {"error": {"code": 404, "message": "a"}}, "'type' is a required property"),
    ],
)
def test_what_is_not_described_is_a_fault(status: int, value: dict[str, Any], fault: str) -> None:
    answer = requests.Response()
    answer.status_code = status
    answer.headers["Content-Type"] = "application/json; charset=utf-8"
    answer._content = json.dumps(value).encode()
    found = by_id("unloadDelta").faults(answer)
    assert (found == []) == (fault == "")
    assert fault in " ".join(found)


def test_every_status_that_is_described_is_answered(answers: Calls) -> None:
    described = {(op.id, status) for op in operations() for status in op.statuses}
    assert described - set(answers) == set(NOT_CALLED)


def test_an_error_has_the_code_of_its_status(answers: Calls) -> None:
    errors = [answer for (_, status), calls in answers.items() if status != 200 for _, answer in calls]
    assert len(errors) > 100
    assert [a.text for a in errors if a.json()["error"]["code"] != a.status_code] == []


def test_metrics_of_deltas_are_those_of_the_document(answers: Calls) -> None:
    text = answers["getMetrics", 200][-1][1].text
    described = by_id("getMetrics").spec["x-metrics"]
    for scope in ("delta", "deltas"):
        found = dict(re.findall(rf"^# TYPE llamacpp:{scope}_(\w+) (\w+)$", text, re.MULTILINE))
        assert found == {name: metric["type"] for name, metric in described.items()}


# --- the bounds of requests

# Operations whose fields this project reads itself, and those of their fields that llama.cpp reads.
BOUNDED = (
    "loadDelta",
    "reloadDelta",
    "unloadDelta",
    "nameBlend",
    "loadLoraAdapter",
    "unloadLoraAdapter",
    "createChatCompletion",
    "createCompletion",
    "tokenize",
)
LLAMA_CPPS = {"messages", "prompt", "stream", "content"}
ODD_TEXTS = (
    "",
    ".a",
    "a/b",
    "a\\b",
    "a\nb",
    'a"b',
    "a'b",
    "../a",
    "a/../b",
    "a/.b",
    "/a",
    "a",
    "a*1e3",
    "a*1+b",
    "*1",
    "a*1++b*1",
    "a*1+a*",
    "a\x7f",
    "hf://owner/repo",
    "hf://owner\nrepo",
    "://",
)


def fields(schema: Schema) -> dict[str, Schema]:
    """The properties of a request, also those that it has from other schemas."""
    found = {}
    for part in schema.get("allOf", []):
        found |= fields(resolved(part))
    return found | schema.get("properties", {})


def odd_values(schema: Schema) -> list[Any]:
    """Values around every bound that a schema states, and some of other types."""
    schema = resolved(schema)
    found: list[Any] = [{"odd": True}, [1], True, "text", 0, 1.5, None, *ODD_TEXTS]
    for part in schema.get("anyOf", []):
        found += odd_values(part)
    for bound in ("minimum", "maximum"):
        if bound in schema:
            found += [schema[bound] - 1, schema[bound], schema[bound] + 1, 1e30]
    if "maxLength" in schema:
        found += ["n" * schema["maxLength"], "n" * (schema["maxLength"] + 1), "a*0." + "0" * schema["maxLength"]]
    if "maxItems" in schema:
        found += [[{"name": f"d{i}"} for i in range(n)] for n in (0, 1, schema["maxItems"], schema["maxItems"] + 1)]
    if "items" in schema:
        item = resolved(schema["items"])
        found += [[{"name": "words", name: value}] for name, part in fields(item).items() for value in odd_values(part)]
    return found


@pytest.mark.parametrize("name", BOUNDED)
def test_a_request_beyond_a_bound_is_refused_and_one_within_is_not(open_server: Server, name: str) -> None:
    op = by_id(name)
    schema = validator(op.body)
    counts = {True: 0, False: 0}
    for field, of_field in fields(op.body).items():
        if field in LLAMA_CPPS:
            continue
        for value in odd_values(of_field):
            is_gone = field in ("name", "lora_name") or name == "unloadDelta"  # The others need words after this.
            body = body_for(op, "nobody" if is_gone else "words") | {field: value}
            if name == "nameBlend" and field == "deltas":
                del body["spec"]
            is_good = schema.is_valid(body)
            counts[is_good] += 1
            answer = Caller().call(open_server, op, body)
            assert op.faults(answer) == []
            if not is_good:
                assert answer.status_code == 400, f"{field}={value!r} got {answer.status_code}: {answer.text[:300]}"
            elif answer.status_code == 400:
                # Then another field or a name is at fault, never the form of this one.
                message = answer.json()["error"]["message"]
                assert not re.search(r"must be|expected (?!NAME)|a name has|a name does|is missing", message), (
                    f"{field}={value!r}: {message}"
                )
    assert counts[True] > 0
    assert counts[False] > 5


@pytest.mark.parametrize("name", BOUNDED)
def test_a_request_without_a_field_that_it_needs_is_refused(open_server: Server, name: str) -> None:
    op = by_id(name)
    for field in {*op.body.get("required", ())} - LLAMA_CPPS:
        body = body_for(op, "words")
        del body[field]
        assert Caller().call(open_server, op, body).status_code == 400

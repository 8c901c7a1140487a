"""Chat templates of deltas in llama-server: what a hostile one breaks is its own load, or its own request."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from dqrelo_gguf.file.container import GGUFValue, ValueType
from tests.support.delta_files import Edited
from tests.support.delta_server import CONTEXT, error, row
from tests.support.hostile_templates import HOSTILE, ON_REQUEST, QUADRATIC, WRONG
from tests.support.server_fixtures import Artefacts, Server, need_program, serve

USER = [{"role": "user", "content": "d b e a c"}]
BAD = HOSTILE | WRONG


def with_template(delta: Path, template: str, target: Path) -> Path:
    edited = Edited(delta)
    edited.fields["tokenizer.chat_template"] = GGUFValue(template, ValueType.STRING)
    return edited.save(target)


@pytest.fixture(scope="module")
def server(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose --deltas-dir has every hostile template, and three good ones."""
    folder = tmp_path_factory.mktemp("templates") / "dir"
    folder.mkdir()
    good = {"on-request": ON_REQUEST, "quadratic": QUADRATIC, "cut": "{{ 'é'[0] }}"}
    templates = {name: template for name, (template, _) in BAD.items()} | good
    for name, template in templates.items():
        with_template(artefacts.words, template, folder / f"{name}.dq.gguf")
    with serve(artefacts.base, folder.parent, "--deltas-dir", folder, *CONTEXT) as running:
        yield running


def assert_serves(server: Server) -> None:
    answer = server.post("/v1/chat/completions", {"model": "base", "messages": USER, "max_tokens": 1})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", BAD)
def test_template_fails_its_load_alone(server: Server, name: str) -> None:
    body = {"model": name, "messages": USER, "max_tokens": 1}
    message = error(server.post("/v1/chat/completions", body), 500)
    assert BAD[name][1] in message
    assert f"{name}.dq.gguf" in message
    assert "\n" not in message
    assert len(message) < 1000
    assert row(server, name)["state"] == "failed"
    assert_serves(server)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/apply-template", "/v1/messages"])
def test_template_fails_its_request_alone(server: Server, path: str) -> None:
    broken = {"model": "on-request", "messages": [{"role": "user", "content": "break"}], "max_tokens": 1}
    assert "too many values" in error(server.post(path, broken), 400)
    assert server.post(path, broken | {"messages": USER}).status_code == 200
    assert row(server, "on-request")["state"] == "loaded"
    assert_serves(server)


def test_a_request_that_nests_too_deeply_fails_alone(server: Server) -> None:
    """The template gets what the request says, as deep as it is."""
    deep = "[" * 3000 + "]" * 3000
    body = {"model": "on-request", "messages": USER, "max_tokens": 1}
    for name, value in {
        "chat_template_kwargs": '{"x": DEEP}',
        "tools": '[{"type": "function", "function": {"name": "f", "parameters": {"x": DEEP}}}]',
    }.items():
        data = json.dumps(body)[:-1] + f', "{name}": ' + value.replace("DEEP", deep) + "}"
        headers = {"Content-Type": "application/json"}
        answer = requests.post(server.url + "/v1/chat/completions", data=data, headers=headers, timeout=60)
        assert "too deeply" in error(answer, 400)
    assert_serves(server)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", '"chat_template_kwargs": {"x": DEEP}'),
        ("/v1/chat/completions", '"response_format": {"type": "json_schema", "json_schema": {"schema": DEEP}}'),
        ("/completion", '"json_schema": DEEP'),
        ("/completion", '"prompt": DEEP'),
        ("/tokenize", '"content": DEEP'),
    ],
)
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_request_of_any_depth_is_answered(server: Server, path: str, field: str, opening: str, closing: str) -> None:
    """JSON values are copied and printed recursively: 200,000 levels overflow the stack of a thread."""
    deep = opening * 200_000 + "1" + closing * 200_000
    body = (
        json.dumps({"model": "on-request", "messages": USER, "max_tokens": 1})[:-1]
        + ", "
        + field.replace("DEEP", deep)
        + "}"
    )
    answer = requests.post(server.url + path, data=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert "nests too deeply" in error(answer, 400)
    assert_serves(server)


def test_json_in_a_text_has_a_bound_too(server: Server) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[" * 200_000 + "]" * 200_000}}
    messages = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    answer = server.post("/v1/chat/completions", {"model": "on-request", "messages": messages, "max_tokens": 1})
    assert "nests too deeply" in error(answer, 400)
    assert_serves(server)


def test_a_text_may_open_what_it_does_not_close(server: Server) -> None:
    assert len(server.ask("/tokenize", content="[{" * 2000)["tokens"]) > 0


def test_long_chat_has_what_it_needs(server: Server) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"message {i}"} for i in range(1001)]
    prompt = server.ask("/apply-template", model="quadratic", messages=messages)["prompt"]
    assert prompt.count("<|user|>") == 501
    assert prompt.endswith("message 1000</s>\n")


def test_prompt_that_is_no_text_is_answered(server: Server) -> None:
    answer = server.post("/v1/chat/completions", {"model": "cut", "messages": USER, "max_tokens": 1})
    assert answer.headers["Content-Type"].startswith("application/json")
    assert_serves(server)


@pytest.mark.parametrize("program", ["llama-server", "llama-completion"])
@pytest.mark.parametrize("name", ["parentheses", "macro", "itself", "range", "text", "syntax", "raises"])
def test_program_with_the_delta_of_a_bad_template_ends_with_one_line(
    artefacts: Artefacts, tmp_path: Path, name: str, program: str
) -> None:
    template, expected = BAD[name]
    path = with_template(artefacts.words, template, tmp_path / "bad.dq.gguf")
    more = ["--port", "0"] if program == "llama-server" else ["-n", "1", "-p", "a"]
    command = [need_program(program), "-m", artefacts.base, "--delta", path, "--threads", "1", *more]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "delta 'bad'" in line]
    assert expected in lines[-1]

"""llama-server with deltas: names, templates, end tokens, errors, and the other programs that take --delta."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.programs import need_program
from tests.support.server_fixtures import Artefacts, Server, serve

MESSAGES = [{"role": "user", "content": "Put these letters in alphabetical order: x d l f a k e"}]
PROMPT = "### Question:\nPut these letters in alphabetical order: d b e a c\n### Answer:\n"
EOS = 2


@pytest.fixture(scope="module")
def server(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    deltas = ("--delta", f"words={artefacts.words},json={artefacts.json}", "--delta", artefacts.loud)
    with serve(
        artefacts.base,
        tmp_path_factory.mktemp("server"),
        *deltas,
        "--delta-verify",
        "-np",
        "2",
        "-c",
        "1024",
        "--alias",
        "tiny,small",
    ) as running:
        yield running


def chat(server: Server, model: str | None, **more: Any) -> dict[str, Any]:
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 24} | ({"model": model} if model else {}) | more
    return server.ask("/v1/chat/completions", **body)


def text(answer: dict[str, Any]) -> str:
    content: str = answer["choices"][0]["message"]["content"]
    return content


@pytest.fixture(scope="module")
def answer(server: Server) -> str:
    """What words says to MESSAGES."""
    return text(chat(server, "words"))


# --- names


def test_models_lists_base_and_deltas(server: Server, artefacts: Artefacts) -> None:
    models = {model["id"]: model for model in server.get("/v1/models")["data"]}
    assert list(models) == ["small", "words", "json", "loud"]  # llama.cpp takes the first alias in order.
    assert models["small"]["parent"] is None
    assert models["small"]["root"] == str(artefacts.base)
    assert models["words"]["parent"] == "small"
    assert models["words"]["root"] == str(artefacts.words)
    assert len(models["words"]["delta"]["content_hash"]) == 64


def test_model_picks_the_delta(server: Server, answer: str) -> None:
    words = chat(server, "words")
    assert text(words) == answer
    assert words["model"] == "words"
    assert words["choices"][0]["finish_reason"] == "stop"
    assert text(chat(server, "json")) not in (answer, text(chat(server, None)))


def test_delta_answers_like_the_merged_model(server: Server, artefacts: Artefacts, tmp_path: Path) -> None:
    with serve(artefacts.merged, tmp_path, "-c", "512") as merged:
        for model, path in (("words", "/v1/chat/completions"), ("words", "/v1/messages")):
            body = {"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 24}
            found, expected = server.ask(path, **body), merged.ask(path, **body)
            assert found.get("choices", found.get("content")) == expected.get("choices", expected.get("content"))


@pytest.mark.parametrize("name", [None, "", "tiny", "small", "base.gguf"])
def test_base_stays_reachable(server: Server, answer: str, name: str | None) -> None:
    found = chat(server, name)
    assert found["model"] == "small"
    assert text(found) != answer


def test_every_endpoint_knows_the_names(server: Server, answer: str) -> None:
    prompt = server.ask("/apply-template", model="words", messages=MESSAGES)["prompt"]
    completion = server.ask("/v1/completions", model="words", prompt=prompt, temperature=0, max_tokens=24)
    assert completion["choices"][0]["text"] == answer
    assert completion["model"] == "words"
    native = server.ask("/completion", model="words", prompt=prompt, temperature=0, n_predict=24)
    assert native["content"] == answer
    question = MESSAGES[0]["content"]
    responses = server.ask("/v1/responses", model="words", input=question, temperature=0, max_output_tokens=24)
    assert responses["output"][0]["content"][0]["text"] == answer
    assert responses["model"] == "words"
    messages = server.ask("/v1/messages", model="words", messages=MESSAGES, temperature=0, max_tokens=24)
    assert messages["content"][0]["text"] == answer
    assert messages["model"] == "words"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/completion",
        "/v1/responses",
        "/v1/messages",
        "/apply-template",
        "/v1/messages/count_tokens",
        "/v1/chat/completions/input_tokens",
    ],
)
def test_unknown_model_is_a_404_that_lists_the_names(server: Server, path: str) -> None:
    body = {"model": "nobody", "messages": MESSAGES, "prompt": PROMPT, "input": PROMPT, "max_tokens": 4}
    answer = server.post(path, body)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == 404
    assert error["type"] == "not_found_error"
    for name in ("nobody", "small", "words", "json", "loud"):
        assert f"'{name}'" in error["message"]


def test_stream_chunks_carry_the_name(server: Server, answer: str) -> None:
    body = {"model": "words", "messages": MESSAGES, "temperature": 0, "max_tokens": 24, "stream": True}
    chunks = [
        json.loads(line.removeprefix(b"data: "))
        for line in requests.post(server.url + "/v1/chat/completions", json=body, timeout=60).iter_lines()
        if line.startswith(b"data: {")
    ]
    assert {chunk["model"] for chunk in chunks} == {"words"}
    assert "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]) == answer


def test_openai_client(server: Server, answer: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["small", "words", "json", "loud"]
    found = client.chat.completions.create(model="words", messages=MESSAGES, temperature=0, max_tokens=24)
    assert found.choices[0].message.content == answer
    chunks = client.chat.completions.create(model="words", messages=MESSAGES, temperature=0, max_tokens=24, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer
    base = client.chat.completions.create(
        model="words", messages=MESSAGES, temperature=0, max_tokens=24, extra_body={"delta_scale": 0}
    )
    assert base.model == "words"
    assert base.choices[0].message.content != answer
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(model="nobody", messages=MESSAGES)


# --- scale


@pytest.mark.parametrize("scale", ["1", [1], True, 1e60])
def test_scale_must_be_a_finite_number(server: Server, scale: object) -> None:
    answer = server.post("/completion", {"model": "words", "prompt": PROMPT, "n_predict": 1, "delta_scale": scale})
    assert answer.status_code == 400
    assert "delta_scale" in answer.json()["error"]["message"]


def test_scale_of_the_base_is_refused(server: Server) -> None:
    answer = server.post("/completion", {"model": "tiny", "prompt": PROMPT, "n_predict": 1, "delta_scale": 0.5})
    assert answer.status_code == 400
    assert "delta_scale" in answer.json()["error"]["message"]


# --- templates and end tokens


def test_each_delta_has_its_chat_template(server: Server) -> None:
    models = ("tiny", "words", "loud")
    shown = {model: server.ask("/apply-template", model=model, messages=MESSAGES)["prompt"] for model in models}
    assert shown["tiny"].startswith("<|im_start|>")  # The base has none, so it has llama.cpp's default.
    assert shown["words"] == f"### Question:\n{MESSAGES[0]['content']}\n### Answer:\n"
    # {{ eos_token }} is the fine-tune's.
    assert shown["loud"] == f"<<{MESSAGES[0]['content']}| c>>"


def generate(server: Server, model: str, **more: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, "temperature": 0, "return_tokens": True, "n_predict": 24} | more
    return server.ask("/completion", model=model, **body)


def test_each_delta_ends_with_its_tokens(server: Server, artefacts: Artefacts) -> None:
    words, loud = generate(server, "words"), generate(server, "loud")
    assert words["tokens"][-1] == EOS
    assert loud["tokens"][-1] == artefacts.loud_eos
    assert loud["stop_type"] == words["stop_type"] == "eos"
    assert words["tokens"][: len(loud["tokens"])] == loud["tokens"]  # The weights are the same.


def test_ignore_eos_is_about_the_deltas_tokens(server: Server, artefacts: Artefacts) -> None:
    words = generate(server, "words", ignore_eos=True)
    assert words["stop_type"] == "limit"
    assert EOS not in words["tokens"]
    loud = generate(server, "loud", ignore_eos=True)
    assert loud["stop_type"] == "limit"
    assert artefacts.loud_eos not in loud["tokens"]


@pytest.mark.parametrize("model", ["tiny", "words", "loud"])
def test_grammar_ends_with_the_deltas_tokens(server: Server, artefacts: Artefacts, model: str) -> None:
    # `loud` states another end token than its base, so EOS is none of its; a grammar has no place for it either.
    banned = [[EOS, False]] if model == "loud" else []
    answer = generate(server, model, grammar='root ::= "q r s"', logit_bias=banned)
    assert answer["stop_type"] == "eos"
    assert answer["content"].startswith("q r s")
    assert answer["tokens"][-1] == (artefacts.loud_eos if model == "loud" else EOS)


def test_grammar_does_not_end_early(server: Server) -> None:
    answer = generate(server, "loud", grammar='root ::= "a b " [x-z] " a b"')
    assert answer["content"].startswith(("a b x a b", "a b y a b", "a b z a b"))


# --- starting


def fails(command: str, *args: str | Path) -> str:
    """Runs a program that must refuse; returns what it wrote."""
    done = subprocess.run(
        [need_program(command), *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    return done.stdout + done.stderr


def test_doubled_name_is_refused(artefacts: Artefacts) -> None:
    deltas = ("--delta", f"a={artefacts.words}", "--delta", f"a={artefacts.json}")
    said = fails("llama-server", "-m", artefacts.base, *deltas)
    assert f"the name 'a' is taken by '{artefacts.words}'" in said


def test_name_of_the_base_is_refused(artefacts: Artefacts) -> None:
    said = fails("llama-server", "-m", artefacts.base, "--alias", "a", "--delta", f"a={artefacts.words}", "--port", "0")
    assert "delta 'a': the base model has this name" in said


@pytest.mark.parametrize(("command", "option"), [("llama-server", "--port=0"), ("llama-perplexity", "-p=x")])
def test_missing_file_is_one_line(artefacts: Artefacts, tmp_path: Path, command: str, option: str) -> None:
    said = fails(command, "-m", artefacts.base, "--delta", tmp_path / "gone.dq.gguf", *option.split("="))
    assert len([line for line in said.splitlines() if "gone.dq.gguf" in line and "--delta" not in line]) == 1


def test_unknown_names_may_mean_the_base(artefacts: Artefacts, tmp_path: Path) -> None:
    with serve(artefacts.base, tmp_path, "--delta", artefacts.words, "--delta-unknown", "base", "-c", "512") as server:
        assert text(chat(server, "gpt-4o")) == text(chat(server, "base.gguf")) != text(chat(server, "words"))


def test_without_deltas_any_name_is_the_base(artefacts: Artefacts, tmp_path: Path) -> None:
    with serve(artefacts.base, tmp_path, "-c", "512") as server:
        assert text(chat(server, "gpt-4o", delta_scale="?")) == text(chat(server, None))
        assert "parent" not in server.get("/v1/models")["data"][0]


def test_embeddings_belong_to_the_delta(artefacts: Artefacts, tmp_path: Path) -> None:
    options = ("--delta", artefacts.words, "--embeddings", "--pooling", "mean", "-c", "512")
    with serve(artefacts.base, tmp_path, *options) as server:
        answers = {m: server.ask("/v1/embeddings", model=m, input="a river") for m in ("words", "base.gguf")}
        found = {model: answer["data"][0]["embedding"] for model, answer in answers.items()}
        assert found["words"] != pytest.approx(found["base.gguf"], abs=0.01)
        assert server.ask("/v1/embeddings", model="words", input="a river")["model"] == "words"
        assert server.post("/v1/embeddings", {"model": "nobody", "input": "a river"}).status_code == 404


def test_deltas_come_back_after_a_sleep(artefacts: Artefacts, tmp_path: Path) -> None:
    options = ("--delta", artefacts.words, "--sleep-idle-seconds", "1", "-c", "512")
    with serve(artefacts.base, tmp_path, *options) as server:
        before = text(chat(server, "words"))
        deadline = time.monotonic() + 20
        while not server.get("/props")["is_sleeping"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [model["id"] for model in server.get("/v1/models")["data"]] == [str(artefacts.base), "words"]
        assert text(chat(server, "words")) == before


# --- other programs


def test_perplexity_runs_a_delta(artefacts: Artefacts, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("A small animal that feeds on fish and now and then on birds.\n" * 20)

    def perplexity(*args: str | Path) -> float:
        command = [need_program("llama-perplexity"), "-f", path, "-c", "128", "-t", "1", *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        found = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
        assert found, done.stderr
        return float(found[1])

    delta = perplexity("-m", artefacts.base, "--delta", artefacts.words)
    assert delta == pytest.approx(perplexity("-m", artefacts.merged), rel=0.01)
    assert delta != pytest.approx(perplexity("-m", artefacts.base), rel=0.05)


def test_one_delta_programs_refuse_several(artefacts: Artefacts) -> None:
    said = fails("llama-perplexity", "-m", artefacts.base, "--delta", artefacts.words, "--delta", artefacts.json)
    assert "runs one delta, got 2" in said


def test_cli_runs_a_delta(artefacts: Artefacts, answer: str) -> None:
    question = ("-st", "-p", MESSAGES[0]["content"], "-c", "512", "--temp", "0", "-n", "24", "-t", "1")
    done = subprocess.run(
        [need_program("llama-cli"), "-m", artefacts.base, "--delta", artefacts.words, *question],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout

"""End tokens and named templates of deltas in every program: a list of end tokens is all of them, tools have their template."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.runtime.session import Runtime
from tests.support.delta_files import Edited
from tests.support.delta_server import CONTEXT, PROMPT, complete, error
from tests.support.server_fixtures import Artefacts, Server, need_program, serve

EOS = 2
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
USER = [{"role": "user", "content": "d b e a c"}]
DEFAULT, TOOL_USE = (
    "default:{{ messages[0].content }}",
    "{{ eos_token }}{{ tools[0].function.name }}:{{ messages[0].content }}",
)


def ending(delta: Path, target: Path, *ids: int) -> Path:
    file = Edited(delta)
    file.fields["dqrelo.end_token_ids"] = GGUFValue(list(ids), ValueType.ARRAY, ValueType.UINT32)
    return file.save(target)


def with_templates(delta: Path, target: Path, templates: dict[str, str]) -> Path:
    file = Edited(delta)
    file.fields.pop("tokenizer.chat_template", None)
    for name, template in templates.items():
        key = "tokenizer.chat_template" + (f".{name}" if name else "")
        file.fields[key] = GGUFValue(template, ValueType.STRING)
    names = [name for name in templates if name]
    if names:
        file.fields["tokenizer.chat_templates"] = GGUFValue(names, ValueType.ARRAY, ValueType.STRING)
    return file.save(target)


@pytest.fixture(scope="module")
def folder(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deltas with words' weights: their answer has the letter token before its EOS."""
    path = tmp_path_factory.mktemp("ends") / "dir"
    path.mkdir()
    letter = artefacts.loud_eos
    ending(artefacts.words, path / "both.dq.gguf", EOS, letter)
    ending(artefacts.words, path / "letter.dq.gguf", letter)
    ending(artefacts.words, path / "neither.dq.gguf", 3)
    ending(artefacts.words, path / "stranger.dq.gguf", 100000)
    with_templates(artefacts.words, path / "two.dq.gguf", {"": DEFAULT, "tool_use": TOOL_USE, "rag": "x"})
    with_templates(artefacts.words, path / "one.dq.gguf", {"": DEFAULT})
    with_templates(artefacts.words, path / "tools.dq.gguf", {"tool_use": TOOL_USE})
    with_templates(artefacts.words, path / "broken.dq.gguf", {"": DEFAULT, "tool_use": "{% if %}"})
    return path


@pytest.fixture(scope="module")
def server(artefacts: Artefacts, folder: Path) -> Iterator[Server]:
    with serve(artefacts.base, folder.parent, "--deltas-dir", folder, *CONTEXT) as running:
        yield running


def tokens_of(server: Server, model: str, **more: Any) -> list[int]:
    answer = complete(server, model, return_tokens=True, n_predict=24, **more)
    assert answer.status_code == 200, answer.text
    tokens: list[int] = answer.json()["tokens"]
    return tokens


def test_a_list_of_end_tokens_is_all_of_them(server: Server, artefacts: Artefacts) -> None:
    neither, letter = tokens_of(server, "neither"), artefacts.loud_eos
    assert EOS in neither[:-1]  # It dropped the base's end, which is text for it.
    assert len(neither) == 24
    for model in ("both", "letter"):
        tokens = tokens_of(server, model)
        assert tokens == neither[: neither.index(letter) + 1]
    assert tokens_of(server, "both", logit_bias=[[letter, False]])[-1] == EOS


def test_ignore_eos_bans_the_list(server: Server, artefacts: Artefacts) -> None:
    assert not {EOS, artefacts.loud_eos} & set(tokens_of(server, "both", ignore_eos=True))
    assert artefacts.loud_eos not in tokens_of(server, "letter", ignore_eos=True)


def test_end_token_that_the_base_lacks_is_refused(server: Server, artefacts: Artefacts, folder: Path) -> None:
    assert "'dqrelo.end_token_ids' has token 100000, but the base has" in error(complete(server, "stranger"), 500)
    with Runtime(artefacts.base, n_ctx=256, n_threads=1) as runtime, pytest.raises(DqreloError, match="token 100000"):
        runtime.load_delta(folder / "stranger.dq.gguf")


def test_end_tokens_in_python(artefacts: Artefacts, folder: Path) -> None:
    with Runtime(artefacts.base, n_ctx=256, n_threads=1) as runtime:
        texts = {}
        for name in ("neither", "letter", "both"):
            delta = runtime.load_delta(folder / f"{name}.dq.gguf")
            expected = {"neither": {3}, "letter": {artefacts.loud_eos}, "both": {EOS, artefacts.loud_eos}}[name]
            assert set(delta.eog_tokens) == expected
            texts[name] = runtime.generate(PROMPT, delta, max_tokens=24, temperature=0.0)
    assert texts["letter"] == texts["both"]
    assert texts["neither"].startswith(texts["both"])
    assert len(texts["neither"]) > len(texts["both"])


def test_end_tokens_in_llama_completion(artefacts: Artefacts, folder: Path) -> None:
    shown = {}
    for name in ("neither", "both"):
        options = ["-p", PROMPT, "-n", "24", "--temp", "0", "-no-cnv", "-t", "1", "-c", "256", "--no-display-prompt"]
        done = subprocess.run(
            [need_program("llama-completion"), "-m", artefacts.base, "--delta", folder / f"{name}.dq.gguf", *options],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        shown[name] = done.stdout.replace("[end of text]", "").strip()
    assert shown["neither"].startswith(shown["both"])
    assert len(shown["neither"]) > len(shown["both"])


def test_end_tokens_in_llama_cli(artefacts: Artefacts, folder: Path) -> None:
    shown = {}
    for name in ("neither", "both"):
        question = [
            "-st",
            "-p",
            "Put these letters in alphabetical order: d b e a c",
            "-n",
            "24",
            "--temp",
            "0",
            "-t",
            "1",
        ]
        done = subprocess.run(
            [
                need_program("llama-cli"),
                "-m",
                artefacts.base,
                "--delta",
                folder / f"{name}.dq.gguf",
                "-c",
                "512",
                *question,
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        answer = done.stdout.partition("alphabetical order: d b e a c")[2]
        shown[name] = re.sub(r"\[ Prompt.*", "", answer, flags=re.DOTALL).strip()
    assert shown["neither"].startswith(shown["both"].splitlines()[0])
    assert len(shown["neither"]) > len(shown["both"])


def prompt_of(server: Server, model: str, **more: Any) -> str:
    found: str = server.ask("/apply-template", model=model, messages=USER, **more)["prompt"]
    return found


def test_requests_with_tools_get_their_template(server: Server) -> None:
    assert prompt_of(server, "two") == "default:d b e a c"
    assert prompt_of(server, "two", tools=TOOLS).endswith("f:d b e a c")
    assert prompt_of(server, "two", tools=TOOLS).startswith("</s>")  # The special tokens are the delta's.


def test_a_delta_with_one_template_has_no_other_for_tools(server: Server) -> None:
    assert prompt_of(server, "one", tools=TOOLS).endswith("default:d b e a c")


def test_a_template_for_tools_alone_is_for_everything(server: Server) -> None:
    """So llama.cpp does it with a model's own."""
    assert prompt_of(server, "tools").endswith(":d b e a c")
    assert prompt_of(server, "tools", tools=TOOLS).endswith("f:d b e a c")


def test_template_for_tools_that_is_none_fails_its_load(server: Server) -> None:
    assert "chat template: " in error(complete(server, "broken"), 500)
    assert complete(server, "base").status_code == 200

"""Metadata of deltas that the server interprets: sampling defaults and token ids that cannot be are refused, and the server goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dqrelo_gguf.errors import BaseMismatchError, DqreloError
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.runtime.session import Runtime
from tests.support.delta_files import Edited
from tests.support.delta_server import CONTEXT, complete, error
from tests.support.malformed import SAMPLING
from tests.support.server_fixtures import Artefacts, Server, serve

I32, U32, STRING = ValueType.INT32, ValueType.UINT32, ValueType.STRING

# Keys of token ids with a token behind the base's last.
TOKENS = [f"tokenizer.ggml.{role}_token_id" for role in ("bos", "eos", "eot", "eom", "padding")]


def edited(delta: Path, key: str, value: GGUFValue, target: Path) -> Path:
    file = Edited(delta)
    file.fields[key] = value
    return file.save(target)


@pytest.fixture(scope="module")
def server(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("metadata") / "dir"
    folder.mkdir()
    for name, (key, value, value_type, _) in SAMPLING.items():
        edited(artefacts.words, f"general.sampling.{key}", GGUFValue(value, value_type), folder / f"{name}.dq.gguf")
    for key in TOKENS:
        edited(artefacts.words, key, GGUFValue(100000, U32), folder / f"{key}.dq.gguf")
    with serve(artefacts.base, folder.parent, "--deltas-dir", folder, *CONTEXT) as running:
        yield running


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_default_that_cannot_be_is_refused(server: Server, name: str) -> None:
    message = error(complete(server, name), 500)
    assert f"'general.sampling.{SAMPLING[name][0]}' " in message
    assert re.search(SAMPLING[name][3], message)
    assert "\n" not in message
    assert complete(server, "base").status_code == 200


@pytest.mark.parametrize("key", TOKENS)
def test_token_outside_of_the_vocabulary_is_refused(server: Server, key: str) -> None:
    assert f"'{key}' has token 100000, but the base has" in error(complete(server, key), 500)
    assert complete(server, "base").status_code == 200


@pytest.mark.parametrize("key", [*TOKENS, "dqrelo.token.ids"])
def test_token_outside_of_the_vocabulary_is_refused_by_the_tools(
    artefacts: Artefacts, tmp_path: Path, key: str
) -> None:
    file = Edited(artefacts.words)
    if key in TOKENS:
        file.fields[key] = GGUFValue(100000, U32)
    else:
        file.fields[key] = GGUFValue([100000], ValueType.ARRAY, U32)
        file.fields["dqrelo.token.texts"] = GGUFValue(["a"], ValueType.ARRAY, STRING)
        file.fields["dqrelo.token.types"] = GGUFValue([1], ValueType.ARRAY, I32)
    path = file.save(tmp_path / "bad.dq.gguf")
    with pytest.raises(BaseMismatchError, match=f"'{key}' has token 100000, but the base has"):
        DeltaReader(path).check_base(artefacts.base)
    if key in TOKENS:
        with (
            Runtime(artefacts.base, n_ctx=256, n_threads=1) as runtime,
            pytest.raises(DqreloError, match="has token 100000"),
        ):
            runtime.load_delta(path)


def test_token_whose_text_is_no_text_makes_a_template(artefacts: Artefacts, tmp_path: Path) -> None:
    """The piece of a byte token is a byte, not UTF-8."""
    folder = tmp_path / "dir"
    folder.mkdir()
    file = Edited(artefacts.loud)
    file.fields["tokenizer.ggml.bos_token_id"] = GGUFValue(3 + 0xFF, U32)  # The token is <0xFF>.
    file.fields["tokenizer.chat_template"] = GGUFValue("{{ bos_token }}{{ messages[0].content }}", STRING)
    file.save(folder / "byte.dq.gguf")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, *CONTEXT) as running:
        body = {"model": "byte", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        assert running.post("/v1/chat/completions", body).status_code == 200

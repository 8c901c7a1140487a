"""Is a fine-tune's vocabulary that of its base? Text decides, and special tokens and padding are the fine-tune's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.errors import DiskFullError, InputError
from dqrelo_gguf.evaluate import tuned
from dqrelo_gguf.evaluate.tuned import check_pair, end_token, runnable
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.vocabulary import token_problem
from tests.support.delta_files import Edited
from tests.support.tiny_llama import EOS
from tests.support.trio import Trio

NORMAL, CONTROL, UNUSED = (int(t) for t in (gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED))
EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny" / "ft-words"


def with_tokens(model: Path, target: Path, **changes: tuple[str, int]) -> GgufModel:
    """A model in which some tokens, t5 for number 5, have another text and type."""
    edited = Edited(model)
    for key, (text, kind) in changes.items():
        edited.fields["tokenizer.ggml.tokens"].value[int(key[1:])] = text
        edited.fields["tokenizer.ggml.token_type"].value[int(key[1:])] = kind
    return GgufModel(edited.save(target))


def cut(model: Path, target: Path, n: int) -> GgufModel:
    """A model whose list of tokens is shorter."""
    edited = Edited(model)
    for key in ("tokens", "token_type"):
        del edited.fields[f"tokenizer.ggml.{key}"].value[-n:]
    return GgufModel(edited.save(target))


def test_the_same_vocabulary(trio: Trio) -> None:
    base, own = GgufModel(trio.base), GgufModel(trio.tuned)
    check_pair(base, own)
    assert end_token(own) == EOS


def test_special_tokens_and_padding_are_the_fine_tunes_own(trio: Trio, tmp_path: Path) -> None:
    base = with_tokens(trio.base, tmp_path / "base.gguf", t300=("[PAD300]", UNUSED))
    own = with_tokens(trio.tuned, tmp_path / "own.gguf", t2=("<|im_end|>", CONTROL), t300=("<tool>", CONTROL))
    assert token_problem(base, own) is None


def test_another_text_of_a_token(trio: Trio, tmp_path: Path) -> None:
    own = with_tokens(trio.tuned, tmp_path / "own.gguf", t300=("a\nb", NORMAL))
    problem = token_problem(GgufModel(trio.base), own)
    assert problem is not None
    assert problem.startswith("token 300 is 'a b', expected '")


def test_tokens_that_the_other_lacks(trio: Trio, tmp_path: Path) -> None:
    base, shorter = GgufModel(trio.base), cut(trio.tuned, tmp_path / "own.gguf", 3)
    assert "tokens in use, expected" in str(token_problem(base, shorter))
    assert "tokens in use, expected" in str(token_problem(shorter, base))


def test_no_room_for_a_converted_one_is_found_out_first(
    trio: Trio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(tuned.shutil, "disk_usage", lambda _: Usage)
    said: list[str] = []
    too_much = pytest.raises(DiskFullError, match=r"needs \d+ bytes for the converted fine-tune, has 1000 free")
    with too_much, runnable(EXAMPLE, GgufModel(trio.base), tmp_path, said.append):
        pass
    assert "takes about" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_neither_file_nor_directory(trio: Trio, tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="expected a Hugging Face directory or a GGUF"),
        runnable(tmp_path / "none", GgufModel(trio.base), tmp_path, print),
    ):
        pass

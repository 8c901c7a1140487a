"""Windows of text: cut as llama-perplexity cuts them, a window for each text that begins and ends by itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.text import file_text, running_windows, self_text, separate_windows
from dqrelo_gguf.progress import Silent
from dqrelo_gguf.runtime.session import Runtime
from tests.support.tiny_llama import BOS, EOS


def tokens(*ids: int) -> np.ndarray:
    return np.array(ids, np.int32)


def test_running_windows_are_full_and_their_second_half_counts() -> None:
    windows = running_windows(np.arange(100, 123, dtype=np.int32), 8, 1)
    assert [w.tokens.tolist() for w in windows] == [[1, *range(101, 108)], [1, *range(109, 116)]]
    assert [w.targets.tolist() for w in windows] == [[105, 106, 107], [113, 114, 115]]
    assert [w.n_scored for w in windows] == [3, 3]
    assert running_windows(np.arange(8, dtype=np.int32), 8, None)[0].tokens[0] == 0


def test_separate_windows_count_all_but_the_first_token() -> None:
    windows, n_cut = separate_windows([tokens(1, 5, 6), tokens(1), tokens(1, 5, 6, 7, 8, 9)], 4, None)
    assert [w.targets.tolist() for w in windows] == [[5, 6], [5, 6, 7]]
    assert n_cut == 2
    assert len(separate_windows([tokens(1, 5, 6)] * 5, 4, 4)[0]) == 2


def test_a_file_is_text_after_the_start_token(text_file: Path, tuned: Runtime) -> None:
    text = file_text(text_file, tuned, 32, None, EOS)
    all_tokens = tuned.tokenize(text_file.read_text(), parse_special=False)
    assert text.sha256 == hashlib.sha256(text_file.read_bytes()).hexdigest()
    assert text.name == "text.txt"
    assert len(text.windows) == len(all_tokens) // 32
    assert text.n_cut == len(all_tokens) % 32
    assert all(w.tokens[0] == BOS for w in text.windows)
    assert (text.windows[1].tokens[1:] == all_tokens[33:64]).all()


def test_special_tokens_in_a_file_are_text(tmp_path: Path, tuned: Runtime) -> None:
    path = tmp_path / "a.txt"
    path.write_text("</s>" * 100)
    assert all(EOS not in w.tokens for w in file_text(path, tuned, 32, None, EOS).windows)


def test_tokens_bound_the_text(text_file: Path, tuned: Runtime) -> None:
    assert len(file_text(text_file, tuned, 32, 100, EOS).windows) == 3
    assert len(file_text(text_file, tuned, 32, 1, EOS).windows) == 2  # the least


def test_a_text_shorter_than_two_windows_is_refused(text_file: Path, tuned: Runtime) -> None:
    with pytest.raises(InputError, match=r"has \d+ tokens, expected at least 4000, two windows of 2000"):
        file_text(text_file, tuned, 2000, None, EOS)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.txt", b"ab\xffcd", "is not UTF-8 at byte 2"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b'{"messages": []}', "line 1: 'messages' must be a list"),
        ("a.jsonl", b"\n[1]", "line 2 is no JSON object"),
        ("a.jsonl", b"{", "line 1 is no JSON$"),
        ("a.jsonl", b"[" * 100000, "line 1 is no JSON$"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": 3}]}', "line 1: 'messages' must be"),
    ],
)
def test_what_is_no_text_is_refused(name: str, raw: bytes, message: str, tmp_path: Path, tuned: Runtime) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message):
        file_text(path, tuned, 32, None, EOS)


def test_conversations_need_a_template(tmp_path: Path, tuned: Runtime) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "the dog"}]}))
    with pytest.raises(InputError, match="has no chat template, but 'messages' need one"):
        file_text(path, tuned, 32, None, EOS)


def test_the_fine_tune_writes_the_same_text_for_a_seed(tuned: Runtime) -> None:
    first, again, other = (self_text(tuned, 24, 100, seed=seed, end=EOS, progress=Silent("", 0)) for seed in (1, 1, 2))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.name == "self"
    assert all(w.tokens[0] == BOS and len(w.tokens) <= 24 and w.first == 0 for w in first.windows)
    assert all(len(w.tokens) == 24 or w.tokens[-1] == EOS for w in first.windows)
    assert sum(len(w.tokens) for w in first.windows) >= 100

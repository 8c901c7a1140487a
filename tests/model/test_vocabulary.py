"""Fine-tunes with other vocabularies: added tokens in rows of padding, fewer and more rows, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import BaseMismatchError
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.runtime.session import Runtime
from tests.support.logits import nmse
from tests.support.models import N_VOCAB, convert_hf, edit_json, gguf, read_gguf
from tests.support.tiny_architectures import ARCHITECTURES, write_base, write_tuned
from tests.support.tiny_tokenizers import known_to_the_conversion

# Base + delta and the merged model sum the same numbers in another order.
MAX_NMSE = 1e-5
ADDED = ("<|tool|>", "<|result|>")
TEMPLATE = "{% for m in messages %}<|tool|>{{ m['content'] }}{% endfor %}"
BY_TOKEN = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(autouse=True)
def conversion() -> Iterator[None]:
    with known_to_the_conversion():
        yield


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A Qwen2 with a row for each of N_VOCAB tokens, of which the tokenizer has fewer."""
    return write_base(ARCHITECTURES["qwen2"], tmp_path / "base")


@pytest.fixture
def base(checkpoint: Path) -> Path:
    return convert_hf(checkpoint, checkpoint.with_suffix(".gguf"), "ALL_F32")


def n_tokens(path: Path) -> int:
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(path))


def add_tokens(path: Path, tokens: tuple[str, ...] = ADDED) -> list[int]:
    """Adds special tokens to a directory's tokenizer, the first one as EOS, and a chat template; returns their ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.eos_token = tokens[0]
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    ids: list[int] = tokenizer.convert_tokens_to_ids(list(tokens))
    edit_json(path / "config.json", eos_token_id=ids[0])
    return ids


def resize(path: Path, n_rows: int) -> Path:
    """What resize_token_embeddings does: rows cut, or new ones of small random numbers."""
    weights = load_file(path / "model.safetensors")
    for name in BY_TOKEN:
        rows = weights[name][:n_rows]
        new = 0.02 * torch.randn(n_rows - len(rows), rows.shape[1], generator=torch.Generator().manual_seed(0))
        weights[name] = torch.cat([rows, new.to(rows.dtype)])
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    edit_json(path / "config.json", vocab_size=n_rows)
    return path


def make(base: Path, tuned: Path, **options: Any) -> tuple[Path, Path, list[str]]:
    """The delta, the merged model, and the converter's notes."""
    delta, merged = tuned.with_suffix(".dq.gguf"), tuned.with_suffix(".merged.gguf")
    result = convert(Job(base, tuned, delta), Options(**options))
    merge(base, delta, merged, MergeOptions(out_type="f32"))
    return delta, merged, result.notes


def logits(model: Path, tokens: list[int], delta: Path | None = None) -> Any:
    with Runtime(model, n_threads=1) as rt:
        return rt.logits(tokens, None if delta is None else rt.load_delta(delta))


def test_added_tokens_take_rows_of_padding(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    tuned = write_tuned(checkpoint, tmp_path / "tuned", 1)
    ids = add_tokens(tuned)
    assert ids == [n_tokens(checkpoint) + i for i in range(len(ADDED))]
    delta, merged, notes = make(base, tuned)
    assert any(f"{len(ADDED)} tokens have another text" in note and ADDED[0] in note for note in notes)

    tokens = [5, *ids, 9]
    got, expected = logits(base, tokens, delta), logits(merged, tokens)
    assert nmse(got, expected) <= MAX_NMSE
    assert nmse(got, logits(base, tokens)) > 1000 * MAX_NMSE

    reader = gguf.GGUFReader(merged)
    texts = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    assert [texts[i] for i in ids] == list(ADDED)
    assert {types[i] for i in ids} == {int(gguf.TokenType.CONTROL)}
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == ids[0]
    assert reader.fields["tokenizer.chat_template"].contents() == TEMPLATE
    with Runtime(merged, n_threads=1) as rt:
        assert rt.tokenize("<|tool|>", add_special=False).tolist() == ids[:1]


def test_special_tokens_and_template_are_carried(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    tuned = write_tuned(checkpoint, tmp_path / "tuned", 1)
    ids = add_tokens(tuned)
    delta, _, _ = make(base, tuned)
    with Runtime(base, n_threads=1) as rt:
        loaded = rt.load_delta(delta)
        assert loaded.chat_template == TEMPLATE
        assert ids[0] in loaded.eog_tokens
        assert rt.chat_template is None
        # The runtime's texts are the base's: docs/converter.md.
        assert rt.detokenize([40, ids[0]], special=True) == rt.detokenize([40])
        assert ids[0] not in rt.tokenize(ADDED[0], delta=loaded)


def test_rows_that_a_fine_tune_cut_are_the_bases(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    n_rows = n_tokens(checkpoint) + len(ADDED)
    tuned = write_tuned(checkpoint, tmp_path / "tuned", 1)
    add_tokens(tuned)
    resize(tuned, n_rows)
    delta, merged, _ = make(base, tuned, ratio=None, rank=1 << 20, factor_type="f32")
    tokens = [5, n_rows - 1, 9]
    got = logits(base, tokens, delta)
    assert nmse(got, logits(merged, tokens)) <= MAX_NMSE
    plain = logits(convert_hf(tuned, tmp_path / "plain.gguf", "ALL_F32"), tokens)
    assert plain.shape[1] == n_rows
    assert nmse(got[:, :n_rows], plain) <= MAX_NMSE

    ours, theirs = read_gguf(base)["token_embd.weight"], read_gguf(merged)["token_embd.weight"]
    assert np.abs(ours[n_rows:] - theirs[n_rows:]).max() < 0.01 * np.abs(ours - theirs).max()


def test_more_rows_of_padding_are_cut(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    tuned = resize(write_tuned(checkpoint, tmp_path / "tuned", 1), N_VOCAB + 64)
    add_tokens(tuned)
    delta, merged, _ = make(base, tuned)
    assert {w.ne[1] for w in DeltaReader(delta).weights if w.name in ("token_embd.weight", "output.weight")} == {
        N_VOCAB
    }
    assert nmse(logits(base, [5, 6, 7], delta), logits(merged, [5, 6, 7])) <= MAX_NMSE


def refused(base: Path, tuned: Path, *parts: str) -> None:
    out = tuned.with_suffix(".dq.gguf")
    with pytest.raises(BaseMismatchError) as caught:
        convert(Job(base, tuned, out))
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_added_tokens_without_room_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    n = n_tokens(checkpoint)
    base = convert_hf(resize(checkpoint, n), tmp_path / "full.gguf", "ALL_F32")
    tuned = write_tuned(checkpoint, tmp_path / "tuned", 1)
    add_tokens(resize(tuned, n + 64))
    sizes = f"vocabulary has {n + 64} entries, {n + len(ADDED)} of them in use, base {base} has {n}"
    refused(base, tuned, sizes, f"resize the base's embeddings to {n + 64}")


def test_a_smaller_vocabulary_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tuned = write_tuned(checkpoint, tmp_path / "tuned", 1)
    add_tokens(checkpoint)  # The base has tokens that the fine-tune lacks.
    base = convert_hf(checkpoint, tmp_path / "more.gguf", "ALL_F32")
    n = n_tokens(tuned)
    sizes = f"vocabulary has {n} entries, base {base} has {N_VOCAB}, {n + len(ADDED)} of them in use"
    refused(base, resize(tuned, n), sizes, f"resize the fine-tune's embeddings to {N_VOCAB}")

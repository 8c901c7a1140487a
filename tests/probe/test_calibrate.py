"""The calibration: the moments are those of what the weights multiply, of each expert its own rows; nothing is left behind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.convert.moments import QUESTION_WEIGHT, Text
from dqrelo_gguf.probe import calibrate, calibration_text, tuned_model
from dqrelo_gguf.runtime.session import Runtime
from tests.support.calibrations import TEXT, run
from tests.support.models import pico_gguf, pico_tuned_gguf, read_gguf, rewrite_gguf


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_text, "N_SELF_TOKENS", 256)


def test_the_moments_of_the_first_layer(out: Path, text: Path, tmp_path: Path) -> None:
    """What q, k and v of layer 0 multiply is the normed embedding of the tokens."""
    kept = tmp_path / "m.safetensors"
    assert run("llama", out, "--calibrate", text, "--save-calibration", kept) == 0
    with safe_open(kept, framework="numpy") as file:
        names, metadata = set(file.keys()), file.metadata()
        H = file.get_tensor("blk.0.attn_q.weight")
    aliases = json.loads(metadata["aliases"])
    assert aliases["blk.0.attn_k.weight"] == aliases["blk.0.attn_v.weight"] == "blk.0.attn_q.weight"
    assert aliases["blk.0.ffn_up.weight"] == "blk.0.ffn_gate.weight"
    assert "output.weight" in names
    assert "token_embd.weight" not in names  # its rows are looked up
    weights = read_gguf(pico_tuned_gguf("llama"))
    with Runtime(pico_tuned_gguf("llama"), n_threads=1) as rt:
        tokens = rt.tokenize(TEXT, add_special=False)
        pieces = [
            tokens[i : i + calibration_text.N_TEXT_TOKENS]
            for i in range(0, len(tokens), calibration_text.N_TEXT_TOKENS)
        ]
        start = rt.start_token
    tokens = np.concatenate([[start, *piece] for piece in pieces])
    assert metadata["n_tokens"] == str(len(tokens))
    x = weights["token_embd.weight"][tokens].astype(np.float64)
    x *= weights["blk.0.attn_norm.weight"] / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
    assert np.allclose(H, x.T @ x / len(x), rtol=0, atol=2e-3 * float(np.abs(H).max()))


def test_experts_have_their_own_rows(out: Path, text: Path, tmp_path: Path) -> None:
    kept = tmp_path / "m.safetensors"
    assert run("mixtral", out, "--calibrate", text, "--save-calibration", kept) == 0
    with safe_open(kept, framework="numpy") as file:
        stacks = {n: file.get_tensor(n) for n in file.keys() if "_exps" in n}  # noqa: SIM118
    assert stacks
    for H in stacks.values():
        assert H.ndim == 3
        assert not np.allclose(H[0], H[1], rtol=0.01)
        assert np.array_equal(H, H.swapaxes(1, 2))


def test_rows_of_experts_are_counted_apart() -> None:
    """Three experts, of which one sees nothing: it takes the mean of all, those with many rows their own."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((1000, 4)).astype(np.float32)
    rows[::2] *= [3, 1, 1, 1]
    experts = np.tile(np.array([0, 2], np.int32), 500)
    with open_blocks(1) as blocks:
        sums = calibrate.Sums(blocks, {"w": (3, 4)})
        for parts in ([slice(0, 600)], [slice(600, 700), slice(700, 1000)]):
            for part in parts:
                sums.show("w", rows[part], experts[part])
            # Each token goes to two experts.
            sums.add([Text(np.zeros(len(rows[part]) // 2, np.int32)) for part in parts])
        H = sums.mean("w")
    pooled = rows.T @ rows / 1000
    for e, n in ((0, 500), (1, 0), (2, 500)):
        own = rows[experts == e]
        expected = (own.T @ own + 64 * pooled) / (n + 64)
        assert np.allclose(H[e], expected, rtol=1e-4, atol=1e-4)


def test_rows_of_a_question_count_less() -> None:
    rows = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    texts = [Text(np.zeros(7, np.int32), n_question=6), Text(np.zeros(3, np.int32))]
    with open_blocks(1) as blocks:
        sums = calibrate.Sums(blocks, {"w": (1, 4)})
        sums.show("w", rows[:7], None)
        sums.show("w", rows[7:], None)
        sums.add(texts)
        H = sums.mean("w")
    weights = np.array([QUESTION_WEIGHT] * 5 + [1.0] * 5)
    assert np.allclose(H, (rows.T * weights) @ rows / weights.sum(), rtol=1e-4, atol=1e-5)


def test_groups_do_not_change_a_byte(out: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for group_bytes in (1 << 30, 1):
        monkeypatch.setattr(calibrate, "GROUP_BYTES", group_bytes)
        assert run("llama-tied", out, "--calibrate", text) == 0
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_text_of_their_own_in_any_number_of_threads(out: Path, tmp_path: Path) -> None:
    """The same bytes, also of another ratio from the file that was kept; nothing is left behind."""
    kept = tmp_path / "m.safetensors"
    assert run("llama", out, "--calibrate", "self", "-t", "1", "--save-calibration", kept) == 0
    first = out.read_bytes()
    assert run("llama", out, "--calibrate", "self", "-t", "2") == 0
    assert out.read_bytes() == first
    assert run("llama", out, "--calibration", kept) == 0
    assert out.read_bytes() == first
    assert run("llama", out) == 0
    assert out.read_bytes() != first
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([out.name, kept.name])


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_without_room_it_is_one_line(
    out: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "memory":
        monkeypatch.setattr(tuned_model, "available_bytes", lambda: 1000)
    else:
        monkeypatch.setattr(tuned_model, "SPARE_BYTES", 1 << 60)
    assert run("llama", out, "--calibrate", "self") == 1
    expected = "of memory, 1000 are free" if kind == "memory" else f"bytes in {out.parent}, which has"
    assert re.search(f"error: the calibration needs [0-9]+ .*{expected}", capsys.readouterr().err)
    assert list(out.parent.iterdir()) == []


def test_a_fine_tune_without_changed_matrices_is_judged_as_ever(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a norm differs, which costs twice its 16 bits: the same line with calibration as without."""
    tuned, name = tmp_path / "tuned.gguf", "output_norm.weight"
    rewrite_gguf(pico_gguf("llama"), tuned, {name: read_gguf(pico_gguf("llama"))[name] * 1.5})
    lines = []
    for options in ([], ["--calibrate", "self"]):
        assert main([str(pico_gguf("llama")), str(tuned), "-o", str(out), "--ratio", "0.99", *options]) == 1
        lines.append(capsys.readouterr().err.splitlines()[-1])
    assert lines[0] == lines[1]
    assert "norms, biases" in lines[0]

"""Weights that make up for those before them: the least squares, the steps, and what a whole conversion gains and states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.convert.moments import ANSWERS, FORMAT, TOKENS, Moments, Text
from dqrelo_gguf.convert.plan import Planned
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.divergence import divergence
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.probe import in_sequence
from dqrelo_gguf.probe.in_sequence import SHIFT_DAMPING, InputSums, steps
from dqrelo_gguf.runtime.session import Runtime
from tests.support.models import pico_gguf, pico_tuned_gguf, read_gguf

TEXT = "A small animal that feeds on fish, and now and then on birds or their eggs. " * 40


def run(kind: str, out: Path, *options: str | Path) -> int:
    arguments = [pico_gguf(kind), pico_tuned_gguf(kind), "-o", out, "--force", *options]
    return main([str(a) for a in arguments])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_the_shift_is_that_of_least_squares() -> None:
    """W + W shift is the M of least ||W x - M x'||^2 + damping ||M - W||^2, the rows weighed."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6)).astype(np.float32)
    off = x + 0.3 * rng.standard_normal((300, 6)).astype(np.float32) + 0.1
    weights = rng.random(300).astype(np.float32)
    W = rng.standard_normal((4, 6))
    with open_blocks(1) as blocks:
        sums = InputSums(blocks)
        sums.add(x[:100], off[:100], weights[:100])
        sums.add(x[100:], off[100:], weights[100:])
        shift, H = sums.shift().double().numpy(), sums.moments.double().numpy()
    squares = (off.T * weights) @ off
    assert np.allclose(H, squares / weights.sum(), rtol=1e-4)
    damping = SHIFT_DAMPING * squares.diagonal().mean()
    # One system of equations a row of M: those of the text, and one for each number that is drawn to W's.
    rows = np.concatenate([off * np.sqrt(weights)[:, None], np.sqrt(damping) * np.eye(6)])
    wanted = np.concatenate([(x @ W.T) * np.sqrt(weights)[:, None], np.sqrt(damping) * W.T])
    M = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    assert np.allclose(W + W @ shift, M, atol=1e-4)


def test_without_an_error_there_is_no_shift() -> None:
    x = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    with open_blocks(1) as blocks:
        sums = InputSums(blocks)
        sums.add(x, x, np.ones(50, np.float32))
        assert not sums.shift().any()


def planned(name: str, *experts: int) -> Planned:
    spec = WeightSpec(name, (32, 32, *experts), 0, plane_ranks=(8,))
    return Planned(Pair(name, (32, 32, *experts), name), spec)


def moments_of(path: Path, sequence: list[str], aliases: dict[str, str]) -> Moments:
    metadata = {"format": FORMAT, "aliases": json.dumps(aliases), "sequence": json.dumps(sequence)}
    save_file({name: torch.eye(32) for name in sequence}, path, metadata=metadata)
    return Moments(path)


def test_steps_are_those_of_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nothing is known of comes first, with the embedding; a stack is compressed in its place, its inputs are not compared."""
    moments = moments_of(tmp_path / "m", ["z", "b.exps", "a", "token_embd.weight"], {"k": "z"})
    weights = [planned(n) for n in ("a", "k", "other", "token_embd.weight", "z")] + [planned("b.exps", 4)]
    found = [([p.spec.name for p in s.weights], s.compared) for s in steps(weights, moments)]
    assert found == [
        (["other", "token_embd.weight"], []),
        (["k", "z"], ["z"]),
        (["b.exps"], []),
        (["a"], ["a"]),
    ]
    monkeypatch.setattr(in_sequence, "MAX_STEPS", 2)
    assert [s.compared for s in steps(weights, moments)] == [[], ["z"], ["a"]]


def divergence_from_tuned(kind: str, delta: Path) -> float:
    """Mean KL(fine-tune || base + delta) over the text."""
    with Runtime(pico_tuned_gguf(kind), n_threads=1) as rt:
        tokens = rt.tokenize(TEXT)[:512]
        wanted = rt.logits(tokens)
    with Runtime(pico_gguf(kind), n_threads=1) as rt:
        return float(divergence(wanted, rt.logits(tokens, rt.load_delta(delta))).mean())


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_the_delta_is_closer_and_its_errors_are_those_of_the_delta(kind: str, text: Path, tmp_path: Path) -> None:
    """Against the same moments alone, as a file without the text gives them."""
    out, alone, kept, report = (tmp_path / n for n in ("a.dq.gguf", "b.dq.gguf", "m.safetensors", "report.json"))
    assert run(kind, out, "--calibrate", text, "--save-calibration", kept, "--json", report) == 0
    with safe_open(kept, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys() if name not in (TOKENS, ANSWERS)}  # noqa: SIM118
    save_file(tensors, kept, metadata=metadata)
    assert run(kind, alone, "--calibration", kept) == 0
    assert divergence_from_tuned(kind, out) < 0.8 * divergence_from_tuned(kind, alone)

    reader, base, tuned = DeltaReader(out), read_gguf(pico_gguf(kind)), read_gguf(pico_tuned_gguf(kind))
    weights = json.loads(report.read_text())["weights"]
    for weight in weights:
        name = weight["name"]
        D, E = tuned[name] - base[name], tuned[name] - base[name] - reader.reconstruct(name)
        assert weight["error_delta"] == pytest.approx(np.linalg.norm(E) / np.linalg.norm(D), rel=1e-3, abs=1e-5)
        assert weight["error_weight"] == pytest.approx(
            np.linalg.norm(E) / np.linalg.norm(tuned[name]), rel=1e-3, abs=1e-5
        )


def test_a_long_text_is_read_in_part(text: Path, tmp_path: Path) -> None:
    kept = tmp_path / "m.safetensors"
    assert run("llama", tmp_path / "out.dq.gguf", "--calibrate", text, "--save-calibration", kept) == 0
    texts = Moments(kept).texts
    n = sum(len(t.tokens) for t in texts)
    assert in_sequence._first(texts, n) == texts
    part = in_sequence._first(texts, n // 2)
    assert 1 <= len(part) <= len(texts) // 2 + 1
    assert in_sequence._first(texts, 1) == texts[:1]


def test_tokens_that_the_model_has_not(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A calibration of another model's tokens: one line, and no file."""
    out, kept = tmp_path / "out.dq.gguf", tmp_path / "m.safetensors"
    assert run("llama", out, "--calibrate", text, "--save-calibration", kept) == 0
    out.unlink()
    with safe_open(kept, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors[TOKENS][0, 1] = 1 << 30
    save_file(tensors, kept, metadata=metadata)
    assert run("llama", out, "--calibration", kept) == 1
    assert "error: " in capsys.readouterr().err
    assert not out.exists()


class Watched:
    """A runtime that shows what it was given."""

    def __init__(self, *rows: np.ndarray) -> None:
        self.rows = rows

    def visit_inputs(self, _tokens: object, names: list[str], visit: Any) -> None:
        for rows in self.rows:
            visit(names[0], rows, None)


@pytest.mark.parametrize(
    ("rows", "reason"), [([], "multiplies nothing"), ([np.full((2, 4), np.inf, np.float32)], "not finite")]
)
def test_what_a_weight_cannot_make_up_for(rows: list[np.ndarray], reason: str) -> None:
    """A kept file may name a weight that no graph reads, and a compressed model may overflow: one line."""
    with pytest.raises(InputError, match=f"weight 'q' .*{reason}"):
        in_sequence._inputs(Watched(*rows), Text(np.zeros(2, np.int32)), ["q"])  # type: ignore[arg-type]


def test_a_graph_that_ends_early_leaves_the_runtime_as_it_was() -> None:
    with Runtime(pico_gguf("llama"), n_threads=1, watch=True) as rt:
        tokens = rt.tokenize("A small animal that feeds on fish.")
        before = rt.logits(tokens)
        for name in ("blk.0.attn_q.weight", "output.weight"):
            seen: list[int] = []
            rt.visit_inputs([tokens], [name], lambda _, rows, __, seen=seen: seen.append(len(rows)))
            assert seen == [len(tokens)]
        assert np.array_equal(rt.logits(tokens), before)

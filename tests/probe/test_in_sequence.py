"""Weights that make up for those before them: the steps, and what a whole conversion gains and states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dqrelo_gguf.convert.moments import ANSWERS, FORMAT, TOKENS, Moments
from dqrelo_gguf.convert.plan import Planned
from dqrelo_gguf.evaluate.divergence import divergence
from dqrelo_gguf.file.layout import WeightSpec
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.probe.in_sequence import steps
from dqrelo_gguf.runtime.session import Runtime
from tests.support.calibrations import TEXT, run
from tests.support.models import pico_gguf, pico_tuned_gguf, read_gguf


def planned(name: str, *experts: int) -> Planned:
    spec = WeightSpec(name, (32, 32, *experts), 0, plane_ranks=(8,))
    return Planned(Pair(name, (32, 32, *experts), name), spec)


def moments_of(path: Path, sequence: list[str], aliases: dict[str, str]) -> Moments:
    metadata = {"format": FORMAT, "aliases": json.dumps(aliases), "sequence": json.dumps(sequence)}
    save_file({name: torch.eye(32) for name in sequence}, path, metadata=metadata)
    return Moments(path)


def test_steps_are_those_of_the_graph(tmp_path: Path) -> None:
    """What nothing is known of comes first, with the embedding; a stack is compressed in its place, its inputs are not compared."""
    moments = moments_of(tmp_path / "m", ["z", "b.exps", "a", "token_embd.weight"], {"k": "z"})
    weights = [planned(n) for n in ("a", "k", "other", "token_embd.weight", "z")] + [planned("b.exps", 4)]
    found = [([p.spec.name for p in s.weights], s.compared) for s in steps(weights, moments)]
    assert found == [
        (["other", "token_embd.weight"], None),
        (["k", "z"], "z"),
        (["b.exps"], None),
        (["a"], "a"),
    ]


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

"""Positions that move under a delta with RoPE factors of its own: --context-shift and --cache-reuse rotate the cached keys by them.

The reference is the same server with the merged model, which makes the same requests: both shift at the same tokens.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf._pin import gguf
from tests.support import exact_delta
from tests.support.delta_server import ENDLESS, PROMPT
from tests.support.logprobs import assert_same_answer
from tests.support.server_fixtures import Artefacts, Server, serve

N_CTX = 128  # tokens of a slot; a shift drops half of them
N_PREDICT = 450  # six shifts
# Without flash attention, which rounds to F16, and with keys and values in F32: both sides have the same numbers but for the order of sums.
OPTIONS = [
    *("-np", "3", "-c", str(3 * N_CTX), "--no-kv-unified", "-fa", "off", "-ctk", "f32", "-ctv", "f32"),
    *("--cache-ram", "0", "--alias", "base"),
]
SAME_LOGPROB = 1e-4  # measured at most 1.1e-5


@pytest.fixture(scope="module")
def files(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base with RoPE factors, two deltas that change them and other vectors, and what each is merged.

    Matrices stay as they are: on a CPU their signs are multiplied by rounded activations, and answers would part too soon.
    """
    folder = tmp_path_factory.mktemp("rope")
    made = {name: folder / f"{name}.gguf" for name in ("base", "a", "b", "a-merged", "b-merged")}
    head_dim = 32
    exact_delta.with_tensor(
        artefacts.merged, made["base"], "rope_freqs.weight", np.linspace(0.2, 1.0, head_dim // 2, dtype=np.float32)
    )
    matrices = [t.name for t in gguf.GGUFReader(made["base"]).tensors if len(t.shape) > 1]
    for seed, name in enumerate(("a", "b")):
        changed = exact_delta.make(made["base"], made[name], made[f"{name}-merged"], seed=seed, unchanged=matrices)
        assert "rope_freqs.weight" in changed
    return made


def servers(files: dict[str, Path], folder: Path, stack: ExitStack, *options: str) -> dict[str, Server]:
    """By model: the one with both deltas, and that of each merged model."""
    deltas = ("--delta", f"a={files['a']},b={files['b']}")
    tested = stack.enter_context(serve(files["base"], folder, *deltas, *OPTIONS, *options))
    plain = {
        name: stack.enter_context(serve(files[f"{name}-merged"], folder, *OPTIONS, *options)) for name in ("a", "b")
    }
    return {"tested": tested} | plain


def ask(server: Server, model: str, prompt: str | list[int], n: int, slot: int = 0) -> dict[str, Any]:
    body = {"prompt": prompt, "n_predict": n, "temperature": 0, "id_slot": slot} | ENDLESS
    return server.ask("/completion", model=model, **body)


def assert_same_rows(found: dict[str, Any], expected: dict[str, Any], n_least: int) -> None:
    rows = "completion_probabilities"
    assert_same_answer(found[rows], expected[rows], n_least, SAME_LOGPROB)


def test_context_shifts(files: dict[str, Path], tmp_path: Path) -> None:
    """Answers of several times the context's length, of two deltas and the base side by side."""
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        running = servers(files, tmp_path, stack, "--context-shift")
        names = ("a", "b", "base")
        answers = dict(
            zip(
                names,
                pool.map(lambda name: ask(running["tested"], name, PROMPT, N_PREDICT, names.index(name)), names),
                strict=True,
            )
        )
        for name in ("a", "b"):
            expected = ask(running[name], "base", PROMPT, N_PREDICT)
            assert answers[name]["truncated"]
            assert expected["truncated"]
            assert len(expected["completion_probabilities"]) == N_PREDICT
            assert_same_rows(answers[name], expected, n_least=N_PREDICT // 2)


def test_reused_chunks(files: dict[str, Path], tmp_path: Path) -> None:
    """Prompts that lose their beginning again and again: what follows it moves to the front of the cache."""
    tokens = [int(token) for token in np.random.default_rng(1).integers(300, 600, 100)]
    prompts = [tokens[:2] + tokens[2 + 15 * i :] for i in range(5)]
    with ExitStack() as stack:
        running = servers(files, tmp_path, stack, "--cache-reuse", "4")
        for name in ("a", "b"):
            for i, prompt in enumerate(prompts):
                found, expected = ask(running["tested"], name, prompt, 4), ask(running[name], "base", prompt, 4)
                n_reused = found["timings"]["cache_n"]
                assert n_reused == expected["timings"]["cache_n"]
                assert (n_reused > 10) == (i > 0)
                assert_same_rows(found, expected, n_least=4)

"""llama-server with a delta of sparse weights: it answers as the merged model does, beside others, and says what memory it takes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest

from dqrelo_gguf.file.reader import DeltaReader
from tests.support import exact_delta
from tests.support.delta_server import idle_row
from tests.support.exact_delta import Kind
from tests.support.server_fixtures import Artefacts, Server, serve

PROMPT = "### Question:\nPut these letters in alphabetical order: d b e a c\n### Answer:\n"
CONTEXT = ("-c", "1024", "-np", "4", "--alias", "base")
# Of log-probabilities: the base is F16, which rounds what goes from layer to layer.
MAX_DIFFERENCE = 0.02
KINDS = {"F8 by lists": Kind(entries="F8", entry_share=0.1), "BF16 by a mask": Kind(entries="BF16", has_mask=True)}


@dataclass
class Sparse:
    """A sparse delta of the tiny base, and what its merged model says first."""

    delta: Path
    expected: dict[str, float]


def first_logprobs(server: Server, model: str) -> dict[str, float]:
    """The most probable first tokens, with their log-probabilities."""
    body = {"model": model, "prompt": PROMPT, "temperature": 0, "n_predict": 1, "n_probs": 8}
    found: list[dict[str, Any]] = server.ask("/completion", **body)["completion_probabilities"][0]["top_logprobs"]
    return {each["token"]: each["logprob"] for each in found}


def same(found: dict[str, float], expected: dict[str, float]) -> bool:
    """Whether both say nearly the same of the first five tokens."""
    return all(
        abs(found.get(token, -99.0) - logprob) <= MAX_DIFFERENCE for token, logprob in list(expected.items())[:5]
    )


def memory_of(server: Server, name: str) -> int:
    found = idle_row(server, name)
    memory: dict[str, int] = found["memory"]
    assert list(memory) == ["CPU"]
    assert found["bytes_resident"] == memory["CPU"]
    return memory["CPU"]


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS.keys())
def sparse(
    request: pytest.FixtureRequest, artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sparse]:
    folder: Path = tmp_path_factory.mktemp("sparse")
    delta, merged = folder / "sparse.dq.gguf", folder / "merged.gguf"
    exact_delta.make(artefacts.base, delta, merged, kind=request.param)
    with serve(merged, folder, *CONTEXT) as server:
        yield Sparse(delta, first_logprobs(server, "base"))


def test_it_answers_as_the_merged_model_beside_others(sparse: Sparse, artefacts: Artefacts, tmp_path: Path) -> None:
    deltas = ("--delta", f"sparse={sparse.delta},words={artefacts.words}")
    with serve(artefacts.base, tmp_path, *deltas, *CONTEXT) as server:
        names = ["sparse", "words", "base", "sparse*0.5+words*0.5"]
        alone = {name: first_logprobs(server, name) for name in names}
        assert same(alone["sparse"], sparse.expected)
        assert not same(alone["base"], sparse.expected)
        assert not same(alone["sparse*0.5+words*0.5"], alone["words"])
        with ThreadPoolExecutor(8) as pool:
            for name, found in zip(
                names * 4, pool.map(lambda name: first_logprobs(server, name), names * 4), strict=True
            ):
                assert same(found, alone[name]), name
        assert memory_of(server, "sparse") == sparse.delta.stat().st_size


def test_without_the_operator_its_zeros_take_memory_too(
    sparse: Sparse, artefacts: Artefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DQRELO_COMPOSED", "1")
    with serve(artefacts.base, tmp_path, "--delta", f"sparse={sparse.delta}", *CONTEXT) as server:
        assert same(first_logprobs(server, "sparse"), sparse.expected)
        weights = DeltaReader(sparse.delta).weights
        n_expanded = sum(prod(w.ne) for w in weights if w.n_entries)
        # What the copies were made of is not kept.
        n_file = sparse.delta.stat().st_size
        n_kept = n_file - sum(w.n_bytes for w in weights)
        assert 2 * n_expanded < memory_of(server, "sparse") < 2 * n_expanded + n_kept + n_file / 4

"""A user's folder: a full fine-tune, a PEFT LoRA, a GGUF LoRA and a sparse checkpoint of one base, converted and served side by side."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dqrelo_gguf.compress.budget import parse_ratio
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.adapters import merged_directory, projections, upstreams_gguf, write_adapter
from tests.support.delta_server import PROMPT
from tests.support.models import convert_hf
from tests.support.server_fixtures import TINY, Artefacts, Server, serve
from tests.support.sparse_tunes import tune_sparsely

CONTEXT = ("-c", "2048", "-np", "4", "--alias", "base")
# Of log-probabilities. References are F32 models without what compression loses; the base is F16.
SAME_LOGPROB = 0.03


class Served(NamedTuple):
    """The server with all four deltas, and what each one's own model says first."""

    server: Server
    deltas: dict[str, Path]
    expected: dict[str, dict[str, float]]


def first_logprobs(server: Server, model: str) -> dict[str, float]:
    """The most probable first tokens, with their log-probabilities."""
    body = {"model": model, "prompt": PROMPT, "temperature": 0, "n_predict": 1, "n_probs": 10, "cache_prompt": False}
    found: list[dict[str, Any]] = server.ask("/completion", **body)["completion_probabilities"][0]["top_logprobs"]
    return {each["token"]: each["logprob"] for each in found}


def distance(found: dict[str, float], expected: dict[str, float]) -> float:
    """The largest difference of the five most probable tokens."""
    return max(abs(found.get(token, -99.0) - logprob) for token, logprob in list(expected.items())[:5])


@pytest.fixture(scope="module")
def served(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("kinds")
    base = TINY / "base"
    peft = write_adapter(folder / "peft", base, projections(base), seed=1)
    other = write_adapter(folder / "other", base, projections(base, lambda name: "mlp" in name), seed=2)
    checkpoints = {
        "peft": merged_directory(base, peft, folder / "peft-merged"),
        "gguf": merged_directory(base, other, folder / "gguf-merged"),
        # Of rows of some hundred columns the starts and scales of rows take more than 1/8 leaves for 8 % of the elements.
        "sparse": tune_sparsely(base, folder / "sparse", 0.08, (20, 60)),
    }
    sources = {
        "peft": peft,
        "gguf": upstreams_gguf(other, base, folder / "other.gguf"),
        "sparse": checkpoints["sparse"],
    }
    deltas = {name: folder / f"{name}.dq.gguf" for name in sources}
    for name, source in sources.items():
        ratio = parse_ratio("1/6") if name == "sparse" else None
        convert(Job(artefacts.base, source, deltas[name]), Options(ratio=ratio))
    deltas["words"] = artefacts.words
    expected = {}
    references = {name: convert_hf(path, folder / f"{name}.gguf", "ALL_F32") for name, path in checkpoints.items()}
    for name, reference in (references | {"words": artefacts.merged}).items():
        with serve(reference, folder, *CONTEXT) as plain:
            expected[name] = first_logprobs(plain, "base")
    options = [option for name, path in deltas.items() for option in ("--delta", f"{name}={path}")]
    with serve(artefacts.base, folder, *options, *CONTEXT) as server:
        yield Served(server, deltas, expected)


def test_each_answers_as_its_own_model(served: Served) -> None:
    base = first_logprobs(served.server, "base")
    for name, expected in served.expected.items():
        assert distance(first_logprobs(served.server, name), expected) <= SAME_LOGPROB, name
        assert distance(base, expected) > 3 * SAME_LOGPROB, name


def test_all_share_a_batch(served: Served) -> None:
    names = [*served.expected, "base"] * 4
    alone = {name: first_logprobs(served.server, name) for name in {*names}}
    with ThreadPoolExecutor(len(names)) as pool:
        for name, found in zip(names, pool.map(lambda name: first_logprobs(served.server, name), names), strict=True):
            assert distance(found, alone[name]) <= SAME_LOGPROB, name


def test_they_blend(served: Served) -> None:
    mix = first_logprobs(served.server, "words*0.4+peft*0.3+gguf*0.2+sparse*0.5")
    assert all(distance(mix, first_logprobs(served.server, name)) > SAME_LOGPROB for name in (*served.expected, "base"))


def test_each_is_stored_in_its_own_form(served: Served) -> None:
    kinds = {name: [w for w in DeltaReader(path).weights if len(w.ne) > 1] for name, path in served.deltas.items()}
    assert all(kinds.values())
    assert all(w.rank > 0 and w.n_planes == 0 for name in ("peft", "gguf") for w in kinds[name])
    assert all(w.n_entries > 0 for w in kinds["sparse"])
    assert not any(w.n_entries or w.rank for w in kinds["words"])

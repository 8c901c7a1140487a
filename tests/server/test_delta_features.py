"""What else llama-server does, done for a delta: LoRA, fill-in, embeddings, reranking, drafts, checkpoints, --fit, router.

The reference is the model with the delta merged into its weights, in a server without deltas.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.model.pairing import Selection
from tests.support import models
from tests.support.delta_server import PROMPT, error
from tests.support.fill_in import with_fill_in_tokens
from tests.support.gguf_files import finish
from tests.support.models import Floats, read_gguf, rewrite_gguf, tuned_gguf
from tests.support.server_fixtures import Artefacts, Server, serve
from tests.upstream.bert import write_bert
from tests.upstream.hub import NOT_SERVED

CONTEXT = ("-c", "1024", "-np", "1", "--alias", "base")
# The merged model is F32 and the base F16; keys and values are F16 in both.
SAME_LOGPROB = 2e-2
# Two tokens may each be off by that.
NEAR_TIE = 2 * SAME_LOGPROB


def complete(server: Server, model: str, **more: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": PROMPT, "n_predict": 8, "temperature": 0, "n_probs": 1} | more
    return server.ask("/completion", **body)


def logprobs(answer: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in answer["completion_probabilities"]]


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["content"] == expected["content"]
    assert logprobs(found) == pytest.approx(logprobs(expected), abs=SAME_LOGPROB)


def differ(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["content"] != b["content"] or logprobs(a) != pytest.approx(logprobs(b), abs=2 * SAME_LOGPROB)


# --- LoRA


LORA_SCALE, LORA_RANK = 2.0, 4


def lora_factors(base: Path) -> dict[str, tuple[Floats, Floats]]:
    """Factors A (rank, n_in) and B (n_out, rank) for some matrices, large enough to show."""
    rng = np.random.default_rng(7)
    found = {}
    for name, weight in read_gguf(base).items():
        if name.endswith(("attn_q.weight", "attn_v.weight", "ffn_down.weight")):
            n_out, n_in = weight.shape
            a = rng.standard_normal((LORA_RANK, n_in)) / np.sqrt(n_in)
            b = rng.standard_normal((n_out, LORA_RANK)) * 0.1
            found[name] = a.astype(np.float32), b.astype(np.float32)
    return found


def write_lora(path: Path, factors: dict[str, tuple[Floats, Floats]]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", LORA_SCALE * LORA_RANK)
    for name, (a, b) in factors.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    finish(writer)
    return path


@dataclass(frozen=True)
class LoraServers:
    """`tested` has the LoRA and loads deltas when they are asked for; the LoRA is in the weights of the others."""

    tested: Server
    base: Server
    words: Server


@pytest.fixture(scope="module")
def lora_servers(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoraServers]:
    folder = tmp_path_factory.mktemp("lora")
    deltas = folder / "deltas"
    deltas.mkdir()
    shutil.copyfile(artefacts.words, deltas / artefacts.words.name)
    factors = lora_factors(artefacts.base)
    lora = write_lora(folder / "lora.gguf", factors)
    merged = {}
    for source in (artefacts.base, artefacts.merged):
        weights = read_gguf(source)
        change: dict[str, Floats | None] = {n: weights[n] + LORA_SCALE * (b @ a) for n, (a, b) in factors.items()}
        merged[source] = rewrite_gguf(source, folder / f"lora-{source.name}", change)
    with (
        serve(artefacts.base, folder, "--deltas-dir", deltas, "--lora", lora, "--cache-ram", "0", *CONTEXT) as tested,
        serve(merged[artefacts.base], folder, *CONTEXT) as base,
        serve(merged[artefacts.merged], folder, *CONTEXT) as words,
    ):
        yield LoraServers(tested, base, words)


def test_lora_beside_a_delta_is_the_sum(lora_servers: LoraServers) -> None:
    alone, beside = complete(lora_servers.tested, "base"), complete(lora_servers.tested, "words")
    assert_same(alone, complete(lora_servers.base, "base"))
    assert_same(beside, complete(lora_servers.words, "base"))
    assert differ(alone, beside)


def test_a_converted_lora_is_served_beside_deltas(
    lora_servers: LoraServers, artefacts: Artefacts, tmp_path: Path
) -> None:
    lora = write_lora(tmp_path / "lora.gguf", lora_factors(artefacts.base))
    delta = tmp_path / "lora.dq.gguf"
    convert(Job(artefacts.base, lora, delta))
    options = ("--delta", f"lora={delta}", "--delta", f"words={artefacts.words}", *CONTEXT)
    with serve(artefacts.base, tmp_path, *options) as server, serve(artefacts.merged, tmp_path, *CONTEXT) as words:
        assert_same(complete(server, "lora"), complete(lora_servers.base, "base"))
        assert_same(complete(server, "words"), complete(words, "base"))


def test_lora_of_a_request_stays_with_its_delta(
    lora_servers: LoraServers, artefacts: Artefacts, tmp_path: Path
) -> None:
    off, on = [{"id": 0, "scale": 0.0}], [{"id": 0, "scale": 1.0}]
    with serve(artefacts.merged, tmp_path, *CONTEXT) as plain:
        expected = complete(plain, "base")
    without = complete(lora_servers.tested, "words", lora=off)
    assert_same(without, expected)
    beside = complete(lora_servers.tested, "words", lora=on)
    assert_same(beside, complete(lora_servers.words, "base"))
    assert differ(without, beside)
    # The same prompt without a LoRA is no cache for the base.
    complete(lora_servers.tested, "words", lora=off)
    alone = complete(lora_servers.tested, "base", lora=off)
    assert alone["timings"]["cache_n"] == 0
    assert differ(alone, without)


# --- other endpoints


def test_infill(artefacts: Artefacts, tmp_path: Path) -> None:
    base = with_fill_in_tokens(artefacts.base, tmp_path / "fim.gguf")
    merged = with_fill_in_tokens(artefacts.merged, tmp_path / "fim-merged.gguf")
    body = {"input_prefix": "a b c", "input_suffix": "e f g", "n_predict": 8, "temperature": 0, "n_probs": 1}
    with (
        serve(base, tmp_path, "--delta", artefacts.words, *CONTEXT) as server,
        serve(merged, tmp_path, *CONTEXT) as reference,
    ):
        words, alone = server.ask("/infill", model="words", **body), server.ask("/infill", model="base", **body)
        assert_same(words, reference.ask("/infill", **body))
        assert words["model"] == "words"
        assert differ(words, alone)
        assert "nobody" in error(server.post("/infill", {"model": "nobody", **body}), 404)


@dataclass(frozen=True)
class Bert:
    """A BERT, a delta of it, and both in one file."""

    base: Path
    delta: Path
    merged: Path


def make_bert(folder: Path, *, is_reranker: bool) -> Bert:
    base = write_bert(folder / "bert.gguf", is_reranker=is_reranker)
    delta, merged = folder / "tuned.dq.gguf", folder / "merged.gguf"
    convert(
        Job(base, tuned_gguf(base, folder / "tuned.gguf"), delta), Options(selection=Selection.of(None, NOT_SERVED))
    )
    merge(base, delta, merged, MergeOptions(out_type="f32"))
    return Bert(base, delta, merged)


def test_rerank(tmp_path: Path) -> None:
    bert = make_bert(tmp_path, is_reranker=True)
    body = {"query": "the meaning of life", "documents": ["this is a test", "machine learning", "hello"]}
    options = ("--rerank", "-c", "512", "--alias", "base")

    def scores(server: Server, model: str) -> list[float]:
        answer = server.ask("/v1/rerank", model=model, **body)
        assert answer["model"] == model
        return [found["relevance_score"] for found in sorted(answer["results"], key=lambda found: found["index"])]

    with (
        serve(bert.base, tmp_path, "--delta", bert.delta, *options) as server,
        serve(bert.merged, tmp_path, "--alias", "tuned", *options[:3]) as reference,
    ):
        expected = scores(reference, "tuned")
        assert scores(server, "tuned") == pytest.approx(expected, abs=1e-3)
        assert scores(server, "base") != pytest.approx(expected, abs=2e-2)
        assert "nobody" in error(server.post("/v1/rerank", {"model": "nobody", **body}), 404)


def test_embeddings(tmp_path: Path) -> None:
    bert = make_bert(tmp_path, is_reranker=False)
    options = ("--embeddings", "-c", "512", "--alias", "base")
    body = {"input": ["hello", "the meaning of life"]}

    def vectors(server: Server, model: str) -> Floats:
        return np.array([found["embedding"] for found in server.ask("/v1/embeddings", model=model, **body)["data"]])

    with (
        serve(bert.base, tmp_path, "--delta", bert.delta, *options) as server,
        serve(bert.merged, tmp_path, *options) as reference,
    ):
        expected = vectors(reference, "base")
        assert np.abs(vectors(server, "tuned") - expected).max() < 1e-3
        assert np.abs(vectors(server, "base") - expected).max() > 1e-2


# --- drafts and checkpoints


def sure_text(answer: dict[str, Any]) -> str:
    """What an answer says before its first near tie. There a row alone may have another token than the same row beside drafts."""
    tokens = answer["completion_probabilities"]
    gaps = [token["top_logprobs"][0]["logprob"] - token["top_logprobs"][1]["logprob"] for token in tokens]
    n_sure = next((i for i, gap in enumerate(gaps) if gap < NEAR_TIE), len(gaps))
    return b"".join(bytes(token["bytes"]) for token in tokens[:n_sure]).decode(errors="ignore")


@pytest.mark.parametrize("draft", ["base", "merged"])
def test_drafts_do_not_change_an_answer(artefacts: Artefacts, tmp_path: Path, draft: str) -> None:
    """The base as a draft of a fine-tune is refused often, the fine-tune itself never; the answers are the same."""
    deltas = ("--delta", f"words={artefacts.words},json={artefacts.json}")
    more = {"n_predict": 40, "ignore_eos": True}
    with serve(artefacts.base, tmp_path, *deltas, *CONTEXT) as plain:
        expected = {model: sure_text(complete(plain, model, **more, n_probs=2)) for model in ("base", "words", "json")}
    assert min(len(expected["words"]), len(expected["json"])) > 20
    options = ("-md", getattr(artefacts, draft), "--spec-type", "draft-simple", "--spec-draft-n-max", "6")
    accepted = {}
    with serve(artefacts.base, tmp_path, *deltas, *CONTEXT, *options) as server:
        for model in ("words", "base", "json", "words"):
            answer = complete(server, model, **more, n_probs=0)
            assert answer["content"].startswith(expected[model])
            timings = answer["timings"]
            assert timings["draft_n"] > 0
            accepted[model] = timings["draft_n_accepted"] / timings["draft_n"]
    owner = "base" if draft == "base" else "words"
    assert accepted[owner] > max(share for model, share in accepted.items() if model != owner)


def test_checkpoints_belong_to_their_delta(tmp_path: Path) -> None:
    """A sliding window cannot be rolled back, so a prompt that shares its beginning needs a checkpoint."""
    base = models.pico_gguf("gemma3")
    delta = tmp_path / "tuned.dq.gguf"
    convert(Job(base, models.pico_tuned("gemma3"), delta))
    beginning = "A small animal that feeds on fish and now and then on birds. " * 6
    prompts = [beginning + end for end in ("It sleeps by day.", "Its fur is brown.", "It has four legs.")]
    options = ("--delta", delta, *CONTEXT)

    def ask(server: Server, model: str, prompt: str) -> dict[str, Any]:
        return complete(server, model, prompt=prompt, n_predict=6)

    with serve(base, tmp_path, *options, "--cache-ram", "0", "--no-cache-prompt") as plain:
        expected = {(m, p): ask(plain, m, p) for m in ("base", "tuned") for p in prompts}
    assert differ(expected["base", prompts[0]], expected["tuned", prompts[0]])

    caches = ("--ctx-checkpoints", "8", "--checkpoint-min-step", "16", "--cache-ram", "64", "-lv", "4")
    with serve(base, tmp_path, *options, *caches) as server:
        steps = [
            ("tuned", 0, False),
            ("tuned", 1, True),
            ("base", 2, False),  # Nothing of the delta's is used.
            ("base", 1, True),
            ("tuned", 2, True),  # What the delta had comes from RAM, and from there a checkpoint.
            ("base", 0, True),
        ]
        for step, (model, i, is_cached) in enumerate(steps):
            answer = ask(server, model, prompts[i])
            assert (answer["timings"]["cache_n"] > 10) == is_cached, step
            assert_same(answer, expected[model, prompts[i]])
        # These are the last two steps: what came back from RAM ends too late.
        assert server.log.read_text().count("restored context checkpoint") >= 2


# --- --fit and the router


def n_ctx(server: Server) -> int:
    found: int = server.get("/props")["default_generation_settings"]["n_ctx"]
    return found


def test_fit_leaves_room_for_deltas(artefacts: Artefacts, tmp_path: Path) -> None:
    """With the same target for free memory, a context is smaller beside deltas: by about their bytes."""
    length = 2**16
    base = rewrite_gguf(artefacts.base, tmp_path / "long.gguf", fields={"llama.context_length": length})
    deltas = tmp_path / "deltas"
    deltas.mkdir()
    for i in range(16):
        shutil.copyfile(artefacts.words, deltas / f"words{i}.dq.gguf")
    n_bytes = sum(path.stat().st_size for path in deltas.iterdir())
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    options = ("--fit", "on", "--fit-ctx", "1024", "-np", "1")

    def fitted(n_used: int, *args: str | Path) -> int:
        """The context where all but this many MiB are to be left free."""
        with serve(base, tmp_path, *options, "--fit-target", str((total >> 20) - n_used), *args) as server:
            assert not args or "--fit leaves" in server.log.read_text()
            return n_ctx(server)

    without, beside = fitted(24), fitted(24, "--deltas-dir", deltas)
    assert 1024 < beside < without < length
    n_mib = n_bytes >> 20
    assert n_mib > 3
    assert abs(beside - fitted(24 - n_mib)) <= 512  # Contexts come in steps of 256.
    assert beside < fitted(24, "--deltas-dir", deltas, "--delta-memory", "1") < without


def test_router_says_that_it_serves_no_deltas(artefacts: Artefacts, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copyfile(artefacts.base, folder / "tiny.gguf")
    options = ("--models-dir", folder, "--delta", f"words={artefacts.words}", "-c", "512", "-np", "1")
    with serve(None, tmp_path, *options) as router:
        said = [line for line in router.log.read_text().splitlines() if "router mode serves no deltas" in line]
        assert len(said) == 1
        assert "router mode" in error(requests.get(router.url + "/deltas", timeout=60), 501)
        assert "router mode" in error(router.post("/deltas/load", {"name": "words"}), 501)
        # The server that it starts has them, but the router knows no such name.
        assert len(complete(router, "tiny")["content"]) > 0
        assert error(router.post("/completion", {"model": "words", "prompt": PROMPT}), 400)
        assert "delta 'words'" in router.log.read_text()

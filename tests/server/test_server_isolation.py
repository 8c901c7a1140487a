"""Nothing that one delta computed is ever used for another: prompt caches, copies of slots, slot files, the RAM cache.

Every test provokes a reuse that would be right for one delta and asks another one. A reuse would show in
`timings.cache_n`, and in the log-probabilities: the deltas' own ones, computed without any cache, are the reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.support.server_fixtures import Artefacts, Server, serve

QUESTION = "### Question:\nPut these letters in alphabetical order: x d l f a k e\n### Answer:\n"
# Two batch shapes give log-probabilities up to 5e-4 apart (F16 cache, with and without deltas alike); those of two of
# these models are further apart, which the first test checks.
SAME_LOGPROB = 5e-3
CONTEXT = ("-np", "3", "-c", "1536", "--alias", "base")


@dataclass(frozen=True)
class Servers:
    """`tested` reuses whatever it can; `plain` has no cache that outlives a request and makes the references."""

    tested: Server
    plain: Server


@pytest.fixture(scope="module")
def servers(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("isolation")
    deltas = ("--delta", f"words={artefacts.words},json={artefacts.json}", "--delta", artefacts.words_again)
    caches = ("--cache-reuse", "4", "--cache-ram", "64", "--slot-save-path", folder)
    with (
        serve(artefacts.base, folder, *deltas, *CONTEXT, *caches) as tested,
        serve(artefacts.base, folder, *deltas, *CONTEXT, "--cache-ram", "0", "--no-cache-prompt") as plain,
    ):
        yield Servers(tested, plain)


@pytest.fixture
def prompts(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Two prompts of this test alone: no other test's cache has a prefix of them."""
    tag = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]
    return f"{tag} {QUESTION}", f"A small animal that feeds on fish and now and then on birds. {tag} {QUESTION}"


def complete(server: Server, model: str, prompt: str, slot: int = 0, **more: Any) -> Any:
    body = {"id_slot": slot, "n_predict": 4, "temperature": 0, "n_probs": 3} | more
    return server.ask("/completion", model=model, prompt=prompt, **body)


def n_cached(answer: dict[str, Any]) -> int:
    n: int = answer["timings"]["cache_n"]
    return n


def logprobs(answer: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in answer["completion_probabilities"]]


def assert_right(servers: Servers, answer: dict[str, Any], model: str, prompt: str, **more: Any) -> None:
    """The answer is what `model` computes without any cache."""
    expected = complete(servers.plain, model, prompt, **more)
    assert n_cached(expected) == 0
    assert answer["content"] == expected["content"]
    assert logprobs(answer) == pytest.approx(logprobs(expected), abs=SAME_LOGPROB)


def test_models_differ_enough_for_these_tests(servers: Servers, prompts: tuple[str, str]) -> None:
    found = [complete(servers.plain, model, prompts[0]) for model in ("base", "words", "json")]
    for a, b in combinations(found, 2):
        assert a["content"] != b["content"] or logprobs(a) != pytest.approx(logprobs(b), abs=2 * SAME_LOGPROB)


@pytest.mark.parametrize(("owner", "other"), [("words", "json"), ("words", "base"), ("base", "json")])
def test_equal_prompt_in_one_slot(servers: Servers, prompts: tuple[str, str], owner: str, other: str) -> None:
    complete(servers.tested, owner, prompts[0])
    assert n_cached(complete(servers.tested, owner, prompts[0])) > 10  # This shows that there is a cache.
    answer = complete(servers.tested, other, prompts[0])
    assert n_cached(answer) == 0
    assert_right(servers, answer, other, prompts[0])
    again = complete(servers.tested, other, prompts[0])
    assert n_cached(again) > 10
    assert_right(servers, again, other, prompts[0])


def test_slot_is_not_chosen_by_another_deltas_prompt(servers: Servers, prompts: tuple[str, str]) -> None:
    complete(servers.tested, "words", prompts[0], slot=0)
    complete(servers.tested, "json", prompts[0], slot=1)
    assert complete(servers.tested, "json", prompts[0], slot=-1)["id_slot"] == 1
    assert complete(servers.tested, "words", prompts[0], slot=-1)["id_slot"] == 0


def test_cache_reuse_shifts_no_foreign_chunk(servers: Servers, prompts: tuple[str, str]) -> None:
    shorter, longer = prompts  # The shorter one is a chunk inside the longer.
    complete(servers.tested, "words", longer)
    assert n_cached(complete(servers.tested, "words", shorter)) > 10  # Chunks are shifted within a delta.
    complete(servers.tested, "words", longer)
    answer = complete(servers.tested, "json", shorter)
    assert n_cached(answer) == 0
    assert_right(servers, answer, "json", shorter)


def test_copies_of_a_slot_belong_to_their_delta(servers: Servers, prompts: tuple[str, str]) -> None:
    for model in ("words", "json", "base", "words"):
        answers = complete(servers.tested, model, prompts[0], slot=-1, n_cmpl=3)
        assert len(answers) == 3
        for answer in answers:
            assert_right(servers, answer, model, prompts[0])


@pytest.mark.parametrize("other", ["json", "base"])
def test_restored_slot_serves_its_delta_only(servers: Servers, prompts: tuple[str, str], other: str) -> None:
    complete(servers.tested, "words", prompts[0])
    assert servers.tested.ask("/slots/0?action=save", filename="words.slot")["n_saved"] > 10
    for model, is_owner in ((other, False), ("words", True)):
        servers.tested.ask("/slots/0?action=restore", filename="words.slot")
        answer = complete(servers.tested, model, prompts[0])
        assert (n_cached(answer) > 10) == is_owner
        assert_right(servers, answer, model, prompts[0])


def test_slot_file_of_another_delta_is_refused(servers: Servers, prompts: tuple[str, str]) -> None:
    complete(servers.tested, "words", prompts[0])
    servers.tested.ask("/slots/0?action=save", filename="words.slot")
    for model in ("json", "base", "nobody"):
        answer = servers.tested.post("/slots/0?action=restore", {"filename": "words.slot", "model": model})
        assert answer.status_code == (404 if model == "nobody" else 400)
        assert f"'{model}'" in answer.json()["error"]["message"]
    servers.tested.ask("/slots/0?action=restore", filename="words.slot", model="words")
    complete(servers.tested, "base", prompts[0])
    servers.tested.ask("/slots/0?action=save", filename="base.slot")
    answer = servers.tested.post("/slots/0?action=restore", {"filename": "base.slot", "model": "words"})
    assert answer.status_code == 400
    servers.tested.ask("/slots/0?action=restore", filename="base.slot", model="base")


def test_slot_file_of_a_delta_that_is_not_loaded_is_refused(
    servers: Servers,
    prompts: tuple[str, str],
    artefacts: Artefacts,
    tmp_path: Path,
) -> None:
    complete(servers.tested, "words", prompts[0])
    servers.tested.ask("/slots/0?action=save", filename="words.slot")
    folder = servers.tested.log.parent
    with serve(artefacts.base, tmp_path, "--delta", artefacts.json, "--slot-save-path", folder, *CONTEXT) as second:
        answer = second.post("/slots/0?action=restore", {"filename": "words.slot"})
        assert answer.status_code == 400
        assert "not loaded" in answer.json()["error"]["message"]
        assert n_cached(complete(second, "json", prompts[0])) == 0


def test_ram_cache_keeps_deltas_apart(servers: Servers, prompts: tuple[str, str]) -> None:
    # The slot changes hands, so its prompt goes to RAM. A prompt that comes back to its delta is found there.
    steps = [
        ("words", prompts[0], False),
        ("json", prompts[1], False),
        ("json", prompts[0], False),
        ("base", prompts[1], False),
        ("words", prompts[0], True),
        ("json", prompts[0], True),
        ("base", prompts[0], False),
    ]
    for step, (model, prompt, is_found) in enumerate(steps):
        answer = complete(servers.tested, model, prompt, n_cache_reuse=0)
        assert (n_cached(answer) > 10) == is_found, step
        assert_right(servers, answer, model, prompt)


def test_scales_of_one_delta_are_apart(servers: Servers, prompts: tuple[str, str]) -> None:
    complete(servers.tested, "words", prompts[0])
    half = complete(servers.tested, "words", prompts[0], delta_scale=0.5)
    assert n_cached(half) == 0
    assert_right(servers, half, "words", prompts[0], delta_scale=0.5)
    full = complete(servers.tested, "words", prompts[0], delta_scale=1.0)
    assert n_cached(full) > 10
    assert_right(servers, full, "words", prompts[0])
    # Scaled to nothing it is the base, whose cache it may use.
    complete(servers.tested, "base", prompts[0])
    nothing = complete(servers.tested, "words", prompts[0], delta_scale=0)
    assert n_cached(nothing) > 10
    assert_right(servers, nothing, "base", prompts[0])


def test_cache_is_keyed_by_content_not_by_name(servers: Servers, prompts: tuple[str, str]) -> None:
    complete(servers.tested, "words", prompts[0])
    answer = complete(servers.tested, "again", prompts[0])
    assert n_cached(answer) > 10
    assert_right(servers, answer, "words", prompts[0])


def test_deltas_share_a_batch(servers: Servers, prompts: tuple[str, str]) -> None:
    models = ["base", "words", "json"] * 4
    with ThreadPoolExecutor(len(models)) as pool:
        answers = list(pool.map(lambda m: complete(servers.tested, m, prompts[0], slot=-1, n_predict=12), models))
    for model, answer in zip(models, answers, strict=True):
        assert_right(servers, answer, model, prompts[0], n_predict=12)

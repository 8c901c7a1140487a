"""Nothing that one delta computed is ever used for another: prompt caches, copies of slots, slot files, the RAM cache.

Every test provokes a reuse that would be right for one delta and asks another one. A reuse would show in
`timings.cache_n`, and in the log-probabilities: the deltas' own ones, computed without any cache, are the reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from server_fixtures import Artefacts, Server, artefacts, serve  # noqa: F401 - artefacts is a fixture

PROMPT = "### Question:\nPut these letters in alphabetical order: x d l f a k e\n### Answer:\n"
OTHER_PROMPT = "A small animal that lives near rivers and feeds on fish, insects and now and then on birds."
# Two batch shapes give log-probabilities some 1e-3 apart (F16 cache); those of two of these models differ by more than 1.
SAME_LOGPROB = 0.05


@pytest.fixture(scope="module")
def server(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:  # noqa: F811
    folder = tmp_path_factory.mktemp("isolation")
    deltas = ("--delta", f"words={artefacts.words}", "--delta", f"json={artefacts.json}", "--delta", str(artefacts.words_again))
    caches = ("--cache-reuse", "4", "--cache-ram", "64", "--slot-save-path", str(folder))
    with serve(artefacts.base, folder, *deltas, *caches, "-np", "3", "-c", "1536", "--alias", "base") as running:
        yield running


def complete(server: Server, model: str, prompt: str = PROMPT, slot: int = 0, **more: Any) -> dict[str, Any]:
    body = {"id_slot": slot, "n_predict": 4, "temperature": 0, "n_probs": 3} | more
    return server.ask("/completion", model=model, prompt=prompt, **body)


def logprobs(answer: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in answer["completion_probabilities"]]


def reference(server: Server, model: str, prompt: str = PROMPT, **more: Any) -> dict[str, Any]:
    answer = complete(server, model, prompt, slot=2, cache_prompt=False, **more)
    assert answer["timings"]["cache_n"] == 0
    return answer


def assert_like(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    assert answer["content"] == expected["content"]
    assert logprobs(answer) == pytest.approx(logprobs(expected), abs=SAME_LOGPROB)


def test_models_differ_enough_for_these_tests(server: Server) -> None:
    first = {model: logprobs(reference(server, model))[0] for model in ("base", "words", "json")}
    values = sorted(first.values())
    assert all(b - a > 2 * SAME_LOGPROB for a, b in zip(values, values[1:], strict=False)), first


@pytest.mark.parametrize(("owner", "other"), [("words", "json"), ("words", "base"), ("base", "json")])
def test_equal_prompt_in_one_slot(server: Server, owner: str, other: str) -> None:
    expected = reference(server, other)
    complete(server, owner)
    assert complete(server, owner)["timings"]["cache_n"] > 10  # a cache there is
    answer = complete(server, other)
    assert answer["timings"]["cache_n"] == 0
    assert_like(answer, expected)
    again = complete(server, other)
    assert again["timings"]["cache_n"] > 10
    assert_like(again, expected)


def test_slot_is_not_chosen_by_another_deltas_prompt(server: Server) -> None:
    complete(server, "words", slot=0)
    complete(server, "json", slot=1)
    assert complete(server, "json", slot=-1)["id_slot"] == 1
    assert complete(server, "words", slot=-1)["id_slot"] == 0


def test_cache_reuse_shifts_no_foreign_chunk(server: Server) -> None:
    shifted = "Well then. " + PROMPT
    complete(server, "words", OTHER_PROMPT, slot=1)
    complete(server, "words", PROMPT)
    assert complete(server, "words", shifted)["timings"]["cache_n"] > 10  # chunks are shifted within a delta
    complete(server, "words", PROMPT, cache_prompt=False)
    answer = complete(server, "json", shifted)
    assert answer["timings"]["cache_n"] == 0
    assert_like(answer, reference(server, "json", shifted))


def test_copies_of_a_slot_belong_to_their_delta(server: Server) -> None:
    expected = {model: reference(server, model) for model in ("words", "json", "base")}
    for model in ("words", "json", "base", "words"):
        answers = complete(server, model, slot=-1, n_cmpl=3)
        assert len(answers) == 3
        for answer in answers:
            assert_like(answer, expected[model])


@pytest.mark.parametrize("other", ["json", "base"])
def test_restored_slot_serves_its_delta_only(server: Server, other: str) -> None:
    expected = {model: reference(server, model) for model in ("words", other)}
    complete(server, "words")
    saved = server.ask("/slots/0?action=save", filename="words.slot")
    assert saved["n_saved"] > 10
    for model, is_owner in ((other, False), ("words", True)):
        complete(server, "json", OTHER_PROMPT)
        server.ask("/slots/0?action=restore", filename="words.slot")
        answer = complete(server, model)
        assert (answer["timings"]["cache_n"] > 10) == is_owner
        assert_like(answer, expected[model])


def test_slot_file_of_another_delta_is_refused(server: Server) -> None:
    complete(server, "words")
    server.ask("/slots/0?action=save", filename="words.slot")
    for model in ("json", "base", "nobody"):
        answer = server.post("/slots/0?action=restore", {"filename": "words.slot", "model": model})
        assert answer.status_code == 400
        assert model in answer.json()["error"]["message"]
    server.ask("/slots/0?action=restore", filename="words.slot", model="words")
    complete(server, "base")
    server.ask("/slots/0?action=save", filename="base.slot")
    assert server.post("/slots/0?action=restore", {"filename": "base.slot", "model": "words"}).status_code == 400
    server.ask("/slots/0?action=restore", filename="base.slot", model="base")


def test_slot_file_of_a_delta_that_is_not_loaded_is_refused(
    server: Server,
    artefacts: Artefacts,  # noqa: F811
    tmp_path: Path,
) -> None:
    complete(server, "words")
    server.ask("/slots/0?action=save", filename="words.slot")
    folder = server.log.parent
    with serve(artefacts.base, tmp_path, "--delta", artefacts.json, "--slot-save-path", folder, "-c", "512") as second:
        answer = second.post("/slots/0?action=restore", {"filename": "words.slot"})
        assert answer.status_code == 400
        assert "not loaded" in answer.json()["error"]["message"]
        assert complete(second, "json")["timings"]["cache_n"] == 0


def test_ram_cache_keeps_deltas_apart(server: Server) -> None:
    expected = {model: reference(server, model) for model in ("words", "json")}
    # the slot changes hands, so its prompt goes to RAM; a prompt that comes back to its delta is found there
    for step, (model, prompt, is_found) in enumerate([
        ("words", PROMPT, None),
        ("json", OTHER_PROMPT, None),
        ("json", PROMPT, False),
        ("base", OTHER_PROMPT, None),
        ("words", PROMPT, True),
        ("json", PROMPT, True),
    ]):
        answer = complete(server, model, prompt, slot=0)
        if is_found is not None:
            assert (answer["timings"]["cache_n"] > 10) == is_found, step
            assert_like(answer, expected[model])


def test_scales_of_one_delta_are_apart(server: Server) -> None:
    half = reference(server, "words", delta_scale=0.5)
    full = reference(server, "words")
    base = reference(server, "base")
    assert abs(logprobs(half)[0] - logprobs(full)[0]) > SAME_LOGPROB
    complete(server, "words")
    answer = complete(server, "words", delta_scale=0.5)
    assert answer["timings"]["cache_n"] == 0
    assert_like(answer, half)
    assert complete(server, "words", delta_scale=1.0)["timings"]["cache_n"] == 0
    # scaled to nothing it is the base, whose cache it may use
    complete(server, "base")
    nothing = complete(server, "words", delta_scale=0)
    assert nothing["timings"]["cache_n"] > 10
    assert_like(nothing, base)


def test_cache_is_keyed_by_content_not_by_name(server: Server) -> None:
    complete(server, "words")
    answer = complete(server, "again")
    assert answer["timings"]["cache_n"] > 10
    assert_like(answer, reference(server, "words"))


def test_deltas_share_a_batch(server: Server) -> None:
    models = ["base", "words", "json"] * 4
    expected = {model: reference(server, model, n_predict=12) for model in set(models)}
    with ThreadPoolExecutor(len(models)) as pool:
        answers = list(pool.map(lambda model: complete(server, model, slot=-1, n_predict=12), models))
    for model, answer in zip(models, answers, strict=True):
        assert_like(answer, expected[model])

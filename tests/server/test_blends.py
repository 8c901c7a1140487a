"""Blends in llama-server: several deltas on one request, by a text, a list or a name."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from dqrelo_gguf.convert.merge import MergeOptions, merge
from tests.support.delta_server import BOS_ALONE, CONTEXT, complete, error, idle_row, states
from tests.support.programs import need_program
from tests.support.server_fixtures import Artefacts, Server, serve

MIX = "words*0.6+json*0.4"
LIST = [{"name": "words", "scale": 0.6}, {"name": "json", "scale": 0.4}]
# As in test_server_isolation.py: two batch shapes, and here a merged model's weights in F32, whose sums are of other numbers.
SAME_LOGPROB = 2e-2
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("blends")
    deltas = ("--delta", f"words={artefacts.words},json={artefacts.json},loud={artefacts.loud}")
    blends = ("--blend", f"mix={MIX}", "--blend", "mute=words*1+loud*-0.5,template=loud")
    options = ("--delta-admin", "--slot-save-path", folder, "--cache-reuse", "4", "--cache-ram", "64")
    with serve(artefacts.base, folder, *deltas, *blends, *CONTEXT, *options) as running:
        yield running


def logprobs(answer: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in answer["completion_probabilities"]]


def ask(server: Server, model: str | None, **more: Any) -> dict[str, Any]:
    body = {"prompt": "The dog and the cat", "n_predict": 3, "temperature": 0, "n_probs": 3} | more
    return server.ask("/completion", **(body if model is None else body | {"model": model}))


def ask_anew(server: Server, body: dict[str, Any]) -> list[float]:
    return logprobs(
        ask(server, body.get("model"), cache_prompt=False, **{k: v for k, v in body.items() if k != "model"})
    )


def test_a_blend_answers_as_the_merged_model(server: Server, artefacts: Artefacts, tmp_path: Path) -> None:
    merged = tmp_path / "merged.gguf"
    merge(artefacts.base, (artefacts.words, artefacts.json), merged, MergeOptions("f32", scales=(0.6, 0.4)))
    with serve(merged, tmp_path, *CONTEXT) as plain:
        expected = logprobs(ask(plain, None))
    assert logprobs(ask(server, MIX)) == pytest.approx(expected, abs=SAME_LOGPROB)
    assert logprobs(ask(server, "words")) != pytest.approx(expected, abs=2 * SAME_LOGPROB)


def test_a_text_a_list_and_a_name_mean_the_same(server: Server) -> None:
    expected = ask(server, MIX, cache_prompt=False)
    for more in ({"model": "mix"}, {"deltas": LIST}, {"deltas": LIST[::-1]}, {"model": "json*.4+words*0.60"}):
        assert ask_anew(server, more) == pytest.approx(logprobs(expected), abs=1e-5)
    assert ask(server, MIX)["model"] == MIX
    assert ask(server, "mix")["model"] == "mix"
    assert ask(server, None, deltas=LIST)["model"] == MIX


def test_one_part_is_the_delta_and_none_is_the_base(server: Server) -> None:
    half = ask(server, "words", delta_scale=0.5, cache_prompt=False)
    assert logprobs(ask(server, "words*0.5", cache_prompt=False)) == pytest.approx(logprobs(half), abs=1e-5)
    base = ask(server, "base", cache_prompt=False)
    for more in ({"deltas": []}, {"model": "words*0+json*-0"}):
        assert ask_anew(server, more) == pytest.approx(logprobs(base), abs=1e-5)


def test_delta_scale_multiplies_all_parts(server: Server) -> None:
    found = ask(server, "words*1.2+json*0.8", delta_scale=0.5, cache_prompt=False)
    assert logprobs(found) == pytest.approx(logprobs(ask(server, MIX, cache_prompt=False)), abs=1e-5)


def test_blends_share_a_batch(server: Server) -> None:
    models = ["mix", "base", "mute", "words*0.3+json*0.3+loud*0.3", "words", "mix"]
    expected = [logprobs(ask(server, model, cache_prompt=False)) for model in models]
    with ThreadPoolExecutor(len(models)) as pool:
        found = list(pool.map(lambda model: logprobs(ask(server, model, cache_prompt=False)), models))
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=5e-3)


def test_template_and_end_tokens_are_the_first_parts_or_the_named_ones(server: Server) -> None:
    prompt = lambda **more: server.ask("/apply-template", messages=MESSAGES, **more)["prompt"]  # noqa: E731
    loud = prompt(model="loud")
    assert prompt(model="mute") == prompt(model="loud*0.1+words*1") == loud
    assert prompt(model="words*1+loud*0.1") == prompt(model="words") != loud
    assert server.get("/props?model=mute")["chat_template"] == server.get("/props?model=loud")["chat_template"]
    answer = server.ask("/v1/chat/completions", model="mute", messages=MESSAGES, max_tokens=4)
    assert answer["model"] == "mute"
    assert server.ask("/v1/messages", deltas=LIST, messages=MESSAGES, max_tokens=4)["model"] == MIX


def test_blends_are_listed(server: Server) -> None:
    listed = {model["id"]: model for model in server.get("/v1/models")["data"]}
    assert list(listed)[-2:] == ["mix", "mute"]
    assert listed["mix"]["blend"] == [
        {"name": "words", "scale": pytest.approx(0.6)}, {"name": "json", "scale": pytest.approx(0.4)},
    ]  # fmt: skip
    assert server.get("/v1/models/mix")["id"] == "mix"
    assert {row["name"]: row["template"] for row in server.get("/deltas")["blends"]} == {"mix": "words", "mute": "loud"}


# --- caches


def test_nothing_is_reused_across_blends(server: Server) -> None:
    prompt = "A prompt of these caches alone, " + "long enough to be worth a reuse " * 6
    owners = [
        "words",
        "words*0.6",
        MIX,
        "words*0.6+json*0.5",
        "words*0.6+json*0.4+loud*0.1",
        "words*0.4+json*0.6",
        "base",
    ]
    ask(server, "words", id_slot=0)  # Another prompt of the first owner, as a test before may have left it.
    for owner in owners:
        first = ask(server, owner, prompt=prompt, id_slot=0)
        assert first["timings"]["cache_n"] <= BOS_ALONE, owner
        again = ask(server, owner, prompt=prompt, id_slot=0)
        assert again["timings"]["cache_n"] > BOS_ALONE, owner
    # The same blend by another way of writing it is the same owner.
    ask(server, MIX, prompt=prompt, id_slot=0)
    assert ask(server, "json*0.4+words*0.6", prompt=prompt, id_slot=0)["timings"]["cache_n"] > BOS_ALONE
    assert ask(server, "mix", prompt=prompt, id_slot=0)["timings"]["cache_n"] > BOS_ALONE


def test_a_slot_file_belongs_to_its_blend(server: Server) -> None:
    ask(server, "mix", prompt="A prompt that is saved. " * 4, id_slot=1)
    server.ask("/slots/1?action=save", filename="mix.bin")
    server.ask("/slots/2?action=restore", filename="mix.bin", model="mix")
    server.ask("/slots/2?action=restore", filename="mix.bin", model="json*1+words*1")  # A scale is the file's own.
    for model in ("words", "words*0.6+loud*0.4", "json", "base", "words*0+json*0"):
        answer = server.post("/slots/2?action=restore", {"filename": "mix.bin", "model": model})
        assert "computed by 'json' and 'words'" in error(answer, 400).replace(
            "'words' and 'json'", "'json' and 'words'"
        )


# --- refusals


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "words*0.6+nobody*0.4"}, 404, "model 'nobody' does not exist"),
        ({"model": "words*0.6+base*0.4"}, 404, "model 'base' does not exist"),
        ({"model": "words*0.6+mix*0.4"}, 404, "model 'mix' does not exist"),
        ({"model": "+".join(f"d{i}*0.1" for i in range(9))}, 400, "a blend of 9 deltas, expected at most 8"),
        ({"deltas": [{"name": f"d{i}", "scale": 1} for i in range(9)]}, 400, "a blend of 9 deltas, expected at most 8"),
        ({"model": "words*nan+json*1"}, 400, "no decimal number"),
        ({"model": "words*inf"}, 400, "no decimal number"),
        ({"model": "words*1e3"}, 400, "no decimal number"),
        ({"model": "words*" + "9" * 400}, 400, "is not a number from -4 to 4"),
        ({"model": "words*4.5+json*1"}, 400, "is not a number from -4 to 4"),
        ({"model": "words*3+json*1", "delta_scale": 2}, 400, "is not a number from -4 to 4"),
        ({"model": "words*0.6+json"}, 400, "expected NAME*SCALE+NAME*SCALE"),
        ({"model": "words*0.6+"}, 400, "expected NAME*SCALE+NAME*SCALE"),
        ({"model": "*0.6"}, 400, "expected NAME*SCALE+NAME*SCALE"),
        ({"model": "words*0.6+words*0.4"}, 400, "'words' is twice in the blend"),
        ({"model": "w" * 3000 + "*1"}, 400, "expected at most 2048"),
        ({"deltas": [{"name": "words", "scale": "much"}]}, 400, '"deltas" must be a list of'),
        ({"deltas": [{"scale": 1}]}, 400, '"deltas" must be a list of'),
        ({"deltas": {"words": 1}}, 400, '"deltas" must be a list of'),
        ({"deltas": [{"name": "words", "scale": 1e39}]}, 400, "is not a number from -4 to 4"),
    ],
)
def test_bad_blends_are_refused_in_one_line(server: Server, body: dict[str, Any], status: int, message: str) -> None:
    answer = requests.post(server.url + "/completion", json={"prompt": "a", "n_predict": 1} | body, timeout=60)
    found = error(answer, status)
    assert message in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"spec": MIX}, '"name" is missing'),
        ({"name": "new"}, 'needs "spec" or "deltas"'),
        ({"name": "new", "spec": MIX, "deltas": LIST}, 'needs "spec" or "deltas"'),
        ({"name": "new", "deltas": []}, "at least one delta"),
        ({"name": "words", "spec": MIX}, "a delta has this name"),
        ({"name": "base", "spec": MIX}, "the base has this name"),
        ({"name": "mix", "spec": MIX}, "another blend has this name"),
        ({"name": "a/b", "spec": MIX}, "without slashes"),
        ({"name": "new", "spec": "words*1+nobody*1"}, "there is no delta 'nobody'"),
        ({"name": "new", "spec": "words*5"}, "is not a number from -4 to 4"),
        ({"name": "new", "spec": MIX, "template": "loud"}, "no part of the blend"),
    ],
)
def test_bad_names_of_blends_are_refused(server: Server, body: dict[str, Any], message: str) -> None:
    assert message in error(server.post("/deltas/blend", body), 400)


def test_blends_come_and_go(server: Server) -> None:
    made = server.ask("/deltas/blend", name="new", spec="words*1+loud*0.5", template="loud")
    assert made == {
        "name": "new", "template": "loud", "deltas": [{"name": "words", "scale": 1.0}, {"name": "loud", "scale": 0.5}],
    }  # fmt: skip
    assert ask(server, "new")["model"] == "new"
    assert "a blend has the name" in error(server.post("/deltas/load", {"name": "new", "file": "x.dq.gguf"}), 400)
    server.ask("/deltas/unload", name="new")
    assert "does not exist" in error(complete(server, "new"), 404)
    server.ask("/deltas/blend", name="new", deltas=LIST)
    server.ask("/deltas/unload", name="new")


@pytest.mark.parametrize(
    ("blends", "message"),
    [
        (["mix"], "expected NAME=SPEC"),
        (["mix=words*1+nobody*1"], "there is no delta 'nobody'"),
        (["mix=words*1", "mix=words*2"], "another blend has this name"),
        (["words=words*1"], "a delta has this name"),
        (["mix=words*nan"], "no decimal number"),
        (["mix=words*9"], "is not a number from -4 to 4"),
        (["mix=words*1,template=json"], "no part of the blend"),
        (["mix=" + "+".join(f"d{i}*1" for i in range(9))], "a blend of 9 deltas, expected at most 8"),
    ],
)
def test_a_bad_blend_stops_the_start(artefacts: Artefacts, blends: list[str], message: str) -> None:
    options = [item for blend in blends for item in ("--blend", blend)]
    command = [need_program("llama-server"), "-m", artefacts.base, "--delta", f"words={artefacts.words}", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr


# --- permissions


def test_a_limited_key_needs_every_part(artefacts: Artefacts, tmp_path: Path) -> None:
    keys = {"both": ["words", "json"], "one": ["words", "mix", "words*0.5+json*0.5"], "none": []}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    deltas = ("--delta", f"words={artefacts.words},json={artefacts.json}", "--blend", f"mix={MIX}")
    options = ("--delta-keys", tmp_path / "keys.json", "--api-key", "admin")
    with serve(artefacts.base, tmp_path, *deltas, *options, *CONTEXT) as server:

        def status(key: str, path: str = "/completion", **body: Any) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            sent = {"prompt": "a", "n_predict": 1} | body
            return requests.post(server.url + path, json=sent, headers=headers, timeout=60).status_code

        for body in ({"model": MIX}, {"model": "mix"}, {"deltas": LIST}, {"model": "words", "deltas": LIST}):
            assert [status(key, **body) for key in ("both", "one", "none", "admin")] == [200, 403, 403, 200], body
            assert status("one", "/apply-template", messages=MESSAGES, **body) == 403
            assert status("one", "/tokenize", content="a", **body) == 403
        assert status("one", model="words*0.5") == 200
        assert status("one", model="words*0.5+nobody*0.5") == status("one", model="words*0.5+json*0.5") == 403
        assert status("both", deltas=[]) == 403  # It is the base.
        assert status("both", "/deltas/blend", name="x", spec=MIX) == 403

        def models(key: str) -> list[str]:
            headers = {"Authorization": f"Bearer {key}"}
            listed = requests.get(server.url + "/v1/models", headers=headers, timeout=60).json()["data"]
            return [model["id"] for model in listed]

        assert models("both") == ["words", "json", "mix"]
        assert models("one") == ["words"]


# --- life


def test_parts_are_brought_in_and_held(delta_server: Server, delta_texts: dict[str, str]) -> None:
    assert set(states(delta_server).values()) == {"registered"}
    ask(delta_server, "words*0.5+json*0.5")
    found = states(delta_server)
    assert found["words"] == found["json"] == "loaded"
    assert found["loud"] == "registered"
    assert idle_row(delta_server, "json")["requests_served"] == 1
    delta_server.ask("/deltas/unload", name="json")
    assert "model 'json' does not exist" in error(complete(delta_server, "words*0.5+json*0.5"), 404)
    assert complete(delta_server, "words").json()["content"] == delta_texts["words"]


def test_a_broken_part_fails_the_request_alone(delta_server: Server) -> None:
    assert "broken.dq.gguf" in error(complete(delta_server, "words*1+broken*1"), 500)
    assert idle_row(delta_server, "words")["requests_running"] == 0
    assert complete(delta_server, "words*1+json*1").status_code == 200


def test_blends_over_too_little_memory_do_not_wait_for_each_other(
    artefacts: Artefacts, delta_folder: Path, tmp_path: Path
) -> None:
    """Three of the four deltas fit: each blend of two needs another pair, and no request may hold what another one waits for."""
    options = ("--deltas-dir", delta_folder, "--delta-memory", "1")
    pairs = ["words*1+json*1", "json*1+loud*1", "loud*1+again*1", "again*1+words*1", "words", "json", "loud", "again"]
    with serve(artefacts.base, tmp_path, *options, *CONTEXT) as server:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda model: complete(server, model).status_code, pairs * 3))
        assert set(found) == {200}
        four = complete(server, "words*1+json*1+loud*1+again*1")
        assert "does not fit" in error(four, 503)
        assert complete(server, "words*1+json*1").status_code == 200


def test_a_blend_of_more_than_may_run_is_refused(artefacts: Artefacts, delta_folder: Path, tmp_path: Path) -> None:
    options = ("--deltas-dir", delta_folder, "--delta-max-active", "2")
    with serve(artefacts.base, tmp_path, *options, *CONTEXT) as server:
        assert "--delta-max-active" in error(complete(server, "words*1+json*1+loud*1"), 503)
        with ThreadPoolExecutor(6) as pool:
            models = ["words*1+json*1", "loud*1+again*1", "words", "loud", "json*1+loud*1", "base"] * 2
            assert {answer.status_code for answer in pool.map(lambda m: complete(server, m), models)} == {200}

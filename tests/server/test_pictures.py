"""Pictures in chats: a Qwen2-VL and a Gemma 3 with their --mmproj, base and deltas in one server.

The reference is the model with the delta merged into its weights, in a server of its own with the same mmproj.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from tests.support.delta_server import error
from tests.support.models import convert_hf, rewrite_gguf
from tests.support.server_fixtures import Server, serve
from tests.support.tiny_architectures import write_tuned
from tests.support.tiny_vision import VISION_MODELS, convert_mmproj, picture, write_vision_base

CONTEXT = ("-c", "4096", "-np", "4", "--alias", "base", "-ctk", "f32", "-ctv", "f32", "-fa", "off")
# Of log probabilities; everything is F32. Gemma's differ by 0.004 between a delta and the model with it in its weights.
SAME_LOGPROB = 1e-2
SCALES = (0.6, 0.4)
BLEND = f"one*{SCALES[0]}+two*{SCALES[1]}"
# What a fine-tune's tokenizer may say of its own; the base's begins with token 1 and adds no end.
ENDS: dict[str, dict[str, Any]] = {
    "no-bos": {"tokenizer.ggml.add_bos_token": False},
    "other-bos": {"tokenizer.ggml.bos_token_id": 300},
    "eos": {"tokenizer.ggml.add_eos_token": True},
}
RED, BLUE = picture(255, 40, 0), picture(0, 60, 255)


class Seeing(NamedTuple):
    """The server with both deltas, its files, and what each one's own model says about the red picture."""

    server: Server
    options: tuple[str | Path, ...]  # of a server with the same base and deltas
    base: Path
    merged: Path  # It is the base with the delta `one` in its weights.
    mmproj: Path
    has_windows: bool  # Its attention slides.
    expected: dict[str, list[float]]


def chat(server: Server, model: str, url: str | None = RED, **more: Any) -> dict[str, Any]:
    """A chat with a picture, or with text alone, whose answer has its log probabilities."""
    shown = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    content = [{"type": "text", "text": "the dog sees"}, *shown, {"type": "text", "text": "and makes"}]
    body = {"temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 5, "ignore_eos": True}
    return server.ask(
        "/v1/chat/completions", model=model, messages=[{"role": "user", "content": content}], **body | more
    )


def logprobs(answer: dict[str, Any]) -> list[float]:
    return [top["logprob"] for token in answer["choices"][0]["logprobs"]["content"] for top in token["top_logprobs"]]


def cached(answer: dict[str, Any]) -> int:
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def distance(found: list[float], expected: list[float]) -> float:
    if len(found) != len(expected):
        return np.inf  # Tokens without text have no log probabilities.
    return float(np.abs(np.array(found) - np.array(expected)).max())


@pytest.fixture(scope="module", params=VISION_MODELS)
def seeing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seeing]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    checkpoint = write_vision_base(request.param, folder / "base")
    base, mmproj = (
        convert_hf(checkpoint, folder / "base.gguf", "ALL_F32"),
        convert_mmproj(checkpoint, folder / "mmproj.gguf"),
    )
    deltas = [folder / "one.dq.gguf", folder / "two.dq.gguf"]
    for seed, delta in enumerate(deltas):
        tuned = write_tuned(checkpoint, folder / str(seed), seed, is_kept=VISION_MODELS[request.param].is_of_tower)
        convert(Job(base, tuned, delta))
    merged = {"base": base, "one": folder / "m-one.gguf", "two": folder / "m-two.gguf", BLEND: folder / "m-both.gguf"}
    merge(base, deltas[0], merged["one"], MergeOptions(out_type="f32"))
    merge(base, deltas[1], merged["two"], MergeOptions(out_type="f32"))
    merge(base, tuple(deltas), merged[BLEND], MergeOptions(out_type="f32", scales=SCALES))
    expected = {}
    for name, path in merged.items():
        with serve(path, folder, "--mmproj", mmproj, *CONTEXT) as plain:
            expected[name] = logprobs(chat(plain, "base"))
    options = ("--mmproj", mmproj, "--delta", deltas[0], "--delta", deltas[1], *CONTEXT)
    with serve(base, folder, *options) as server:
        yield Seeing(server, options, base, merged["one"], mmproj, request.param == "gemma3", expected)


def test_a_picture_is_seen_as_by_the_merged_model(seeing: Seeing) -> None:
    for name, expected in seeing.expected.items():
        assert distance(logprobs(chat(seeing.server, name)), expected) <= SAME_LOGPROB, name
        assert distance(logprobs(chat(seeing.server, name, BLUE)), expected) > 3 * SAME_LOGPROB, name
        others = [found for other, found in seeing.expected.items() if other != name]
        assert all(distance(expected, other) > 3 * SAME_LOGPROB for other in others), name


def test_pictures_and_texts_share_batches(seeing: Seeing) -> None:
    asked = [(name, url) for name in seeing.expected for url in (RED, None, BLUE, None)] * 2
    alone = {each: logprobs(chat(seeing.server, *each, cache_prompt=False)) for each in {*asked}}
    with ThreadPoolExecutor(len(asked)) as pool:
        together = pool.map(lambda each: logprobs(chat(seeing.server, *each, cache_prompt=False)), asked)
        for each, found in zip(asked, together, strict=True):
            assert distance(found, alone[each]) <= SAME_LOGPROB, each


def test_each_of_several_answers_has_the_picture(seeing: Seeing) -> None:
    answer = chat(seeing.server, "one", n=2)
    for choice in answer["choices"]:
        assert distance(logprobs({"choices": [choice]}), seeing.expected["one"]) <= SAME_LOGPROB


@pytest.mark.parametrize("cache_ram", ["0", "64"])
def test_a_picture_belongs_to_its_delta(seeing: Seeing, tmp_path: Path, cache_ram: str) -> None:
    """One slot, one picture, one prompt: only the one that computed it uses it again."""
    with serve(seeing.base, tmp_path, *seeing.options, "--cache-ram", cache_ram) as server:
        seen, previous = set(), ""
        for name in ("one", "one", "two", "base", "base", "one", BLEND, BLEND, "two"):
            answer = chat(server, name, id_slot=0)
            assert (cached(answer) > 0) == (name in seen if cache_ram != "0" else name == previous), (name, previous)
            assert distance(logprobs(answer), seeing.expected[name]) <= SAME_LOGPROB, name
            seen.add(name)
            previous = name
        other = chat(server, previous, BLUE, id_slot=0)
        assert 0 < cached(other) < cached(chat(server, previous, BLUE, id_slot=0))


def test_a_slot_file_keeps_a_picture_for_its_delta(seeing: Seeing, tmp_path: Path) -> None:
    options = (*seeing.options, "--cache-ram", "0", "--slot-save-path", tmp_path)
    with serve(seeing.base, tmp_path, *options) as server:
        chat(server, "one", id_slot=0)
        server.ask("/slots/0?action=save", filename="one.bin")
        assert "two" in error(server.post("/slots/1?action=restore", {"filename": "one.bin", "model": "two"}), 400)
        for name in ("one", "two"):
            server.ask("/slots/1?action=restore", filename="one.bin", model="one")
            answer = chat(server, name, id_slot=1)
            # A window that has slid cannot go back to where the prompt ends.
            assert (cached(answer) > 0) == (name == "one" and not seeing.has_windows)
            assert distance(logprobs(answer), seeing.expected[name]) <= SAME_LOGPROB
    with serve(seeing.base, tmp_path, "--mmproj", seeing.mmproj, *CONTEXT, "--slot-save-path", tmp_path) as alone:
        error(alone.post("/slots/1?action=restore", {"filename": "one.bin"}), 400)


def test_a_prompt_begins_and_ends_as_the_delta_does(seeing: Seeing, tmp_path: Path) -> None:
    """Special tokens of its own, around a picture or none; the merged model's vocabulary has them."""
    deltas, expected = [], {}
    for name, fields in ENDS.items():
        tuned, merged = tmp_path / f"{name}-tuned.gguf", tmp_path / f"{name}.gguf"
        deltas.append(tmp_path / f"{name}.dq.gguf")
        convert(Job(seeing.base, rewrite_gguf(seeing.merged, tuned, fields=fields), deltas[-1]))
        merge(seeing.base, deltas[-1], merged, MergeOptions(out_type="f32"))
        with serve(merged, tmp_path, "--mmproj", seeing.mmproj, *CONTEXT) as reference:
            expected |= {(name, url): chat(reference, "base", url) for url in (RED, None)}
    options = [option for delta in deltas for option in ("--delta", delta)]
    with serve(seeing.base, tmp_path, *seeing.options, *options) as server:
        for (name, url), wanted in expected.items():
            found = chat(server, name, url)
            assert found["usage"]["prompt_tokens"] == wanted["usage"]["prompt_tokens"], name
            assert distance(logprobs(found), logprobs(wanted)) <= SAME_LOGPROB, name
            assert distance(logprobs(chat(server, "one", url)), logprobs(wanted)) > 3 * SAME_LOGPROB, name

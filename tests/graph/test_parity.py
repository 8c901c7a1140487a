"""Logits of base + delta against the same weights merged into a plain F32 model, both run by the same build.

The merged model (dqrelo-merge --outtype f32) is the definition; what differs is only the arithmetic of the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.cli import convert, merge
from dqrelo_gguf.convert.methods import METHODS
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.families import SHAPES, Family, Maker
from tests.support.greedy import assert_greedy, generate_tokens
from tests.support.logits import OTHER, TEXT, nmse, open_model
from tests.support.server_fixtures import TINY, Artefacts
from tests.support.tiny_llama import Shape, base_weights, dequantised, read_weights, tuned_weights, write_model

# The op rounds activations to 8 bits: a relative error of about 1/500 in the delta's part. Its square, twice
# over for the cache in F16, is 1e-5.
MAX_NMSE = 1e-4
# Rounding of the base is what any run of it has; the delta may add as much again.
MAX_OVER_BASE = 2.0

N_GENERATED = 24


@pytest.fixture(scope="module")
def family(make_family: Maker) -> Family:
    return make_family(Shape())


@pytest.fixture(scope="module")
def runtime(family: Family) -> Iterator[Runtime]:
    with open_model(family.base) as rt:
        yield rt


@pytest.fixture(scope="module")
def deltas(family: Family, runtime: Runtime) -> list[Delta]:
    return [runtime.load_delta(path) for path in family.deltas]


@pytest.mark.parametrize("base_type", ["F32", "F16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_delta_on_a_float_base_is_the_merged_model(make_family: Maker, shape: Shape, base_type: str) -> None:
    family = make_family(shape, base_type)
    with open_model(family.base) as rt:
        tokens, other = rt.tokenize(TEXT), rt.tokenize(OTHER)
        first, second = (rt.load_delta(path) for path in family.deltas)
        base = rt.logits(tokens)
        expected = [family.merged_logits(0, tokens), family.merged_logits(1, other)]
        assert first.inert == second.inert == []
        assert nmse(base, expected[0]) > 0.1  # The delta does much, so that a part left out shows.

        assert nmse(rt.logits(tokens, first), expected[0]) <= MAX_NMSE
        mixed = rt.logits([tokens, tokens, other], [first, None, second])
        assert nmse(mixed[0], expected[0]) <= MAX_NMSE
        assert nmse(mixed[2], expected[1]) <= MAX_NMSE
        assert np.array_equal(mixed[1], rt.logits([tokens, tokens, other])[1])


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.keeps is None])
def test_a_delta_of_every_method_is_the_merged_model(make_family: Maker, method: str) -> None:
    family = make_family(Shape(), "F16", 1, "--method", method)
    with open_model(family.base) as rt:
        tokens = rt.tokenize(TEXT)
        delta = rt.load_delta(family.deltas[0])
        expected = family.merged_logits(0, tokens)
        assert delta.inert == []
        assert nmse(rt.logits(tokens), expected) > 0.1
        assert nmse(rt.logits(tokens, delta), expected) <= MAX_NMSE


def test_the_bound_sees_one_vector_left_out(make_family: Maker, tmp_path: Path) -> None:
    family = make_family(Shape())
    tuned = write_model(tmp_path / "tuned.gguf", Shape(), tuned_weights(base_weights(Shape()), 0))
    partial = tmp_path / "partial.dq.gguf"
    left_out = ["--exclude", "blk.1.ffn_norm.weight", "--ratio", "1/7"]
    assert convert.main([str(family.base), str(tuned), "-o", str(partial), *left_out]) == 0
    with open_model(family.base) as rt:
        tokens = rt.tokenize(TEXT)
        assert nmse(rt.logits(tokens, rt.load_delta(partial)), family.merged_logits(0, tokens)) > 10 * MAX_NMSE


@pytest.mark.parametrize("repack", [True, False], ids=["repacked", "plain"])
@pytest.mark.parametrize(
    "base_type", ["BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_1", "Q4_0", "IQ4_XS", "Q2_K", "MXFP4"]
)
def test_delta_on_a_quantised_base_adds_no_more_error_than_the_base_has(
    make_family: Maker, tmp_path: Path, base_type: str, repack: bool
) -> None:
    family = make_family(Shape(), base_type)
    with open_model(family.base, repack=repack) as rt:
        tokens, other = rt.tokenize(TEXT), rt.tokenize(OTHER)
        with open_model(dequantised(family.base, tmp_path / "plain.gguf", family.shape)) as plain:
            allowed = [MAX_OVER_BASE * nmse(rt.logits(t), plain.logits(t)) for t in (tokens, other)]
        expected = [family.merged_logits(0, tokens), family.merged_logits(1, other)]
        first, second = (rt.load_delta(path) for path in family.deltas)

        assert nmse(rt.logits(tokens, first), expected[0]) <= allowed[0]
        mixed = rt.logits([tokens, tokens, other], [first, None, second])
        assert nmse(mixed[0], expected[0]) <= allowed[0]
        assert nmse(mixed[2], expected[1]) <= allowed[1]
        assert np.array_equal(mixed[1], rt.logits([tokens, tokens, other])[1])


def test_a_row_without_a_delta_is_the_plain_base_bit_for_bit(
    family: Family, runtime: Runtime, deltas: list[Delta]
) -> None:
    batch = [runtime.tokenize(text) for text in (TEXT, OTHER, TEXT, OTHER)]
    with open_model(family.base) as plain:  # The model is as good as in a process that never loaded a delta.
        expected = plain.logits(batch)
    mixed = runtime.logits(batch, [None, deltas[0], deltas[1], None])
    assert np.array_equal(mixed[0], expected[0])
    assert np.array_equal(mixed[3], expected[3])
    assert not np.array_equal(mixed[1], expected[1])
    for got, want in zip(runtime.logits(batch), expected, strict=True):
        assert np.array_equal(got, want)


def test_a_sequence_in_a_mixed_batch_is_what_it_is_alone(family: Family) -> None:
    # Without flash attention, whose kernel on the CPU depends on the number of tokens.
    with open_model(family.base, flash_attn="off") as rt:
        tokens = rt.tokenize(TEXT)
        first, second = (rt.load_delta(path) for path in family.deltas)
        row_deltas = [first, None, second, first]
        for got, row_delta in zip(rt.logits([tokens] * 4, row_deltas), row_deltas, strict=True):
            assert nmse(got, rt.logits(tokens, row_delta)) <= 1e-8


def test_one_token_at_a_time_is_the_merged_model(family: Family, runtime: Runtime, deltas: list[Delta]) -> None:
    prompt = runtime.tokenize("the dog")
    outputs = generate_tokens(runtime, prompt, [deltas[0], None, deltas[1]], N_GENERATED)
    assert len({tuple(tokens) for tokens in outputs}) == 3
    for tokens, model in zip(outputs, (family.merged[0], family.base, family.merged[1]), strict=True):
        with open_model(model) as plain:
            assert_greedy(plain, prompt, tokens)


def test_scale_of_zero_is_the_base_and_of_a_half_lies_between(
    make_family: Maker, tmp_path: Path, runtime: Runtime, deltas: list[Delta]
) -> None:
    tokens = runtime.tokenize(TEXT)
    base = runtime.logits(tokens)
    assert nmse(runtime.logits(tokens, deltas[0], scale=0.0), base) <= 1e-10

    # Half the delta is the model half way between the base and the merged one.
    family = make_family(Shape())
    start, end = read_weights(family.base), read_weights(family.merged[0])
    half = write_model(tmp_path / "half.gguf", family.shape, {name: (start[name] + end[name]) / 2 for name in start})
    with open_model(half) as rt:
        expected = rt.logits(tokens)
    mixed = runtime.logits([tokens, tokens], [deltas[0], deltas[0]], scale=[0.5, 1.0])
    assert nmse(mixed[0], expected) <= MAX_NMSE
    assert nmse(mixed[1], expected) > 100 * MAX_NMSE


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
def test_threads_do_not_change_the_result(family: Family, n_threads: int) -> None:
    with open_model(family.base, n_threads=n_threads) as rt:
        tokens = rt.tokenize(TEXT)
        rows = rt.logits([tokens, tokens], [rt.load_delta(family.deltas[0]), None])
    assert nmse(rows[0], family.merged_logits(0, tokens)) <= MAX_NMSE


@pytest.mark.parametrize("kv_unified", [True, False], ids=["shared memory", "memory each"])
@pytest.mark.parametrize("flash_attn", ["on", "off"])
def test_a_prompt_longer_than_a_graph_is_the_merged_model(family: Family, flash_attn: str, kv_unified: bool) -> None:
    with open_model(family.base, n_ubatch=32, n_batch=96, flash_attn=flash_attn, kv_unified=kv_unified) as rt:
        tokens = np.resize(rt.tokenize(TEXT), 200)
        mixed = rt.logits([tokens, tokens[:70]], [rt.load_delta(path) for path in family.deltas])
    assert nmse(mixed[0], family.merged_logits(0, tokens)) <= MAX_NMSE
    assert nmse(mixed[1], family.merged_logits(1, tokens[:70])) <= MAX_NMSE


def test_sixteen_deltas_at_once_on_sixteen_layers(make_family: Maker) -> None:
    n = 16
    family = make_family(Shape(n_embd=64, n_layer=16, n_head=2, n_head_kv=1, n_ff=96), "F16", n, "--rank", "8")
    with open_model(family.base, n_seq_max=n + 1) as rt:
        tokens = rt.tokenize(OTHER)
        loaded = [rt.load_delta(path) for path in family.deltas]
        rows = rt.logits([tokens] * (n + 1), [*loaded, None])
        plain = rt.logits([tokens] * (n + 1))
        outputs = generate_tokens(rt, tokens, [*loaded, None], N_GENERATED)
    for i in (0, 5, 15):
        with open_model(family.merged[i]) as plain_model:
            assert_greedy(plain_model, tokens, outputs[i])
    assert np.array_equal(rows[n], plain[n])
    for i in range(n):
        assert nmse(rows[i], family.merged_logits(i, tokens)) <= MAX_NMSE, f"delta {i}"


def test_deltas_come_and_go_between_batches(family: Family) -> None:
    with open_model(family.base) as rt:
        tokens = rt.tokenize(TEXT)
        expected = [family.merged_logits(i, tokens) for i in range(2)]
        base = rt.logits(tokens)
        for i in (0, 1, 0, 1, 1):
            with rt.load_delta(family.deltas[i]) as delta:
                assert nmse(rt.logits(tokens, delta), expected[i]) <= MAX_NMSE
            assert np.array_equal(rt.logits(tokens), base)


QUESTION = "### Question:\nPut these letters in alphabetical order: x d l f a k e\n### Answer:\n"


def test_trained_fine_tunes_answer_as_when_merged(artefacts: Artefacts, tmp_path: Path) -> None:
    with open_model(artefacts.base) as rt:
        words, extract = rt.load_delta(artefacts.words), rt.load_delta(artefacts.json)
        tokens = rt.tokenize(QUESTION, delta=words)
        rows = rt.logits([tokens, tokens, tokens], [words, None, extract])
        outputs = generate_tokens(rt, tokens, [words, None, extract], N_GENERATED)
        assert np.array_equal(rows[1], rt.logits([tokens] * 3)[1])
    assert len({tuple(output) for output in outputs}) == 3
    for i, path in ((0, artefacts.words), (2, artefacts.json)):
        merged = tmp_path / f"{path.stem}.merged.gguf"
        assert merge.main([str(artefacts.base), str(path), "-o", str(merged), "--outtype", "f32"]) == 0
        with open_model(merged) as plain:
            assert nmse(rows[i], plain.logits(tokens)) <= MAX_NMSE
            assert_greedy(plain, tokens, outputs[i])


def test_logits_are_those_of_transformers(artefacts: Artefacts) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY / "base", dtype=torch.float32)
    with open_model(artefacts.base) as rt:
        tokens = rt.tokenize(QUESTION)
        got = rt.logits(tokens)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()
    assert nmse(got, expected) <= MAX_NMSE


@pytest.mark.slow
@pytest.mark.parametrize("base_type", ["F16", "Q8_0", "Q4_K_M"])
def test_a_longer_and_wider_model(make_family: Maker, tmp_path: Path, base_type: str) -> None:
    shape = replace(Shape(), n_embd=1024, n_layer=8, n_head=16, n_head_kv=4, n_ff=2816)
    family = make_family(shape, base_type)
    with open_model(family.base) as rt:
        tokens = np.resize(rt.tokenize(TEXT), 700)
        expected = family.merged_logits(0, tokens)
        with open_model(dequantised(family.base, tmp_path / "plain.gguf", shape)) as plain:
            allowed = max(MAX_NMSE, MAX_OVER_BASE * nmse(rt.logits(tokens), plain.logits(tokens)))
        first, second = (rt.load_delta(path) for path in family.deltas)
        assert nmse(rt.logits(tokens, first), expected) <= allowed
        assert nmse(rt.logits([tokens, tokens], [second, first])[1], expected) <= allowed

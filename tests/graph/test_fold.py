"""Long prompts, whose rows have the signs folded into the base's product: as right as without, whoever else is in the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.families import SHAPES, Maker
from tests.support.logits import OTHER, TEXT, Floats, nmse, open_model
from tests.support.tiny_llama import Shape, dequantised

ROOT = Path(__file__).resolve().parents[2]

MAX_NMSE = 1e-4  # As in test_parity.py.

# A sequence's rows are folded where it has 12 of them for each expert on average: from 54 tokens on, counted in steps of 32.
EXPERTS = Shape(n_embd=128, n_ff=96, n_expert=9)

# Writes the logits of a prompt of N tokens with a delta.
RUN = """
import sys
import numpy as np
from tests.support.logits import TEXT, open_model
base, delta, out, n = sys.argv[1:]
with open_model(base) as rt:
    tokens = rt.tokenize(TEXT * 4)[: int(n)]
    np.save(out, rt.logits(tokens, rt.load_delta(delta)))
"""


def logits_of_a_process(base: Path, delta: Path, out: Path, n: int, fold: str) -> Floats:
    command = [sys.executable, "-c", RUN, str(base), str(delta), str(out), str(n)]
    subprocess.run(command, check=True, timeout=300, cwd=ROOT, env=os.environ | {"DQRELO_FOLD": fold})
    logits: Floats = np.load(out)
    return logits


@pytest.mark.parametrize("base_type", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M"])
@pytest.mark.parametrize("shape", ["256", "576"])
def test_a_long_prompt_is_the_merged_model(make_family: Maker, tmp_path: Path, shape: str, base_type: str) -> None:
    family = make_family(SHAPES[shape], base_type)
    with open_model(family.base) as rt:
        tokens, short = rt.tokenize(TEXT * 4), rt.tokenize(OTHER)
        with open_model(dequantised(family.base, tmp_path / "plain.gguf", family.shape)) as plain:
            allowed = max(MAX_NMSE, 2 * nmse(rt.logits(tokens), plain.logits(tokens)))
        expected = [family.merged_logits(0, tokens), family.merged_logits(1, tokens), family.merged_logits(1, short)]
        first, second = (rt.load_delta(path) for path in family.deltas)
        assert nmse(rt.logits(tokens), expected[0]) > 0.1
        assert nmse(rt.logits(tokens, first), expected[0]) <= allowed
        mixed = rt.logits([tokens, short, tokens, tokens], [first, second, None, second])
        assert nmse(mixed[0], expected[0]) <= allowed
        assert nmse(mixed[1], expected[2]) <= allowed
        assert nmse(mixed[3], expected[1]) <= allowed


# Only over F32 do all tokens of base and merged model go to the same experts; rounding sends some to others.
def test_a_long_prompt_of_experts_is_the_merged_model(make_family: Maker) -> None:
    family = make_family(EXPERTS, "F32")
    with open_model(family.base) as rt:
        tokens, short = rt.tokenize(TEXT * 4), rt.tokenize(OTHER)
        first, second = (rt.load_delta(path) for path in family.deltas)
        mixed = rt.logits([tokens, short, tokens, tokens], [first, second, None, second])
        expected = [family.merged_logits(i, text) for i, text in ((0, tokens), (1, short), (1, tokens))]
        for got, wanted in zip((mixed[0], mixed[1], mixed[3]), expected, strict=True):
            assert nmse(got, wanted) <= MAX_NMSE
        assert np.array_equal(mixed[2], rt.logits([tokens, short, tokens, tokens])[2])


# Of these Q4_0 and Q4_K are repacked when they are loaded; ggml multiplies Q3_K in tiles where an expert has eight rows.
@pytest.mark.parametrize("base_type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K_M", "Q3_K_S"])
def test_experts_are_folded_for_prompts_with_enough_rows_for_each(
    make_family: Maker, tmp_path: Path, base_type: str
) -> None:
    # ggml rounds activations to 8 bits for its products of quantised types, the fold does not.
    allowed = MAX_NMSE * (5 if base_type.startswith("Q") else 1)
    shape = replace(EXPERTS, n_embd=256, n_ff=256, n_layer=1)
    family = make_family(shape, base_type, 1, "--include", "_exps")
    for n, is_folded in ((63, False), (64, True)):
        runs = [
            logits_of_a_process(family.base, family.deltas[0], tmp_path / f"{n}-{fold}.npy", n, fold) for fold in "01"
        ]
        assert np.array_equal(*runs) != is_folded
        assert nmse(*runs) <= allowed


def test_watched_experts_are_not_folded(make_family: Maker, tmp_path: Path) -> None:
    family = make_family(EXPERTS, "F16", 1, "--include", "_exps")
    plain = logits_of_a_process(family.base, family.deltas[0], tmp_path / "plain.npy", 64, "0")
    with open_model(family.base, watch=True) as rt:
        assert np.array_equal(rt.logits(rt.tokenize(TEXT * 4)[:64], rt.load_delta(family.deltas[0])), plain)


# Of these Q4_0 and Q4_K are repacked when they are loaded.
@pytest.mark.parametrize("base_type", ["F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q3_K_S", "Q4_K_M", "Q5_K_M"])
def test_only_prompts_of_32_tokens_or_more_are_folded(make_family: Maker, tmp_path: Path, base_type: str) -> None:
    family = make_family(SHAPES["256"], base_type, 1, "--exclude", "token_embd,output")
    with open_model(family.base) as rt:
        expected = family.merged_logits(0, rt.tokenize(TEXT * 4)[:32])
    for n, is_folded in ((31, False), (32, True)):
        runs = [
            logits_of_a_process(family.base, family.deltas[0], tmp_path / f"{n}-{fold}.npy", n, fold) for fold in "01"
        ]
        assert np.array_equal(*runs) != is_folded
        two_nodes, folded = (nmse(run, expected[:n]) for run in runs)
        assert two_nodes <= 10 * MAX_NMSE  # Of most of these types ggml rounds activations to 8 bits.
        assert folded <= 1.1 * two_nodes


# At this ratio all weights have sign factors of two planes or more, and hardly one a plane of its own.
SIGN_FACTORS = ("--method", "best", "--ratio", "1/24")


@pytest.mark.parametrize("base_type", ["F32", "F16", "Q4_K_M"])
def test_a_long_prompt_with_sign_factors_is_the_merged_model(
    make_family: Maker, tmp_path: Path, base_type: str
) -> None:
    family = make_family(SHAPES["256"], base_type, 2, *SIGN_FACTORS)
    # Without flash attention, whose kernel on the CPU depends on the number of tokens.
    with open_model(family.base, flash_attn="off") as rt:
        # Of weights in another layout ggml multiplies the last rows in other sums, if their number is not a multiple of four.
        tokens, short = rt.tokenize(TEXT * 4)[:96], rt.tokenize(OTHER)
        with open_model(dequantised(family.base, tmp_path / "plain.gguf", family.shape)) as plain:
            allowed = max(MAX_NMSE, 2 * nmse(rt.logits(tokens), plain.logits(tokens)))
        first, second = (rt.load_delta(path) for path in family.deltas)
        mixed = rt.logits([tokens, short, tokens, tokens], [first, second, None, second])
        for got, i, text in ((mixed[0], 0, tokens), (mixed[1], 1, short), (mixed[3], 1, tokens)):
            assert nmse(got, family.merged_logits(i, text)) <= allowed
        # ggml's own products of F16 depend on the batch's shape where it has AVX-512.
        alone = rt.logits(tokens)
        by_shape = max(1e-8, 2 * nmse(rt.logits([tokens, short, tokens, tokens])[2], alone))
        assert nmse(mixed[2], alone) <= by_shape
        for got, delta in ((mixed[0], first), (mixed[3], second)):
            assert nmse(got, rt.logits(tokens, delta)) <= by_shape


def test_sign_factors_of_long_prompts_over_f32_are_not_quantised(make_family: Maker) -> None:
    family = make_family(SHAPES["256"], "F32", 1, *SIGN_FACTORS)
    with open_model(family.base, flash_attn="off", type_k="f32", type_v="f32") as rt:
        tokens = rt.tokenize(TEXT * 4)
        delta = rt.load_delta(family.deltas[0])
        with open_model(family.merged[0], flash_attn="off", type_k="f32", type_v="f32") as merged:
            expected = merged.logits(tokens)
        error = [nmse(rt.logits(tokens[:n], delta), expected[:n]) for n in (31, 32)]
        assert error[1] < 0.1 * error[0]


@pytest.mark.parametrize("shape", [SHAPES["256"], EXPERTS], ids=["256", "experts"])
def test_a_prompt_is_rounded_alike_whoever_else_is_in_the_batch(make_family: Maker, shape: Shape) -> None:
    family = make_family(shape, "F16")
    # Without flash attention, whose kernel on the CPU depends on the number of tokens.
    with open_model(family.base, flash_attn="off") as rt:
        long, short = rt.tokenize(TEXT * 4), rt.tokenize(TEXT)
        assert len(short) < 32 <= len(long)
        first, second = (rt.load_delta(path) for path in family.deltas)
        prompts = [long, short, short, long, long, short]
        bound = [first, first, second, second, first, None]
        scales = [1.0, 1.0, 1.0, 1.0, 0.5, 1.0]
        for got, tokens, delta, scale in zip(
            rt.logits(prompts, bound, scale=scales), prompts, bound, scales, strict=True
        ):
            assert nmse(got, rt.logits([tokens], [delta], scale=[scale])[0]) <= 1e-8

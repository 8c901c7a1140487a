"""Blends: several deltas on one sequence give what a model gives into which all of them are merged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.runtime.deltas import MAX_PARTS, Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support import blend_runs, exact_delta
from tests.support.blend_runs import CASES, Parts, tokens_of
from tests.support.exact_delta import Kind
from tests.support.logits import Floats, nmse, open_model
from tests.support.models import convert_hf
from tests.support.tiny_architectures import ARCHITECTURES, write_base
from tests.support.tiny_llama import Shape, base_weights, write_model
from tests.support.tiny_tokenizers import known_to_the_conversion

ROOT = Path(__file__).resolve().parents[2]
# A full delta, one of every kind of scales, one of factors alone, as a LoRA adapter becomes one, and a sparse one.
KINDS = (
    Kind(),
    Kind(n_planes=2, row_scales=True, column_scales=True),
    Kind(n_planes=0, rank=2),
    Kind(entries="F8"),
)
# The operator's error is near 1e-8, that of ordinary ops near 1e-5 for each of three parts; Gemma 3's six layers have ten times as much.
MAX_NMSE = {"0": 1e-5, "1": 5e-4}
AMPLIFIES = {
    "mamba": 10
}  # Its scans carry what ordinary ops round from token to token: 2e-3 with one delta and no blend.
ARCHS = [
    "llama",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixtral", "gemma3", "mamba", "llama-tied")),
]


@dataclass
class Blended:
    """A base, exact deltas of it, and the logits of every row of `CASES` by the plain models that hold its blend."""

    base: Path
    deltas: list[Path]
    expected: dict[str, Floats]
    amplifies: int
    is_exact: bool  # A row of the base comes out the same beside deltas: in the same ubatch, by the same kernels.


def _logits_of(model: Path, parts: Parts) -> dict[str, Floats]:
    with open_model(model) as rt:
        rows = [
            (f"{name}|{i}", tokens_of(rt.n_vocab, i, n))
            for name, (row_parts, n) in CASES.items()
            for i, own in enumerate(row_parts)
            if sorted(own) == sorted(parts)
        ]
        logits = rt.logits([tokens for _, tokens in rows])
    return dict(zip((key for key, _ in rows), logits, strict=True))


@pytest.fixture(scope="module", params=ARCHS)
def blended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Blended:
    folder: Path = tmp_path_factory.mktemp("blends")
    with known_to_the_conversion():
        base = convert_hf(write_base(ARCHITECTURES[request.param], folder / "hf"), folder / "base.gguf", "ALL_F32")
    deltas = [folder / f"{i}.dq.gguf" for i in range(len(KINDS))]
    for i, kind in enumerate(KINDS):
        exact_delta.make(base, deltas[i], folder / "merged.gguf", i, kind=kind)
    expected: dict[str, Floats] = {}
    for parts in {tuple(sorted(own)) for rows, _ in CASES.values() for own in rows}:
        exact_delta.write_merged(base, folder / "merged.gguf", [(i, scale, KINDS[i]) for i, scale in parts])
        expected |= _logits_of(folder / "merged.gguf", parts)
    return Blended(base, deltas, expected, AMPLIFIES.get(request.param, 1), request.param in {"llama", "mixtral"})


@pytest.mark.parametrize("composed", ["0", "1"])
def test_a_blend_gives_the_logits_of_the_merged_model(blended: Blended, composed: str, tmp_path: Path) -> None:
    out = tmp_path / "logits.npz"
    command = [sys.executable, "-m", blend_runs.__name__, blended.base, out, *blended.deltas]
    subprocess.run(command, check=True, timeout=300, cwd=ROOT, env=os.environ | {"DQRELO_COMPOSED": composed})
    with np.load(out) as arrays:
        for name, (rows, _) in CASES.items():
            for i, parts in enumerate(rows):
                for n_seq_max in (8, 2):
                    got = arrays[f"{name}|{i}|with|{n_seq_max}"]
                    plain = arrays[f"{name}|{i}|base|{n_seq_max}"]
                    if parts:
                        expected = blended.expected[f"{name}|{i}"]
                        error = nmse(got, expected)
                        assert error <= blended.amplifies * MAX_NMSE[composed], (
                            f"{name}, row {i}, {n_seq_max} sequences: {error}"
                        )
                        assert nmse(plain, expected) > 100 * MAX_NMSE[composed], (
                            f"{name}: a blend of nothing would pass"
                        )
                    elif n_seq_max == 8 and blended.is_exact:
                        assert np.array_equal(got, plain), f"{name}: a row of the base"
                    else:
                        assert nmse(got, plain) <= MAX_NMSE[composed], f"{name}: a row of the base"


@dataclass
class Loaded:
    runtime: Runtime
    deltas: list[Delta]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    folder: Path = tmp_path_factory.mktemp("loaded")
    shape = Shape(n_embd=64, n_layer=1, n_ff=64)
    base = write_model(folder / "base.gguf", shape, base_weights(shape))
    paths = [folder / f"{i}.dq.gguf" for i in range(MAX_PARTS + 1)]
    for i, path in enumerate(paths):
        exact_delta.make(base, path, folder / "merged.gguf", i)
    with Runtime(base, n_threads=1, n_seq_max=2) as runtime:
        yield Loaded(runtime, [runtime.load_delta(path) for path in paths])


TOKENS = [5, 6, 7, 8]


def test_the_numbers_do_not_depend_on_the_order_of_the_parts(loaded: Loaded) -> None:
    parts = [(delta, 0.1 * (i + 1)) for i, delta in enumerate(loaded.deltas[:MAX_PARTS])]
    forward = loaded.runtime.logits(TOKENS, parts)
    assert np.array_equal(loaded.runtime.logits(TOKENS, parts[::-1]), forward)
    assert not np.array_equal(loaded.runtime.logits(TOKENS, parts[:-1]), forward)


def test_a_part_alone_is_the_delta(loaded: Loaded) -> None:
    delta = loaded.deltas[0]
    assert np.array_equal(
        loaded.runtime.logits(TOKENS, [(delta, 0.5)]), loaded.runtime.logits(TOKENS, delta, scale=0.5)
    )


def test_scale_multiplies_every_part(loaded: Loaded) -> None:
    a, b = loaded.deltas[:2]
    whole = loaded.runtime.logits(TOKENS, [(a, 1.0), (b, -0.5)], scale=0.5)
    assert np.array_equal(whole, loaded.runtime.logits(TOKENS, [(a, 0.5), (b, -0.25)]))


def test_every_call_takes_blends(loaded: Loaded) -> None:
    rt, (a, b) = loaded.runtime, loaded.deltas[:2]
    pairs = [(np.array([5, 6], np.int32), np.array([7], np.int32))] * 2
    one, two = rt.loglikelihood(pairs, [[(a, 1.0), (b, 1.0)], [(a, 1.0), (b, -1.0)]])
    assert one[0] != two[0]
    assert rt.loglikelihood(pairs[:1], [(a, 1.0), (b, 1.0)])[0][0] == pytest.approx(one[0], abs=1e-4)
    texts = rt.generate([TOKENS, TOKENS], [[(b, 1.0), (a, 1.0)], None], max_tokens=3)
    assert texts[1] == rt.generate(TOKENS, max_tokens=3)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda d: [(x, 0.1) for x in d], "a blend of 9 deltas, expected at most 8"),
        (lambda d: [(d[0], 0.5), (d[0], 0.5)], "is twice in a blend"),
        (lambda d: [(d[0], float("nan"))], "expected a finite number"),
        (lambda d: [(d[0], float("inf")), (d[1], 1.0)], "expected a finite number"),
        (lambda d: [(d[0], 4.5)], "expected a finite number from -4"),
        (lambda d: [(d[0].name, 0.5)], "expected a delta, None, or a blend"),
        (lambda d: [[d[0], d[1]]], "expected a delta, None, or a blend"),
    ],
)
def test_a_bad_blend_is_refused_in_one_line(loaded: Loaded, of: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        loaded.runtime.logits([TOKENS], of(loaded.deltas))
    assert "\n" not in str(caught.value)


def test_a_closed_part_is_refused(loaded: Loaded) -> None:
    with loaded.runtime.load_delta(loaded.deltas[0].path) as extra:
        pass
    with pytest.raises(InputError, match="is closed"):
        loaded.runtime.logits(TOKENS, [(loaded.deltas[1], 1.0), (extra, 1.0)])
    assert loaded.runtime.logits(TOKENS, loaded.deltas[1]).shape[0] == len(TOKENS)


def test_parts_of_a_blend_are_let_go(loaded: Loaded) -> None:
    extra = loaded.runtime.load_delta(loaded.deltas[0].path)
    loaded.runtime.logits(TOKENS, [(loaded.deltas[1], 1.0), (extra, 1.0)])
    extra.close()

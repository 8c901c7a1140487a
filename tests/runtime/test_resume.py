"""Texts that go on where an earlier reading of them ended show the same rows, in every architecture, and with weights that have changed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dqrelo_gguf.convert.plain_model import replace_tensor
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.container import GGUFFile
from dqrelo_gguf.runtime.calls import ResumePoints
from dqrelo_gguf.runtime.session import Runtime
from tests.support.architecture_runs import Run
from tests.support.models import pico_gguf, read_gguf
from tests.support.tiny_architectures import ARCHITECTURES
from tests.support.tiny_tokenizers import known_to_the_conversion

Tokens = NDArray[np.int32]
Rows = dict[str, list[NDArray[np.float32]]]

QUICK = ("llama", "qwen3moe")
DECODERS = [name for name, arch in ARCHITECTURES.items() if not arch.is_encoder and arch.fault is None]


@pytest.fixture(autouse=True)
def conversion() -> Iterator[None]:
    with known_to_the_conversion():
        yield


def open_watched(path: Path) -> Runtime:
    return Runtime(path, n_ctx=128, n_seq_max=1, n_threads=1, flash_attn="off", n_gpu_layers=0, watch=True)


def texts_of(rt: Runtime) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, rt.n_vocab, n).astype(np.int32) for n in (40, 7, 25)]


def rows_of(rt: Runtime, texts: Sequence[Tokens], names: Sequence[str], resume: ResumePoints | None = None) -> Rows:
    """What each of the weights multiplies, in the sequence of the graph."""
    found: Rows = {}
    rt.visit_inputs(texts, names, lambda name, rows, _: found.setdefault(name, []).append(rows), resume)
    return found


def assert_same(got: Rows, wanted: Rows) -> None:
    for name, rows in got.items():
        assert len(rows) == len(wanted[name])
        assert all(np.array_equal(a, b) for a, b in zip(rows, wanted[name], strict=True)), name


def matrices(path: Path) -> list[str]:
    return [name for name, tensor in GGUFFile(path).tensors.items() if len(tensor.ne) > 1]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in DECODERS]
)
def test_rows_are_those_of_a_whole_run(name: str, tmp_path: Path) -> None:
    run = Run(name, ARCHITECTURES[name], tmp_path)
    path = run.gguf(run.checkpoint, "F32")
    points = ResumePoints()
    with open_watched(path) as rt, open_watched(path) as other:
        texts = texts_of(rt)
        whole = rows_of(rt, texts, matrices(path))
        assert len(whole) > 4
        for i, weight in enumerate(whole):
            # The models take turns, so that a memory holds nothing that a point left out.
            got = rows_of((rt, other)[i % 2], texts, [weight], points)
            assert list(got) == [weight]
            assert_same(got, whole)
        assert points.n_bytes > 0


def test_weights_before_are_not_read_again(tmp_path: Path) -> None:
    """Other weights behind the point count, those before it do not."""
    path = Path(shutil.copyfile(pico_gguf("llama"), tmp_path / "model.gguf"))
    names = ["blk.0.ffn_down.weight", "blk.1.attn_q.weight", "output.weight"]
    points = ResumePoints()
    with open_watched(path) as rt:
        texts = texts_of(rt)
        before = rows_of(rt, texts, names)
        rows_of(rt, texts, names[:1], points)
    values = read_gguf(path)
    replace_tensor(path, "blk.0.attn_q.weight", 2 * values["blk.0.attn_q.weight"])
    with open_watched(path) as rt:
        rows_of(rt, texts, names[:1], points)
        assert_same(rows_of(rt, texts, names[1:2], points), before)
    replace_tensor(path, names[1], 2 * values[names[1]])
    with open_watched(path) as rt:
        last = rows_of(rt, texts, names[2:], points)
        assert not np.array_equal(last[names[2]][0], before[names[2]][0])
    replace_tensor(path, "blk.0.attn_q.weight", values["blk.0.attn_q.weight"])
    with open_watched(path) as rt:
        assert_same(last, rows_of(rt, texts, names[2:]))


def test_points_of_other_texts_models_and_contexts() -> None:
    points, name = ResumePoints(), "blk.1.attn_q.weight"
    with open_watched(pico_gguf("llama")) as rt:
        texts = texts_of(rt)
        rows_of(rt, texts, [name], points)
        with pytest.raises(InputError, match="points of 3 texts for 2 and n_seq_max 1, expected as many"):
            rows_of(rt, texts[:2], [name], points)
        with pytest.raises(InputError, match="sequence 1 is another one than that of its point"):
            rows_of(rt, [texts[0], texts[2], texts[1]], [name], points)
        assert rows_of(rt, texts, ["blk.0.attn_q.weight"], points) == {}
        # A run that showed nothing leaves the points where they were.
        assert_same(rows_of(rt, texts, [name], points), rows_of(rt, texts, [name]))
    with open_watched(pico_gguf("gemma3")) as rt:
        with pytest.raises(InputError, match="a text's graph is another one than that of the run before"):
            rows_of(rt, texts, [name], points)
        rt.logits(texts[0])
    small = Runtime(pico_gguf("llama"), n_ctx=128, n_seq_max=1, n_ubatch=32, n_threads=1, watch=True)
    with small as rt, pytest.raises(InputError, match=r"sequence 0 has 40 tokens, expected n_ubatch \(32\) at most"):
        rows_of(rt, texts, [name], ResumePoints())
    double = Runtime(pico_gguf("llama"), n_ctx=128, n_seq_max=2, n_threads=1, watch=True)
    with double as rt, pytest.raises(InputError, match="expected as many and n_seq_max=1"):
        rows_of(rt, texts, [name], ResumePoints())


def test_an_exception_of_the_caller_leaves_the_points_usable() -> None:
    points, name = ResumePoints(), "blk.1.attn_q.weight"

    def fail(*_: object) -> None:
        raise ValueError("of the caller")

    with open_watched(pico_gguf("llama")) as rt:
        texts = texts_of(rt)
        before = rt.logits(texts[0])
        rows_of(rt, texts, ["blk.0.ffn_down.weight"], points)
        with pytest.raises(ValueError, match="of the caller"):
            rt.visit_inputs(texts, [name], fail, points)
        assert_same(rows_of(rt, texts, [name], points), rows_of(rt, texts, [name]))
        assert np.array_equal(rt.logits(texts[0]), before)


def test_a_graph_that_ends_early_leaves_the_runtime_as_it_was() -> None:
    with Runtime(pico_gguf("llama"), n_threads=1, watch=True) as rt:
        tokens = rt.tokenize("A small animal that feeds on fish.")
        before = rt.logits(tokens)
        for name in ("blk.0.attn_q.weight", "output.weight"):
            seen: list[int] = []
            rt.visit_inputs([tokens], [name], lambda _, rows, __, seen=seen: seen.append(len(rows)))
            assert seen == [len(tokens)]
        assert np.array_equal(rt.logits(tokens), before)

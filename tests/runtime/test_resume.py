"""Texts that go on where an earlier reading of them ended show the same rows, in every architecture, and with weights that have changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dqrelo_gguf.convert.plain_model import write_plain
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.container import GGUFFile
from dqrelo_gguf.file.layout import Type
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.runtime.calls import ResumePoints
from dqrelo_gguf.runtime.session import Runtime
from tests.support.architecture_runs import Run
from tests.support.models import pico_gguf, pico_tuned_gguf, read_gguf
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


def open_watched(path: Path, n_seq_max: int = 1) -> Runtime:
    return Runtime(path, n_ctx=128, n_seq_max=n_seq_max, n_threads=1, flash_attn="off", n_gpu_layers=0, watch=True)


def texts_of(rt: Runtime) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, rt.n_vocab, n).astype(np.int32) for n in (40, 7, 25)]


def rows_of(rt: Runtime, texts: Sequence[Tokens], names: Sequence[str], resume: ResumePoints | None = None) -> Rows:
    """What each of the weights multiplies, in the sequence of the graph."""
    found: Rows = {}
    rt.visit_inputs(texts, names, lambda name, rows, _: found.setdefault(name, []).append(rows), resume)
    return found


def joined(rows: Rows) -> dict[str, NDArray[np.float32]]:
    """However many texts a graph has, the rows of all are in sequence."""
    return {name: np.concatenate(found) for name, found in rows.items()}


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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in DECODERS]
)
def test_texts_that_share_a_graph_show_what_each_shows_alone(name: str, tmp_path: Path) -> None:
    """To the order of sums, and with points too; where layers are recurrent, texts share none."""
    run = Run(name, ARCHITECTURES[name], tmp_path)
    path = run.gguf(run.checkpoint, "F32")
    points = ResumePoints()
    with open_watched(path) as alone, open_watched(path, 4) as shared:
        texts = texts_of(alone)
        wanted = rows_of(alone, texts, matrices(path))
        together = rows_of(shared, texts, matrices(path))
        assert {len(rows) for rows in together.values()} == {1 if shared.n_seq_max == 4 else len(texts)}
        for weight in together:
            got = joined(rows_of(shared, texts, [weight], points))
            assert np.array_equal(got[weight], joined(together)[weight])
            scale = np.abs(joined(wanted)[weight]).max()
            assert np.abs(got[weight] - joined(wanted)[weight]).max() <= 1e-3 * scale, weight


def test_weights_before_are_not_read_again() -> None:
    """Other weights behind the point count, those before it do not."""
    path = pico_gguf("llama")
    names = ["blk.0.ffn_down.weight", "blk.1.attn_q.weight", "output.weight"]
    points, values = ResumePoints(), read_gguf(path)
    with Runtime(path, n_ctx=128, n_seq_max=1, n_threads=1, flash_attn="off", watch=True, use_mmap=False) as rt:
        texts = texts_of(rt)
        before = rows_of(rt, texts, names)
        rows_of(rt, texts, names[:1], points)
        rt.set_weight("blk.0.attn_q.weight", 2 * values["blk.0.attn_q.weight"])
        rows_of(rt, texts, names[:1], points)
        assert_same(rows_of(rt, texts, names[1:2], points), before)
        rt.set_weight(names[1], 2 * values[names[1]])
        last = rows_of(rt, texts, names[2:], points)
        assert not np.array_equal(last[names[2]][0], before[names[2]][0])
        rt.set_weight("blk.0.attn_q.weight", values["blk.0.attn_q.weight"])
        assert_same(last, rows_of(rt, texts, names[2:]))


def test_a_weight_that_was_set_is_that_of_a_file(tmp_path: Path) -> None:
    """In F16 and F32, and with a vector; what is none is one line."""
    tuned = read_gguf(pico_tuned_gguf("llama"))
    for wanted in ("F16", "F32"):
        paths = [tmp_path / f"{name}-{wanted}.gguf" for name in ("base", "tuned")]
        for path, source in zip(paths, (pico_gguf("llama"), pico_tuned_gguf("llama")), strict=True):
            write_plain(path, GgufModel(source), read_gguf(source).__getitem__, Type[wanted])
        with Runtime(paths[0], n_threads=1, use_mmap=False) as rt, Runtime(paths[1], n_threads=1) as other:
            tokens = texts_of(rt)[0]
            assert not np.array_equal(rt.logits(tokens), other.logits(tokens))
            for name, value in tuned.items():
                rt.set_weight(name, value)
            assert np.array_equal(rt.logits(tokens), other.logits(tokens))
            with pytest.raises(InputError, match=r"has no weight 'blk\.0\.attn_q\.weight' of 3 numbers"):
                rt.set_weight("blk.0.attn_q.weight", np.zeros(3, np.float32))
            with pytest.raises(InputError, match="has no weight 'nothing' of 3 numbers"):
                rt.set_weight("nothing", np.zeros(3, np.float32))
            with pytest.raises(InputError, match=r"the model is mapped\. Open it with use_mmap=False"):
                other.set_weight("blk.0.attn_q.weight", tuned["blk.0.attn_q.weight"])


def test_points_of_other_texts_models_and_contexts() -> None:
    points, name = ResumePoints(), "blk.1.attn_q.weight"
    with open_watched(pico_gguf("llama")) as rt:
        texts = texts_of(rt)
        rows_of(rt, texts, [name], points)
        for others in (texts[:2], [texts[0], texts[2], texts[1]]):
            with pytest.raises(InputError, match="the sequences of a graph are others than those of its point"):
                rows_of(rt, others, [name], points)
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
    with open_watched(pico_gguf("llama"), 2) as rt, pytest.raises(InputError, match="n_seq_max and n_ubatch"):
        rows_of(rt, texts, [name], points)


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

"""Numbers that are too large: bounds of the scale, results that are not finite, and what a file may not hold."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.delta_files import Edited
from tests.support.logits import TEXT
from tests.support.tiny_llama import NARROW, Type, base_weights, tuned_weights, write_model

OVERFLOW = 1e4


@pytest.fixture(scope="module")
def delta_paths(tmp_path_factory: pytest.TempPathFactory, base: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("delta")
    paths = [folder / f"{i}.dq.gguf" for i in (1, 2)]
    for i, path in enumerate(paths, 1):
        tuned = write_model(
            folder / f"{i}.gguf", NARROW, tuned_weights(base_weights(NARROW), i), Type.F32, f"tuned {i}"
        )
        convert(Job(base, tuned, path))
    return paths


@pytest.fixture(scope="module", params=["off", "on"])
def runtime(request: pytest.FixtureRequest, base: Path) -> Iterator[Runtime]:
    with Runtime(base, n_threads=1, flash_attn=request.param, max_scale=1e38) as rt:
        yield rt


@pytest.fixture(scope="module")
def delta(runtime: Runtime, delta_paths: list[Path]) -> Delta:
    return runtime.load_delta(delta_paths[0])


# --- the scale


@pytest.mark.parametrize("scale", [4.1, -5, 1e39, math.inf, math.nan, [1.0, 5.0]])
def test_a_scale_over_the_bound_is_refused(base: Path, delta_paths: list[Path], scale: float) -> None:
    with Runtime(base, n_threads=1) as rt:
        delta = rt.load_delta(delta_paths[0])
        with pytest.raises(InputError, match=r"scale: got .*, expected a finite number from -4\.0 to 4\.0"):
            rt.logits([TEXT, TEXT], delta, scale=scale)
        assert len(rt.logits([TEXT], delta, scale=-4)) == 1


def test_the_bound_is_the_runtimes(base: Path, delta_paths: list[Path]) -> None:
    with Runtime(base, n_threads=1, max_scale=8) as rt:
        delta = rt.load_delta(delta_paths[0])
        rt.logits(TEXT, delta, scale=8)
        with pytest.raises(InputError, match=r"to 8\.0"):
            rt.logits(TEXT, delta, scale=8.5)
    for bound in (0.5, math.inf, math.nan):
        with pytest.raises(InputError, match="max_scale"):
            Runtime(base, max_scale=bound)


# --- overflow

CALLS: dict[str, Callable[[Runtime, Delta], object]] = {
    "logits": lambda rt, delta: rt.logits([TEXT] * 3, [None, delta, None], scale=OVERFLOW),
    "generate": lambda rt, delta: rt.generate([TEXT] * 3, [None, delta, None], scale=OVERFLOW, max_tokens=4),
    "loglikelihood": lambda rt, delta: rt.loglikelihood([(TEXT, "a")] * 3, [None, delta, None], scale=OVERFLOW),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_overflow_is_an_error_that_names_its_sequence(runtime: Runtime, delta: Delta, call: str) -> None:
    expected = runtime.logits([TEXT, TEXT], [None, delta])
    with pytest.raises(InputError, match=r"sequence 1: its logits are NaN or infinite: the weights of delta 'tuned 1'"):
        CALLS[call](runtime, delta)
    for found, right in zip(runtime.logits([TEXT, TEXT], [None, delta]), expected, strict=True):
        assert np.array_equal(found, right)


def test_an_overflow_in_a_long_prompt_is_found(runtime: Runtime, delta: Delta) -> None:
    tokens = list(np.arange(1500) % 50 + 5)
    expected = runtime.logits([tokens[:40]], delta)[0]
    with pytest.raises(InputError, match="sequence 0"):
        runtime.loglikelihood([(tokens, [5])], delta, scale=OVERFLOW)
    assert np.array_equal(runtime.logits([tokens[:40]], delta)[0], expected)


# --- files


def edited(path: Path, target: Path, edit: Callable[[Edited], object]) -> Path:
    file = Edited(path)
    edit(file)
    return file.save(target)


def set_first(name: str, raw: bytes) -> Callable[[Edited], object]:
    def edit(file: Edited) -> None:
        at = file.tensor(name).offset
        file.data[at : at + len(raw)] = raw

    return edit


def test_a_nan_in_a_factor_is_refused(runtime: Runtime, delta_paths: list[Path], tmp_path: Path) -> None:
    name = next(t.name for t in Edited(delta_paths[0]).tensors if t.name.endswith(".dq_vscale"))
    path = edited(delta_paths[0], tmp_path / "nan.dq.gguf", set_first(name, b"\xc0\x7f"))  # of BF16
    with pytest.raises(InputError, match=rf"tensor '{name}' has 1 numbers that are NaN or infinite"):
        runtime.load_delta(path)


def test_a_foreign_content_hash_is_refused(runtime: Runtime, delta_paths: list[Path], tmp_path: Path) -> None:
    foreign = Edited(delta_paths[1]).fields["dqrelo.content_hash"]
    path = edited(
        delta_paths[0], tmp_path / "forged.dq.gguf", lambda e: e.fields.update({"dqrelo.content_hash": foreign})
    )
    with pytest.raises(InputError, match=r"damaged: dqrelo\.content_hash is .*, its tensors have"):
        runtime.load_delta(path)


def test_a_file_that_was_verified_is_verified_again_once_it_changed(
    runtime: Runtime, delta_paths: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "changed.dq.gguf"
    path.write_bytes(delta_paths[0].read_bytes())
    before = path.stat()
    runtime.load_delta(path).close()
    data = bytearray(path.read_bytes())
    edited = Edited(path)
    data[len(data) - len(edited.data) + edited.tensors[0].offset] ^= 1  # the first byte of the first tensor
    with path.open("r+b") as file:  # The inode and the size are the same, and soon the time is.
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match="damaged"):
        runtime.load_delta(path)


# --- sizes of the context


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_ctx": 4},
        {"n_ctx": 7},
        {"n_ctx": 1, "n_seq_max": 2},
        {"n_ctx": 255, "n_seq_max": 256},
        {"n_ctx": 3, "n_seq_max": 4, "kv_unified": False},
    ],
)
def test_a_context_smaller_than_its_sequences_is_refused(base: Path, sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"n_ctx: got {sizes['n_ctx']}, expected a token for each of n_seq_max"):
        Runtime(base, n_threads=1, **sizes)


@pytest.mark.parametrize(
    "sizes", [{"n_ctx": 8}, {"n_ctx": 1, "n_seq_max": 1}, {"n_ctx": 300, "n_seq_max": 256, "kv_unified": False}]
)
def test_the_smallest_contexts_work(base: Path, sizes: dict[str, int]) -> None:
    with Runtime(base, n_threads=1, **sizes) as rt:
        assert rt.logits([[5]])[0].shape == (1, rt.n_vocab)

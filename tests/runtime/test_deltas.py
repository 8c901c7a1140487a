"""Loaded deltas: what they say, and when they are refused."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.logits import TEXT
from tests.support.tiny_llama import NARROW, Type, base_weights, write_model


def test_delta_says_what_it_is(delta: Delta, delta_path: Path) -> None:
    assert delta.name == "words"
    assert delta.path == str(delta_path)
    assert len(delta.content_hash) == 64
    assert 0.0625 < delta.ratio < 1.0
    assert 0 < delta.n_bytes < delta_path.stat().st_size
    assert delta.n_weights == 3 + 9 * NARROW.n_layer
    assert delta.inert == []
    assert delta.same_base_file
    assert delta.meta("general.name") == "words"
    assert delta.meta("no.such.key") is None
    assert "words" in repr(delta)


def test_delta_is_refused_once_closed(runtime: Runtime, delta_path: Path) -> None:
    with runtime.load_delta(delta_path, verify=True) as loaded:
        runtime.logits(TEXT, loaded)
    assert loaded.closed
    assert loaded.name == "words"
    loaded.close()
    for call in (lambda: runtime.logits(TEXT, loaded), lambda: loaded.meta("general.name")):
        with pytest.raises(InputError, match="delta 'words' is closed"):
            call()


def test_delta_of_another_runtime_is_refused(base: Path, runtime: Runtime, delta: Delta) -> None:
    with Runtime(base, n_threads=1) as other, pytest.raises(InputError, match="loaded for another runtime"):
        other.logits(TEXT, delta)
    assert runtime.logits([TEXT], delta)


def test_delta_of_another_base_is_refused(tmp_path: Path, delta_path: Path) -> None:
    stranger = write_model(tmp_path / "stranger.gguf", NARROW, base_weights(NARROW, seed=9), Type.F16)
    with Runtime(stranger, n_threads=1) as rt:
        for allow in (False, True):
            with pytest.raises(InputError, match=r"words\.dq\.gguf") as caught:
                rt.load_delta(delta_path, allow_other_base=allow)
            assert "\n" not in str(caught.value)


def replace_by_a_stranger(path: Path) -> None:
    new = write_model(path.with_name("stranger.gguf"), NARROW, base_weights(NARROW, seed=9), Type.F16)
    new.rename(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [replace_by_a_stranger, remove])
def test_the_base_is_the_one_in_memory(
    base: Path, tmp_path: Path, delta_path: Path, change: Callable[[Path], None]
) -> None:
    """Another file under the base's path, or none, changes nothing for the deltas of what is in memory."""
    path = tmp_path / "base.gguf"
    shutil.copyfile(base, path)
    with Runtime(path, n_threads=1) as rt:
        change(path)
        loaded = rt.load_delta(delta_path)
        assert loaded.same_base_file
        assert rt.logits(TEXT, loaded)[0].shape[-1] == rt.n_vocab


def test_a_delta_of_the_file_that_came_later_is_refused(base: Path, tmp_path: Path, delta_path: Path) -> None:
    path = write_model(tmp_path / "base.gguf", NARROW, base_weights(NARROW, seed=9), Type.F16)
    with Runtime(path, n_threads=1) as rt:
        shutil.copyfile(base, tmp_path / "new.gguf")
        (tmp_path / "new.gguf").rename(path)
        with pytest.raises(InputError, match=r"words\.dq\.gguf"):
            rt.load_delta(delta_path)


def test_delta_of_another_quantisation_is_refused_unless_allowed(tmp_path: Path, delta_path: Path) -> None:
    same = write_model(tmp_path / "same.gguf", NARROW, base_weights(NARROW), Type.Q8_0)
    with Runtime(same, n_threads=1) as rt, pytest.raises(InputError, match=r"words\.dq\.gguf"):
        rt.load_delta(delta_path)
    with Runtime(same, n_threads=1, allow_other_base=True) as rt:
        assert not rt.load_delta(delta_path).same_base_file


def test_damaged_delta_is_found_when_verified(tmp_path: Path, runtime: Runtime, delta_path: Path) -> None:
    data = bytearray(delta_path.read_bytes())
    data[-2000] ^= 1
    damaged = tmp_path / "damaged.dq.gguf"
    damaged.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged\.dq\.gguf"):
        runtime.load_delta(damaged, verify=True)
    truncated = tmp_path / "truncated.dq.gguf"
    truncated.write_bytes(data[:-4096])
    with pytest.raises(InputError, match=r"truncated\.dq\.gguf"):
        runtime.load_delta(truncated)


def test_delta_in_use_cannot_be_closed(runtime: Runtime, delta_path: Path) -> None:
    def work(loaded: Delta) -> None:
        with contextlib.suppress(InputError):  # The delta may be closed before the call begins.
            runtime.logits(np.full(3000, 5), loaded)

    def is_refused(loaded: Delta) -> bool:
        try:
            loaded.close()
        except InputError as error:
            return "delta 'words' is in use" in str(error)
        return False

    for _ in range(50):
        with runtime.load_delta(delta_path) as loaded:
            thread = threading.Thread(target=work, args=(loaded,))
            thread.start()
            time.sleep(0.01)
            refused = is_refused(loaded)
            thread.join()
        if refused:
            return
    pytest.fail("the delta could always be closed")

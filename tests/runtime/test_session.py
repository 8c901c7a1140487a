"""Runtime: the base that it opens, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.runtime.session import Runtime


def test_facts(runtime: Runtime, base: Path) -> None:
    assert runtime.path == str(base)
    assert (runtime.n_embd, runtime.n_layer, runtime.n_seq_max, runtime.n_threads) == (64, 2, 8, 1)
    assert (runtime.n_ctx, runtime.n_ctx_train, runtime.n_ubatch) == (4096, 4096, 512)
    assert runtime.chat_template is None
    assert "llama" in repr(runtime)


def test_closes_with_its_block_and_refuses_calls_after(base: Path, delta_path: Path) -> None:
    with Runtime(base, n_threads=1) as rt:
        loaded = rt.load_delta(delta_path)
    rt.close()  # Closing twice is fine.
    assert loaded.closed
    assert "closed" in repr(rt)
    calls: list[Callable[[], object]] = [
        lambda: rt.logits([1]),
        lambda: rt.tokenize("a"),
        lambda: rt.detokenize([1]),
        lambda: rt.pieces([1]),
        lambda: rt.load_delta(delta_path),
        lambda: rt.loglikelihood([("a", "b")]),
    ]
    for call in calls:
        with pytest.raises(InputError, match="is closed"):
            call()


def test_files_that_are_no_models_are_refused(tmp_path: Path, delta_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Runtime(tmp_path / "missing.gguf")
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    for path in (text, delta_path):
        with pytest.raises(InputError, match=r"cannot be loaded as a model: ."):
            Runtime(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ctx": -1}, "n_ctx: got -1"),
        ({"n_seq_max": 257}, "n_seq_max: got 257, expected 1 to 256"),
        ({"flash_attn": "maybe"}, "expected auto, on or off"),
        ({"type_k": "q4_k"}, "type_k: got 'q4_k', expected one of f32, f16"),
        ({"n_threads": 0}, "n_threads: got 0"),
    ],
)
def test_bad_options_are_refused(base: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Runtime(base, **options)  # type: ignore[arg-type]

"""What a fine-tune changed: the figures of whole models against numpy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.compress.blocks import open_blocks
from dqrelo_gguf.convert.statistics import measure
from dqrelo_gguf.errors import BaseMismatchError
from dqrelo_gguf.model.base import GgufModel
from tests.support.models import EXAMPLES, convert_hf
from tests.support.tiny_llama import NARROW, Type, base_weights, write_model
from tests.support.trio import Trio


def deltas(trio: Trio) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    base, tuned = GgufModel(trio.base), GgufModel(trio.tuned)
    with open_blocks(1) as blocks:
        loaded = {name: base.load(name, blocks).astype(np.float64) for name in base.shapes}
        return {name: tuned.load(name, blocks) - values for name, values in loaded.items()}, loaded


def test_figures_are_numpys(trio: Trio) -> None:
    found = measure(trio.base, trio.tuned, n_threads=1)
    D, base = deltas(trio)
    assert [row.label for row in found.weights] == list(D)
    for row in found.weights:
        own, s = D[row.label], row.statistics
        assert s.magnitude == pytest.approx(np.abs(own).mean())
        assert s.relative == pytest.approx(np.linalg.norm(own) / np.linalg.norm(base[row.label]))
        if own.ndim == 2:
            values = np.linalg.svd(own, compute_uv=False)
            shares = values / values.sum()
            assert s.singular_value == pytest.approx(values.mean())
            assert s.entropy == pytest.approx(-(shares * np.log2(shares)).sum())
        else:
            assert s.entropy is None
    everything = found.total()
    assert everything.n_weights == len(D)
    assert everything.statistics.magnitude == pytest.approx(
        sum(np.abs(d).sum() for d in D.values()) / sum(d.size for d in D.values())
    )
    kinds = {row.label: row for row in found.kinds()}
    assert kinds["blk.*.attn_q.weight"].n_weights == 2
    assert sum(row.n_weights for row in kinds.values()) == len(D)


def test_a_directory_is_read_as_the_converter_reads_it(tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    convert_hf(EXAMPLES / "base", base)
    found = measure(base, EXAMPLES / "ft-words")
    assert 0 < found.total().statistics.relative < 1
    again = measure(base, EXAMPLES / "ft-words", n_threads=1)
    assert again.as_json() == found.as_json()


def test_models_that_do_not_belong_together_are_refused(trio: Trio, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", NARROW, base_weights(NARROW, 9), Type.F16)
    with pytest.raises(BaseMismatchError, match="have a cosine of"):
        measure(trio.base, other)

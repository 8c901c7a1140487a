"""A row's logits do not depend on which deltas the other rows of its batch have.

The batch keeps its shape: the same tokens at the same positions, and only what the other rows are bound to changes. Then the same kernels run on the same
numbers, so the bound is far below what another shape of the batch alone makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.cli import convert
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.logits import nmse
from tests.support.tiny_llama import Shape, Type, base_weights, tuned_weights, write_model

N_DELTAS = 8
N_MIXES = 24
MAX_NMSE = 1e-6
EXPERTS = Shape(n_embd=128, n_ff=64, n_expert=4)
TEXTS = ("the dog sees a cat and makes two?", "2+3=5", "three dogs and five cats.", "a")


@dataclass(frozen=True)
class Loaded:
    runtime: Runtime
    deltas: list[Delta]


@pytest.fixture(
    scope="module",
    params=[(Shape(), "F32"), (Shape(), "Q8_0"), (EXPERTS, "F32"), (EXPERTS, "Q8_0"), (EXPERTS, "Q4_0")],
    ids=["F32", "Q8_0", "experts-F32", "experts-Q8_0", "experts-Q4_0"],
)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """A base and eight deltas of it, with low-rank parts of several ranks."""
    folder: Path = tmp_path_factory.mktemp("mix")
    shape, out_type = request.param
    weights = base_weights(shape)
    base = write_model(folder / "base.gguf", shape, weights, Type[out_type])
    paths = []
    for i in range(N_DELTAS):
        tuned = write_model(folder / f"{i}.gguf", shape, tuned_weights(weights, i), Type.F32, f"tuned-{i}")
        paths.append(folder / f"{i}.dq.gguf")
        assert convert.main([str(base), str(tuned), "-o", str(paths[-1]), "--rank", str(4 + 2 * i)]) == 0
    with Runtime(base, n_threads=1, n_seq_max=N_DELTAS) as runtime:
        yield Loaded(runtime, [runtime.load_delta(path) for path in paths])


@pytest.mark.parametrize("n_tokens", [1, 12, 40], ids=["a token a row", "prompts", "prompts that are folded"])
def test_other_rows_deltas_do_not_show(loaded: Loaded, n_tokens: int, record_property: pytest.RecordProperty) -> None:
    runtime, deltas = loaded.runtime, loaded.deltas
    prompts = [runtime.tokenize((TEXTS[i % len(TEXTS)] + str(i)) * 20)[:n_tokens] for i in range(N_DELTAS)]
    expected = runtime.logits(prompts, deltas)
    rng = np.random.default_rng(n_tokens)
    worst, n_compared = 0.0, 0
    for _ in range(N_MIXES):
        # At least one row keeps its delta; the others get other ones, or none.
        kept = rng.random(N_DELTAS) < 0.2
        kept[rng.integers(N_DELTAS)] = True
        drawn = [None, *deltas]
        row_deltas = [deltas[i] if kept[i] else drawn[rng.integers(len(drawn))] for i in range(N_DELTAS)]
        found = runtime.logits(prompts, row_deltas)
        for i in range(N_DELTAS):
            if row_deltas[i] is deltas[i]:
                worst = max(worst, nmse(found[i], expected[i]))
                n_compared += 1
            else:
                assert nmse(found[i], expected[i]) > 100 * MAX_NMSE  # The rows differ where their deltas do.
    record_property("worst NMSE", worst)
    print(f"{n_compared} rows, worst NMSE {worst:.2g}")
    assert n_compared > N_MIXES
    assert worst <= MAX_NMSE

"""Rows of dqrelo-bench's table with given times."""

from __future__ import annotations

from dqrelo_gguf.bench.plan import Settings, Workload
from dqrelo_gguf.bench.run import Row


def bench_row(test: Workload, samples_ns: tuple[int, ...], base_ns: tuple[int, ...] | None) -> Row:
    """A row of the base alone where `base_ns` is None, and of one delta otherwise."""
    return Row(
        test=test,
        settings=Settings(n_threads=1),
        model_type="llama",
        model_size=10,
        model_n_params=5,
        deltas=() if base_ns is None else ("math",),
        files=(),
        content_hashes=(),
        base_bytes=900,
        delta_bytes=100,
        test_time="",
        samples_ns=samples_ns,
        base_ns=base_ns,
    )

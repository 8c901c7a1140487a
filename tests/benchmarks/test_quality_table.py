"""bench/support/quality_table.py: rows become tables."""

from __future__ import annotations

import pytest


def test_tables_have_a_column_a_size_and_dashes_for_what_cannot_be_made(bench_module):
    bench, kept, table = (bench_module(name) for name in ("bench_quality", "support.kept", "support.quality_table"))

    def row(method: str, asked: str | None, kl: float, right: int) -> object:
        means = [kept.Mean(kl, kl / 10), kept.Mean(2 * kl, kl), kept.Mean(0.991, 0.001), kept.Mean(0.9, 0.01)]
        return bench.Row("math", "F16", method, asked, 0.2, 9, 0.1, kept.Kept(*means, right, 65), 80, 76, 1.0)

    sizes = [("best", "1/8", 0.002, 75), ("paper", "1/8", 0.16, 42), ("best", "1/16", 0.012, 71)]
    text = table.tables([row("base", None, 2.0, 1), row("Q2_K", None, 0.1, 60), *(row(*size) for size in sizes)])
    assert text.startswith("math, F16 base: 80 problems, the fine-tune has 76 right\n")
    assert "|  | 1/8 | 1/16 |\n| --- | --- | --- |\n" in text
    assert "| best | 0.0020 ± 0.0002 / 0.004, 75 | 0.012 ± 0.001 / 0.024, 71 |" in text
    assert "| paper | 0.16 ± 0.02 / 0.32, 42 | - |" in text
    assert "| Q2_K | 0.200 | 0.10 ± 0.01 / 0.2, 60 |" in text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (3.7712, 0.0421, "3.77 ± 0.04"),
        (0.000315, 0.0000289, "0.00032 ± 0.00003"),
        (12.3, 1.4, "12 ± 1"),
        (0.0, 0.0, "0"),
    ],
)
def test_a_divergence_is_as_exact_as_its_error(bench_module, value, error, text):
    mean = bench_module("support.kept").Mean(value, error)
    assert bench_module("support.quality_table").measured(mean) == text

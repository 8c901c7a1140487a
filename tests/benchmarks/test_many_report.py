"""bench/support/many_report.py: medians, the bound on memory, and the tables of bench_many.py."""

from __future__ import annotations

import pytest


def test_report_shows_medians_the_memory_bound_and_dashes_for_what_did_not_fit(bench_module):
    bench, report, streams = (bench_module(name) for name in ("bench_many", "support.many_report", "support.streams"))

    def run(step_ms: float, pss: float) -> object:
        speed = streams.Speed(8000 / step_ms, step_ms, 7000 / step_ms)
        return bench.Measured(speed, pss, {"KV": int(0.2e9), "compute": int(0.1e9)})

    row = bench.Row(8, int(4e9))
    row.runs["deltas"] = [run(step, 4.5e9) for step in (100, 300, 200)]
    row.runs["base alone"] = [run(160, 3e9)]
    assert row.median("deltas", "step_ms") == 200
    assert report.memory_bound(row) == pytest.approx(1.05 * 4e9 + 0.3e9)
    text = report.markdown({"threads": 2}, [row])
    assert "| 8 | - / 4.50 | - / 200.0 | 160.0 |" in text
    assert "| 8 | - | - | 40.00 | 50.00 | - | - | 0.80 |" in text
    assert "| 8 | 4.000 | 0.200 | 0.100 | 4.500 | 4.500 | 1.000 |" in text

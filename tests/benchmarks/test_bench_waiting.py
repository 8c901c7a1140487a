"""The table of bench/bench_waiting.py."""

from __future__ import annotations


def test_windows_of_one_count_are_one_row(bench_module):
    waiting = bench_module("bench_waiting")
    windows = [
        waiting.Window(500, 90.0, 0.5, [1.0, 3.0]),
        waiting.Window(0, 100.0, 0.4, [1.0]),
        waiting.Window(500, 80.0, 0.7, [2.0]),
    ]
    lines = waiting.markdown({"threads": 2}, windows).splitlines()
    assert lines[0] == "# threads: 2"
    assert lines[-2:] == ["| 0 | 100.0 | 0.40 | 1.0 | 1.0 | 1.0 |", "| 500 | 85.0 | 0.60 | 2.0 | 3.0 | 3.0 |"]

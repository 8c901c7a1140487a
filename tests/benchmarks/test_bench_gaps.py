"""The gaps that bench/bench_gaps.py counts."""

from __future__ import annotations


def test_a_gap_counts_where_both_its_ends_lie_in_one_window(bench_module):
    gaps = bench_module("bench_gaps")
    windows = gaps.Windows([(gaps.QUIET, 0.0, 1.0), (gaps.CHANGING, 1.0, 2.0), (gaps.QUIET, 2.0, 3.0)])
    streams = [[0.1, 0.2, 0.9, 1.1, 1.4], [1.9, 2.1, 2.2]]
    assert windows.gaps(gaps.QUIET, streams).round(3).tolist() == [100.0, 700.0, 100.0]
    assert windows.gaps(gaps.CHANGING, streams).round(3).tolist() == [300.0]


def test_the_table_has_the_ratio_of_the_percentiles(bench_module):
    gaps = bench_module("bench_gaps")
    windows = gaps.Windows([(gaps.QUIET, 0.0, 1.0), (gaps.CHANGING, 1.0, 2.0)])
    streams = [[0.0, 0.1, 0.2], [1.0, 1.3, 1.6]]
    text = gaps.markdown({"threads": 2}, {kind: windows.gaps(kind, streams) for kind in (gaps.QUIET, gaps.CHANGING)})
    assert "# threads: 2" in text
    assert "99th percentile: 3.00 times" in text

"""The gaps that bench/bench_gaps.py counts."""

from __future__ import annotations


def each_token_alone(gaps, seconds):
    """A stream whose tokens came at these times."""
    return gaps.Stream(seconds, list(range(1, len(seconds) + 1)))


def test_a_gap_counts_where_both_its_ends_lie_in_one_window(bench_module):
    gaps = bench_module("bench_gaps")
    windows = gaps.Windows([(gaps.QUIET, 0.0, 1.0), (gaps.CHANGING, 1.0, 2.0), (gaps.QUIET, 2.0, 3.0)])
    streams = [each_token_alone(gaps, seconds) for seconds in ([0.1, 0.2, 0.9, 1.1, 1.4], [1.9, 2.1, 2.2])]
    assert windows.gaps(gaps.QUIET, streams).round(3).tolist() == [100.0, 700.0, 100.0]
    assert windows.gaps(gaps.CHANGING, streams).round(3).tolist() == [300.0]


def test_a_token_that_came_with_the_next_one_makes_no_gap(bench_module):
    gaps = bench_module("bench_gaps")
    windows = gaps.Windows([(gaps.QUIET, 0.0, 1.0)])
    stream = gaps.Stream([0.1, 0.2, 0.4, 0.5], [1, 2, 4, 5])
    assert windows.gaps(gaps.QUIET, [stream]).round(3).tolist() == [100.0, 100.0]


def test_the_tables_have_the_ratios(bench_module):
    gaps = bench_module("bench_gaps")
    measured = gaps.Measured(gaps.Windows([(gaps.QUIET, 0.0, 1.0), (gaps.CHANGING, 1.0, 2.0)]))
    measured.reads = {gaps.IDLE: [10.0, 12.0, 11.0], gaps.BUSY: [22.0]}
    measured.loads = {gaps.IDLE: [22.0], gaps.BUSY: [33.0, 40.0, 30.0]}
    streams = [each_token_alone(gaps, seconds) for seconds in ([0.0, 0.1, 0.2], [1.0, 1.3, 1.6])]
    text = gaps.markdown(
        {"threads": 2}, {kind: measured.windows.gaps(kind, streams) for kind in (gaps.QUIET, gaps.CHANGING)}, measured
    )
    assert "# threads: 2" in text
    assert "99th percentile: 3.00 times" in text
    assert "| idle | 11 (10 to 12) | 22 (22 to 22) | 2.00 | 2.00 |" in text
    assert "| beside the streams | 22 (22 to 22) | 33 (30 to 40) | 1.50 | 3.00 |" in text

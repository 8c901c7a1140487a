"""The pure parts of bench/bench_many.py: speed from token times, buffers from logs, the bound on memory, the tables."""

from __future__ import annotations

import pytest

LOG = """\
0.00.1 I llama_context:        CPU  output buffer size =     0.50 MiB
0.00.1 I llama_kv_cache:        CPU KV buffer size =     8.00 MiB
0.00.1 I llama_kv_cache_iswa:   CPU KV buffer size =     2.00 MiB
0.00.1 I load_tensors:   CPU_Mapped model buffer size =  2298.76 MiB
0.00.2 I sched_reserve:        CPU compute buffer size =     4.00 MiB
1.00.2 I sched_reserve:        CPU compute buffer size =     5.25 MiB
"""
MIB = 1 << 20


def test_speed_counts_only_the_time_in_which_all_streams_generate(bench_module):
    streams = bench_module("support.streams")
    # 10 tokens/s from 1.0 to 2.0, and 5 tokens/s from 1.6 to 3.6: together 15 tokens/s from 1.6 to 2.0
    fast = streams.Stream([1 + 0.1 * i for i in range(11)], list(range(1, 12)))
    late = streams.Stream([1.6 + 0.2 * i for i in range(11)], list(range(1, 12)))
    speed = streams.speed_of([fast, late])
    assert speed.tokens_per_s == pytest.approx(15)
    assert speed.step_ms == pytest.approx(1000 * 2 / 15)
    assert speed.run_tokens_per_s == pytest.approx(22 / 3.6)


def test_speed_does_not_depend_on_the_order_of_events_in_a_step(bench_module):
    streams = bench_module("support.streams")
    steps = [0.1 * i for i in range(1, 21)]
    together = [streams.Stream(steps, list(range(1, 21)))] * 4
    apart = [streams.Stream([t + 0.001 * i for t in steps], list(range(1, 21))) for i in range(4)]
    assert streams.speed_of(apart).tokens_per_s == pytest.approx(streams.speed_of(together).tokens_per_s)
    assert streams.speed_of(together).tokens_per_s == pytest.approx(40)


def test_speed_counts_tokens_that_came_without_an_event(bench_module):
    streams = bench_module("support.streams")
    gaps = streams.Stream([1.0, 1.4, 2.0], [1, 5, 11])  # an unfinished character is held back
    assert streams.speed_of([gaps]).tokens_per_s == pytest.approx(10)


def test_speed_of_streams_that_do_not_overlap_is_refused(bench_module):
    streams = bench_module("support.streams")
    with pytest.raises(ValueError, match="n-predict"):
        streams.speed_of([streams.Stream([1.0, 2.0], [1, 2]), streams.Stream([2.5, 3.0], [1, 2])])


def test_random_prompts_differ_between_streams_and_not_between_runs(bench_module):
    prompt = bench_module("support.streams").random_prompt
    assert prompt(0, 32, 1000) == prompt(0, 32, 1000)
    assert prompt(0, 32, 1000) != prompt(1, 32, 1000)
    assert len(prompt(0, 32, 1000)) == 32
    assert all(300 <= token < 1000 for token in prompt(2, 500, 1000))


def test_buffers_are_summed_by_use_and_a_second_reservation_replaces_the_first(bench_module):
    found = bench_module("support.llama_servers").buffer_bytes(LOG)
    assert found == {"KV": 10 * MIB, "compute": round(5.75 * MIB)}


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

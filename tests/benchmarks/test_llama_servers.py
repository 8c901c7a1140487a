"""bench/support/llama_servers.py: the sizes of buffers in a server's log."""

from __future__ import annotations

LOG = """\
0.00.1 I llama_context:        CPU  output buffer size =     0.50 MiB
0.00.1 I llama_kv_cache:        CPU KV buffer size =     8.00 MiB
0.00.1 I llama_kv_cache_iswa:   CPU KV buffer size =     2.00 MiB
0.00.1 I load_tensors:   CPU_Mapped model buffer size =  2298.76 MiB
0.00.2 I sched_reserve:        CPU compute buffer size =     4.00 MiB
1.00.2 I sched_reserve:        CPU compute buffer size =     5.25 MiB
"""
MIB = 1 << 20


def test_buffers_are_summed_by_use_and_a_second_reservation_replaces_the_first(bench_module):
    found = bench_module("support.llama_servers").buffer_bytes(LOG)
    assert found == {"KV": 10 * MIB, "compute": round(5.75 * MIB)}

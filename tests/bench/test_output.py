"""bench/output.py: the table, whatever its figures are."""

from __future__ import annotations

import io
from dataclasses import replace

from dqrelo_gguf.bench.output import print_rows
from dqrelo_gguf.bench.plan import DeltaFile, Plan, Settings, Workload
from dqrelo_gguf.bench.run import machine
from tests.support.bench_rows import bench_row

COLUMNS = ["model", "size", "params", "backend", "threads", "isa", "delta", "test", "t/s", "median"]
COLUMNS += ["ratio", "limit", "ratio/limit"]


def test_the_table_is_well_formed() -> None:
    prompt, generation, together = Workload(8, 0), Workload(0, 3), Workload(0, 3, 2)
    settings = (Settings(n_ubatch=256), Settings(n_ubatch=512))
    plan = Plan("base", (DeltaFile("math", "a"), DeltaFile("words", "b")), (prompt, generation, together), settings)
    alone = [bench_row(test, (200_000_000, 100_000_000), None) for test in plan.tests]
    tuned = [bench_row(test, (250_000_000, 150_000_000), (200_000_000, 100_000_000)) for test in plan.tests]
    tuned[2] = replace(tuned[2], deltas=("math", "words"))
    out = io.StringIO()
    print_rows("md", [*alone, *tuned], machine(), plan, out)

    table, footer = out.getvalue().split("\n\n")
    lines = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.splitlines()]
    headings = [cell.strip() for cell in lines[0]]
    assert headings == [*COLUMNS[:6], "n_ubatch", *COLUMNS[6:]]
    assert {len(line) for line in lines} == {len(headings)}
    assert {tuple(map(len, line)) for line in lines} == {tuple(map(len, lines[0]))}
    assert all(set(cell) <= {"-", ":"} for cell in lines[1])
    rows = [dict(zip(headings, map(str.strip, line), strict=True)) for line in lines[2:]]
    assert [cells["delta"] for cells in rows] == ["-", "-", "-", "math", "math", "2 deltas"]
    for cells in rows:
        is_base, is_prompt = cells["delta"] == "-", cells["test"].startswith("pp")
        assert (cells["ratio"] == "-") == is_base
        assert (cells["limit"] == "-") == (is_base or is_prompt)
        assert (cells["ratio/limit"] == "-") == (is_base or is_prompt)
        assert " ± " in cells["t/s"]
    assert footer.startswith("build: ")
    assert "\nmachine: " in footer

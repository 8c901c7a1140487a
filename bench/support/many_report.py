"""The tables of bench_many.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from support.machine import heading
from support.many_rows import Row

GB = 1e9
# What the project promises: resident memory over the files, the KV cache and the compute buffers.
FILE_ALLOWANCE = 1.05


def memory_bound(row: Row) -> float:
    """1.05 x (base + deltas' files) + KV cache + compute buffers, in bytes."""
    return FILE_ALLOWANCE * row.file_bytes + row.buffer_bytes("KV") + row.buffer_bytes("compute")


def markdown(facts: Mapping[str, object], rows: Sequence[Row]) -> str:
    """The facts, the paper's Table 4, throughput, and memory against its bound."""
    parts = [heading(facts), _paper_table(rows), _throughput(rows), _memory(rows)]
    return "\n\n".join(parts)


def _paper_table(rows: Sequence[Row]) -> str:
    """Cells: separate servers / deltas in one server."""
    lines = _head("fine-tunes", "memory (GB)", "latency (ms a step)", "base alone, same batch (ms a step)")
    for row in rows:
        memory = " / ".join(_cell(row.median(s, "pss_bytes"), 1 / GB, 2) for s in ("separate", "deltas"))
        latency = " / ".join(_cell(row.median(s, "step_ms"), 1, 1) for s in ("separate", "deltas"))
        lines.append(f"| {row.n} | {memory} | {latency} | {_cell(row.median('base alone', 'step_ms'), 1, 1)} |")
    return "\n".join(lines)


def _throughput(rows: Sequence[Row]) -> str:
    lines = _head(
        "fine-tunes",
        "separate, tokens/s",
        "threads of each",
        "deltas, tokens/s",
        "base alone, tokens/s",
        "deltas / separate",
        "with prompts",
        "deltas / base alone",
    )
    for row in rows:
        speeds = {s: row.median(s, "tokens_per_s") for s in row.runs}
        runs = {s: row.median(s, "run_tokens_per_s") for s in row.runs}
        cells = [
            str(row.n),
            _cell(speeds["separate"], 1, 2),
            str(row.stock_threads or "-"),
            _cell(speeds["deltas"], 1, 2),
            _cell(speeds["base alone"], 1, 2),
            _cell(_ratio(speeds["deltas"], speeds["separate"]), 1, 2),
            _cell(_ratio(runs["deltas"], runs["separate"]), 1, 2),
            _cell(_ratio(speeds["deltas"], speeds["base alone"]), 1, 2),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _memory(rows: Sequence[Row]) -> str:
    lines = _head(
        "fine-tunes",
        "base + deltas, files (GB)",
        "KV cache (GB)",
        "compute buffers (GB)",
        f"bound: {FILE_ALLOWANCE} x files + KV + compute (GB)",
        "measured (GB)",
        "measured / bound",
    )
    for row in rows:
        sizes = [row.file_bytes, row.buffer_bytes("KV"), row.buffer_bytes("compute"), memory_bound(row)]
        measured = row.median("deltas", "pss_bytes")
        cells = [_cell(n, 1 / GB, 3) for n in (*sizes, measured)] + [_cell(_ratio(measured, sizes[-1]), 1, 3)]
        lines.append(f"| {row.n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _head(*titles: str) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _cell(value: float | None, factor: float, n_digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{n_digits}f}"

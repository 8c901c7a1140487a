"""The rows as llama-bench prints them, with columns for the deltas: Markdown, JSON, a JSON object a line, or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TextIO

from dqrelo_gguf.bench.plan import Plan, Settings
from dqrelo_gguf.bench.run import Row
from dqrelo_gguf.errors import printable
from dqrelo_gguf.version import __version__

if TYPE_CHECKING:
    from dqrelo_gguf.native import core

_FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}  # The numbers are llama.cpp's.


def fields(row: Row, machine: core.Machine, base: str) -> dict[str, Any]:
    """Everything about a row, under llama-bench's names where it has them."""
    return {
        "build_commit": machine["build_commit"],
        "build_number": machine["build_number"],
        "dqrelo_version": __version__,
        "cpu_info": machine["cpu_info"],
        "gpu_info": machine["gpu_info"],
        "backends": machine["backends"],
        "isa": machine["isa"],
        "model_filename": base,
        "model_type": row.model_type,
        "model_size": row.model_size,
        "model_n_params": row.model_n_params,
        **{name: getattr(row.settings, name) for name in ("n_batch", "n_ubatch", "n_threads", "type_k", "type_v")},
        "n_gpu_layers": row.settings.n_gpu_layers,
        "flash_attn": _FLASH_ATTN[row.settings.flash_attn],
        "use_mmap": bool(row.settings.use_mmap),
        "repack": bool(row.settings.repack),
        "n_prompt": row.test.n_prompt,
        "n_gen": row.test.n_gen,
        "n_streams": row.test.n_streams,
        "deltas": list(row.deltas),
        "delta_filenames": list(row.files),
        "delta_content_hashes": list(row.content_hashes),
        "base_bytes": row.base_bytes,
        "delta_bytes": row.delta_bytes,
        "test_time": row.test_time,
        "avg_ns": row.avg_ns,
        "stddev_ns": row.stddev_ns,
        "avg_ts": row.avg_ts,
        "stddev_ts": row.stddev_ts,
        "median_ts": row.median_ts,
        "ratio_to_base": row.ratio_to_base,
        "limit": row.limit,
        "ratio_to_limit": row.ratio_to_limit,
        "samples_ns": list(row.samples_ns),
        "samples_ts": row.samples_ts,
    }


def print_rows(kind: str, rows: Iterable[Row], machine: core.Machine, plan: Plan, out: TextIO) -> None:
    """Prints rows as they come; JSON at the end, as one array.

    Args:
        kind: md, json, jsonl or csv.
        rows: what was measured.
        machine: what it was measured on.
        plan: what the rows come from; the table has a column for every setting that is not as usual.
        out: where to.
    """
    if kind == "md":
        _print_table(rows, machine, plan.settings, out)
        return
    documents = (fields(row, machine, plan.base) for row in rows)
    if kind == "json":
        json.dump(list(documents), out, indent=2, ensure_ascii=False)
        out.write("\n")
        return
    writer: csv.DictWriter[str] | None = None
    for document in documents:
        if kind == "jsonl":
            out.write(json.dumps(document, ensure_ascii=False) + "\n")
        else:
            flat = {key: json.dumps(value) if isinstance(value, list) else value for key, value in document.items()}
            if writer is None:
                writer = csv.DictWriter(out, flat, lineterminator="\n")
                writer.writeheader()
            writer.writerow(flat)
        out.flush()


@dataclass(frozen=True)
class _Column:
    """A column of the table; a negative width is one of left-aligned text."""

    heading: str
    width: int
    text: Callable[[Row], str]

    def cell(self, text: str) -> str:
        return text.ljust(-self.width) if self.width < 0 else text.rjust(self.width)

    @property
    def rule(self) -> str:
        return "-" * (abs(self.width) - 1) + ("-" if self.width < 0 else ":")


def _print_table(rows: Iterable[Row], machine: core.Machine, settings: Sequence[Settings], out: TextIO) -> None:
    columns = _columns(machine, settings)

    def line(cells: Iterable[str]) -> None:
        out.write("| " + " | ".join(cells) + " |\n")
        out.flush()

    for i, row in enumerate(rows):
        if i == 0:  # The headings wait until something could be measured.
            line(column.cell(column.heading) for column in columns)
            line(column.rule for column in columns)
        line(column.cell(printable(column.text(row)).replace("|", "\\|")) for column in columns)
    out.write(f"\nbuild: {machine['build_commit']} ({machine['build_number']}), dqrelo-gguf {__version__}\n")
    out.write(f"machine: {', '.join(name for name in (machine['cpu_info'], machine['gpu_info']) if name)}\n")


def _columns(machine: core.Machine, settings: Sequence[Settings]) -> list[_Column]:
    """llama-bench's columns, and those of the deltas."""
    columns = [
        _Column("model", -30, lambda row: row.model_type),
        _Column("size", 10, lambda row: _size(row.model_size)),
        _Column("params", 10, lambda row: _n_params(row.model_n_params)),
        _Column("backend", -10, lambda _: machine["backends"]),
        _Column("threads", 7, lambda row: str(row.settings.n_threads)),
        _Column("isa", -10, lambda _: machine["isa"]),
    ]
    for heading, name, width in (
        ("ngl", "n_gpu_layers", 3),
        ("n_batch", "n_batch", 7),
        ("n_ubatch", "n_ubatch", 8),
        ("type_k", "type_k", 6),
        ("type_v", "type_v", 6),
        ("fa", "flash_attn", 4),
        ("mmap", "use_mmap", 4),
        ("repack", "repack", 6),
    ):
        if {getattr(one, name) for one in settings} != {getattr(Settings(), name)}:
            columns.append(_Column(heading, width, partial(_setting, name)))
    return [
        *columns,
        _Column("delta", -16, _delta),
        _Column("test", 15, lambda row: row.test.name),
        _Column("t/s", 20, lambda row: f"{row.avg_ts:.2f} ± {row.stddev_ts:.2f}"),
        _Column("median", 10, lambda row: f"{row.median_ts:.2f}"),
        _Column("ratio", 6, lambda row: _ratio(row.ratio_to_base)),
        _Column("limit", 6, lambda row: _ratio(row.limit)),
        _Column("ratio/limit", 11, lambda row: _ratio(row.ratio_to_limit)),
    ]


def _setting(name: str, row: Row) -> str:
    return str(getattr(row.settings, name))


def _delta(row: Row) -> str:
    if not row.deltas:
        return "-"
    return row.deltas[0] if len(row.deltas) == 1 else f"{len(row.deltas)} deltas"


def _size(n_bytes: int) -> str:
    mib = n_bytes / 1024**2
    return f"{mib:.2f} MiB" if mib < 1024 else f"{mib / 1024:.2f} GiB"


def _n_params(n: int) -> str:
    return f"{n / 1e6:.2f} M" if n < 1e9 else f"{n / 1e9:.2f} B"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

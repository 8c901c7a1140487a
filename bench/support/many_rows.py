"""What bench_many.py measures for each number of fine-tunes."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field

from support.streams import Speed

SETTINGS = ("deltas", "separate", "base alone")


@dataclass(frozen=True)
class Measured:
    """One run of one setting."""

    speed: Speed
    pss_bytes: int
    buffers: dict[str, int]  # bytes of all servers together


@dataclass
class Row:
    """All that is measured for N fine-tunes. Stock servers without runs do not fit into memory, or were not asked for."""

    n: int
    file_bytes: int  # bytes of the base and of the deltas
    runs: dict[str, list[Measured]] = field(default_factory=lambda: {s: [] for s in SETTINGS})
    stock_threads: int | None = None
    # It maps the threads of a stock server to the tokens/s of the whole run.
    trials: dict[int, float] = field(default_factory=dict)

    def median(self, setting: str, value: str) -> float | None:
        """The median of `tokens_per_s`, `step_ms`, `run_tokens_per_s` or `pss_bytes`, None without runs."""
        found = [getattr(m if value == "pss_bytes" else m.speed, value) for m in self.runs[setting]]
        return statistics.median(found) if found else None

    def buffer_bytes(self, use: str) -> int:
        """Of the server with deltas: its KV cache (`KV`), or its compute and output buffers (`compute`)."""
        return max(m.buffers[use] for m in self.runs["deltas"])

    def as_json(self) -> dict[str, object]:
        """Everything, with the medians and the bound on memory."""
        values = ("tokens_per_s", "step_ms", "run_tokens_per_s", "pss_bytes")
        return asdict(self) | {"medians": {s: {v: self.median(s, v) for v in values} for s in SETTINGS}}

"""The memory of a running server, sampled beside a soak."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Self

import psutil

PERIOD_S = 1.0
MIB = 1 << 20


def process_at(port: str) -> psutil.Process:
    """The child of this process whose command line has the port."""
    return next(p for p in psutil.Process().children() if port in p.cmdline())


@dataclass
class MemoryWatch:
    """Samples a process until the block ends.

    Args:
        process: the server.
        samples: seconds since the start and MiB; proportional set size where the system has it, else resident set size.
    """

    process: psutil.Process
    samples: list[tuple[float, float]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _sample(self) -> None:
        begun = time.monotonic()
        while not self.over.wait(PERIOD_S):
            info = self.process.memory_full_info()
            self.samples.append((time.monotonic() - begun, getattr(info, "pss", info.rss) / MIB))

    def peak(self, since: float, until: float) -> float:
        """The largest sample between two shares of the time watched, in MiB."""
        end = self.samples[-1][0]
        return max(mib for at, mib in self.samples if since * end <= at <= until * end)

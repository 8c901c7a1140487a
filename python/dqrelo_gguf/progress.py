"""Progress on stderr: a bar with rate and remaining time on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import functools
import shutil
import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self

# Seconds between two plain lines.
_LINE_SECONDS = 10.0


class Progress(Protocol):
    """A phase of work that is under way; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def step(self, n: int, name: str) -> None:
        """`name` is done: so many parameters (or what else is counted) of all."""


class Phases(Protocol):
    """Starts a phase: its title, how many parameters (or what else is counted) there are in all, and the unit if it is another one."""

    def __call__(self, title: str, n_all: int, *, unit: str = ...) -> Progress: ...


class Silent:
    """Shows nothing."""

    def __init__(self, title: str, n_all: int, *, unit: str = "params") -> None:
        del title, n_all, unit

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def step(self, n: int, name: str) -> None:
        """Nothing."""


class Bar(Silent):
    """A bar on a terminal."""

    def __init__(self, title: str, n_all: int, *, unit: str = "params") -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(
            desc=f"{title:10}",
            total=n_all,
            unit=f" {unit}",
            unit_scale=True,
            leave=False,
            # It is 80 where the terminal does not say: tqdm would show nothing.
            ncols=shutil.get_terminal_size().columns,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, n: int, name: str) -> None:
        self._bar.set_postfix_str(name, refresh=False)
        self._bar.update(n)


class Lines(Silent):
    """A line at the end of a phase, and every ten seconds before."""

    def __init__(self, title: str, n_all: int, *, unit: str = "params") -> None:
        self._title, self._n_all, self._done, self._unit = title, n_all, 0, unit
        self._begun = self._shown = time.monotonic()

    def step(self, n: int, name: str) -> None:
        self._done += n
        now = time.monotonic()
        if self._done < self._n_all and now - self._shown < _LINE_SECONDS:
            return
        self._shown = now
        seconds = max(now - self._begun, 1e-6)
        rate = self._done / seconds
        left = (self._n_all - self._done) / rate if rate else 0.0
        print(
            f"{self._title}: {100 * self._done / max(self._n_all, 1):.0f} %, {_scaled(rate)}{self._unit}/s, "
            f"{seconds:.0f} s gone, {left:.0f} s left ({name})",
            file=sys.stderr,
            flush=True,
        )


def _scaled(rate: float) -> str:
    """A number in front of a unit, with a prefix where it is large: `3.20 M `."""
    return f"{rate / 1e6:.2f} M " if rate >= 1e5 else f"{rate:.1f} "


def phases_for_stderr(unit: str = "params") -> Phases:
    """Bars if stderr is a terminal, lines otherwise; `unit` is what they count where a phase does not say it."""
    return functools.partial(Bar if sys.stderr.isatty() else Lines, unit=unit)

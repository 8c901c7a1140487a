"""Progress on stderr: a bar with rate and remaining time on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
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

    def step(self, n_params: int, name: str) -> None:
        """`name` with its parameters is done."""


# Starts a phase: its title and the number of parameters in all.
Phases = Callable[[str, int], Progress]


class Silent:
    """Shows nothing."""

    def __init__(self, title: str, n_params: int) -> None:
        del title, n_params

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def step(self, n_params: int, name: str) -> None:
        """Nothing."""


class Bar(Silent):
    """A bar on a terminal."""

    def __init__(self, title: str, n_params: int) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(
            desc=f"{title:10}",
            total=n_params,
            unit=" params",
            unit_scale=True,
            leave=False,
            # It is 80 where the terminal does not say: tqdm would show nothing.
            ncols=shutil.get_terminal_size().columns,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, n_params: int, name: str) -> None:
        self._bar.set_postfix_str(name, refresh=False)
        self._bar.update(n_params)


class Lines(Silent):
    """A line at the end of a phase, and every ten seconds before."""

    def __init__(self, title: str, n_params: int) -> None:
        self._title, self._n_params, self._done = title, n_params, 0
        self._begun = self._shown = time.monotonic()

    def step(self, n_params: int, name: str) -> None:
        self._done += n_params
        now = time.monotonic()
        if self._done < self._n_params and now - self._shown < _LINE_SECONDS:
            return
        self._shown = now
        seconds = max(now - self._begun, 1e-6)
        rate = self._done / seconds
        left = (self._n_params - self._done) / rate if rate else 0.0
        print(
            f"{self._title}: {100 * self._done / max(self._n_params, 1):.0f} %, {rate / 1e6:.2f} M params/s, "
            f"{seconds:.0f} s gone, {left:.0f} s left ({name})",
            file=sys.stderr,
            flush=True,
        )


def phases_for_stderr() -> Phases:
    """Bars if stderr is a terminal, lines otherwise."""
    return Bar if sys.stderr.isatty() else Lines

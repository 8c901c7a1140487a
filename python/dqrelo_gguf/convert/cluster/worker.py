"""The process that computes, on a machine of the cluster: it opens the models once, and works on the weights that it is given."""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dqrelo_gguf.compress.blocks import Blocks, open_blocks
from dqrelo_gguf.convert.cluster.agreement import View, programs, require_same, view_of
from dqrelo_gguf.convert.moments import Moments
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.convert.sources import Models, Sources, open_models
from dqrelo_gguf.errors import DqreloError, InputError, printable


@dataclass(frozen=True)
class Order:
    """What a worker is to open.

    Args:
        node: what messages call its machine.
        sources: absolute paths.
        addresses: the inputs as they were given, for what is not at its path.
        options: of the conversion.
        view: what the conversion sees.
        n_threads: that the worker may use.
    """

    node: str
    sources: Sources
    addresses: Sources
    options: Options
    view: View
    n_threads: int


@dataclass(frozen=True)
class Measured:
    """Moments that were measured after the models were opened: their file, and its digest."""

    path: str
    digest: str


@dataclass(frozen=True)
class Outcome:
    """How a weight ended: without `error` and `lost`, its result is there.

    Args:
        error: why it cannot be converted.
        lost: why this machine could not; another one may.
    """

    error: DqreloError | None = None
    lost: str | None = None


class ConvertWorker:
    """Called from outside, several calls at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resources = ExitStack()
        self._node = ""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._models: Models | None = None
        self._blocks: Blocks | None = None
        self._measured: Measured | None = None

    def programs(self) -> dict[str, str]:
        """Which versions decide the bytes here; it is asked before anything else, because other versions have other calls."""
        return programs()

    def open(self, order: Order) -> View:
        """Opens the models.

        Raises:
            DqreloError: they cannot be opened here, or are not those of the conversion.
        """
        self._node = order.node
        # The process ends by a signal, so what it keeps in temporary files lies where close() finds it.
        self._folder = tempfile.TemporaryDirectory(prefix="dqrelo-worker-")
        tempfile.tempdir = self._folder.name
        try:
            sources = order.sources.or_fetched(order.addresses)
            view = view_of(sources)
            require_same(order.node, view, order.view)
            self._models = open_models(sources, order.options)
        except OSError as e:
            raise InputError(f"{order.node}: {printable(str(e))}") from None
        self._blocks = self._resources.enter_context(open_blocks(order.n_threads))
        return view

    def run(self, task: Any, weight: Any, n_threads: int, measured: Measured | None) -> tuple[Outcome, Any]:
        """Works on a weight; the second value is the result.

        Args:
            task: a tasks.Task.
            weight: its weight.
            n_threads: 1, or all.
            measured: of --calibrate, or None.
        """
        assert self._blocks is not None
        blocks = self._blocks if n_threads == self._blocks.n_threads else Blocks(1)
        try:
            return Outcome(), task.run(weight, self._with(measured), blocks)
        except DqreloError as e:
            return Outcome(error=e), None
        except MemoryError:
            return Outcome(lost=f"{self._node} has too little memory"), None
        except OSError as e:
            return Outcome(lost=f"{self._node}: {printable(str(e))}"), None

    def close(self) -> None:
        """Removes the temporary files, also those of work that still runs: nobody takes its results any more."""
        if self._folder is not None:
            self._folder.cleanup()

    def _with(self, measured: Measured | None) -> Models:
        with self._lock:
            assert self._models is not None
            if measured != self._measured and measured is not None:
                if not Path(measured.path).is_file():
                    raise InputError(
                        f"{self._node}: does not have {measured.path}, which --calibrate wrote. Give --save-calibration a file "
                        "that every machine sees"
                    )
                moments = Moments(measured.path)
                if moments.digest != measured.digest:
                    raise InputError(
                        f"{self._node}: sees another {measured.path}. Every machine must see the same files"
                    )
                self._models = replace(self._models, inputs=moments)
                self._measured = measured
            return self._models

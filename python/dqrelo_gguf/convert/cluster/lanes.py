"""The lanes of a cluster: what a conversion gives its passes to with `--ray`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from dqrelo_gguf.compress.blocks import CPU, Blocks
from dqrelo_gguf.convert.cluster.agreement import view_of
from dqrelo_gguf.convert.cluster.connect import AUTO, OPTION, connected
from dqrelo_gguf.convert.cluster.dispatch import dispatch
from dqrelo_gguf.convert.cluster.fleet import RayFleet
from dqrelo_gguf.convert.cluster.worker import Measured, Order
from dqrelo_gguf.convert.encode import Inputs
from dqrelo_gguf.convert.lanes import Lanes, OpenLanes
from dqrelo_gguf.convert.moments import Moments
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.convert.sources import Models, Sources
from dqrelo_gguf.convert.tasks import Task
from dqrelo_gguf.errors import InputError

W = TypeVar("W")
R = TypeVar("R")


class ClusterLanes:
    """See `convert.lanes.Lanes`.

    Args:
        fleet: the workers, ready.
        given: the inputs that the workers have opened.
    """

    def __init__(self, fleet: RayFleet, given: Inputs | None) -> None:
        self.n_threads = fleet.n_all_threads
        self.notes = fleet.notes
        self._fleet, self._given = fleet, given

    def each(self, task: Task[W, R], weights: Sequence[W]) -> Iterator[tuple[W, R]]:
        """See `Lanes`."""
        return dispatch(task, weights, self._fleet, self.notes)

    def use(self, inputs: Inputs) -> None:
        """See `Lanes`."""
        if inputs is not self._given and isinstance(inputs, Moments):
            self._fleet.measured = Measured(str(Path(inputs.path).absolute()), inputs.digest)


def on_ray(address: str = AUTO, addresses: Sources | None = None, n_threads: int | None = None) -> OpenLanes:
    """What `convert.job.convert` takes as `open_lanes` to compute on a Ray cluster.

    Args:
        address: HOST:PORT of a cluster of which this machine is a part; AUTO for the one that RAY_ADDRESS names or that runs on
            this machine, or else, as LOCAL, one of this machine alone.
        addresses: the inputs as they were given, for workers that do not have what was fetched here; None where they are paths.
        n_threads: of each worker; None for all of its machine.
    """

    @contextmanager
    def open_lanes(sources: Sources, models: Models, options: Options, blocks: Blocks) -> Iterator[Lanes]:
        if models.adapter is not None:
            raise InputError(
                f"{OPTION}: an adapter's factors are stored as they are, nothing is to be computed. Leave it out"
            )
        if blocks.device != CPU:
            raise InputError(f"{OPTION}: workers compress on their processors. Leave out it or --device")
        order = Order("", sources.absolute(), addresses or sources, options, view_of(sources), 1)
        with connected(address) as ray:
            fleet = RayFleet(ray, order, n_threads)
            try:
                fleet.open()
                yield ClusterLanes(fleet, models.inputs)
            finally:
                fleet.close()

    return open_lanes

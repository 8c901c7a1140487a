"""A Ray cluster of three nodes on this machine, and conversions on it in which something is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from dqrelo_gguf.progress import Silent

# Small, so that three nodes take little of this machine's memory.
STORE_BYTES = 80 << 20


def node_arguments() -> dict[str, Any]:
    return {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}


@contextmanager
def three_nodes() -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster` with one processor a node."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=node_arguments())
    try:
        for _ in range(2):
            cluster.add_node(**node_arguments())
        yield cluster
    finally:
        cluster.shutdown()


def kill_workers(n: int) -> None:
    """Kills so many of the processes that compute."""
    found = [p for p in psutil.process_iter(["cmdline"]) if "ray::ConvertWorker" in " ".join(p.info["cmdline"] or [])]
    assert len(found) >= n
    for process in found[:n]:
        process.kill()


def at_step(title: str, n: int, do: Callable[[], None]) -> type[Silent]:
    """The phases of a conversion that does something when n weights of a phase are done."""

    class Phase(Silent):
        def __init__(self, own_title: str, n_all: int) -> None:
            super().__init__(own_title, n_all)
            self.title, self.n_done = own_title, 0

        def step(self, n_elements: int, name: str) -> None:
            del n_elements, name
            self.n_done += 1
            if (self.title, self.n_done) == (title, n):
                do()

    return Phase

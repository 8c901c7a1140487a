"""The workers of a Ray cluster: one on each of its machines, with all of that machine's threads.

Machines that come later get a worker, too, and one whose worker was lost gets another. Packs lie in the object store of the
machine that made them until their turn to be written comes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal, TypeVar

from dqrelo_gguf.convert.cluster.agreement import View, processor_note, require_same
from dqrelo_gguf.convert.cluster.connect import OPTION
from dqrelo_gguf.convert.cluster.dispatch import Ended, LostError, Worker
from dqrelo_gguf.convert.cluster.worker import ConvertWorker, Measured, Order
from dqrelo_gguf.convert.tasks import Task
from dqrelo_gguf.errors import DqreloError, InputError, printable

W = TypeVar("W")
R = TypeVar("R")

# A worker that has not begun by then waits for processors that others have.
START_SECONDS = 120
# Between two looks at which machines there are.
_LOOK_SECONDS = 2.0
_WAIT_SECONDS = 1.0
# For workers that remove their temporary files, before they are ended.
_CLOSE_SECONDS = 5.0
# Workers of one machine that may be lost before they have finished a weight.
_MAX_FAILURES = 3
# Of the smallest object store: so much may be in packs, the rest is for those that are on their way.
_STORE_SHARE = 0.5


@dataclass
class _Member:
    """A machine, and its worker.

    Args:
        node: Ray's number of it.
        label: what messages call it.
        n_threads: of the worker.
        n_store_bytes: of its object store.
        actor: the worker; None where there is none.
        state: of the worker.
        call: what the worker was asked while it is being started.
        begun: when it was started.
        n_failures: workers in a row that were lost before they had finished anything.
        n_workers: that it had.
    """

    node: str
    label: str
    n_threads: int
    n_store_bytes: int
    actor: Any = None
    state: Literal["none", "starting", "opening", "ready", "refused"] = "none"
    call: Any = None
    begun: float = 0.0
    n_failures: int = 0
    n_workers: int = 0

    @property
    def worker(self) -> Worker:
        return Worker(f"{self.node}/{self.n_workers}", self.n_threads)


@dataclass
class _Work:
    """What was begun; `outcome` and `result` are Ray's references."""

    member: _Member
    key: str
    outcome: Any
    result: Any


@dataclass
class RayFleet:
    """See `dispatch.Fleet`.

    Args:
        ray: the package, connected.
        order: what a worker opens; node and number of threads are each worker's own.
        n_threads: of each worker; None for all of its machine.
        notes: what the report is to say.
        measured: moments that the tasks use, or None.
    """

    ray: ModuleType
    order: Order
    n_threads: int | None
    notes: list[str] = field(default_factory=list)
    measured: Measured | None = None

    def __post_init__(self) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._on_node = NodeAffinitySchedulingStrategy
        self._remote: Any = self.ray.remote(ConvertWorker)
        self._members: dict[str, _Member] = {}
        self._work: dict[int, _Work] = {}
        self._ended: dict[int, _Work] = {}
        self._tickets = itertools.count()
        self._looked = 0.0
        self._has_begun = False  # Something was given to a worker.

    # --- the face that dispatch.py sees ---

    @property
    def max_held_bytes(self) -> int:
        return int(_STORE_SHARE * min((m.n_store_bytes for m in self._ready()), default=0))

    def workers(self) -> Sequence[Worker]:
        self._look()
        if all(m.state == "refused" for m in self._members.values()):
            raise InputError(f"{OPTION}: no worker is left. {self._reasons()}")
        return [m.worker for m in self._ready()]

    def start(self, worker: Worker, task: Task[W, R], weight: W, n_threads: int) -> int:
        member = next(m for m in self._ready() if m.worker == worker)
        call = member.actor.run.options(num_returns=2)
        outcome, result = call.remote(task, weight, n_threads, self.measured)
        ticket = next(self._tickets)
        self._has_begun = True
        self._work[ticket] = _Work(member, worker.key, outcome, result)
        return ticket

    def wait(self) -> Sequence[Ended]:
        calls = {m.call: m for m in self._members.values() if m.call is not None}
        works = {work.outcome: ticket for ticket, work in self._work.items()}
        if not calls and not works:
            time.sleep(_WAIT_SECONDS)
            return []
        ready, _ = self.ray.wait([*calls, *works], num_returns=1, timeout=_WAIT_SECONDS)
        if ready:  # All that are there, and not only the first one.
            ready, _ = self.ray.wait([*calls, *works], num_returns=len(calls) + len(works), timeout=0)
        ended = []
        for ref in ready:
            if ref in calls:
                self._go_on(calls[ref])
            else:
                ended.append(self._end(works[ref]))
        return ended

    def fetch(self, ticket: int) -> Any:
        work = self._ended.pop(ticket)
        try:
            return self.ray.get(work.result)
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as e:
            raise LostError(f"{work.member.label}: {_reason(e)}") from None

    # --- workers ---

    def open(self) -> None:
        """Starts a worker on every machine that there is, and waits until each is ready.

        Raises:
            DqreloError: a machine sees other files or has other programs; or none can compute.
        """
        self._look()
        while any(m.state in ("starting", "opening") for m in self._members.values()):
            self.wait()
            self._look()
        if not self._ready():
            raise InputError(f"{OPTION}: no worker could be started. {self._reasons()}")

    def close(self) -> None:
        """Ends all workers, which have removed their temporary files."""
        calls = [m.actor.close.remote() for m in self._ready()]
        if calls:
            self.ray.wait(calls, num_returns=len(calls), timeout=_CLOSE_SECONDS)
        for member in self._members.values():
            self._stop(member)

    @property
    def n_all_threads(self) -> int:
        return sum(m.n_threads for m in self._ready())

    def _ready(self) -> list[_Member]:
        return [m for m in self._members.values() if m.state == "ready"]

    def _look(self) -> None:
        """Starts workers where there should be one, and gives up those that do not begin."""
        now = time.monotonic()
        for member in self._members.values():
            if member.state == "starting" and now - member.begun > START_SECONDS:
                self._stop(member)
                self._refuse(
                    member, f"{member.n_threads} processors were not free within {START_SECONDS} s (--threads)"
                )
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        alive = {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"]}
        for node, about in alive.items():
            resources = about["Resources"]
            n_processors = int(resources.get("CPU", 0))
            if n_processors > 0 and node not in self._members:
                label = f"node {about['NodeManagerHostname']} ({about['NodeManagerAddress']}, {node[:6]})"
                n_threads = min(self.n_threads or n_processors, n_processors)
                self._members[node] = _Member(node, label, n_threads, int(resources.get("object_store_memory", 0)))
        for node, member in self._members.items():
            if node not in alive:
                self._stop(member)
                member.state = "refused"
            elif member.state == "none":
                self._begin(member)

    def _begin(self, member: _Member) -> None:
        member.n_workers += 1
        member.actor = self._remote.options(
            num_cpus=member.n_threads,
            max_concurrency=member.n_threads + 1,
            max_restarts=0,
            scheduling_strategy=self._on_node(member.node, soft=False),
        ).remote()
        member.state, member.begun = "starting", time.monotonic()
        member.call = member.actor.programs.remote()

    def _go_on(self, member: _Member) -> None:
        """The next step of a worker that is being started."""
        call, member.call = member.call, None
        try:
            found = self.ray.get(call)
            if member.state == "starting":
                require_same(member.label, View(programs=found), View(programs=self.order.view.programs))
                own = replace(self.order, node=member.label, n_threads=member.n_threads)
                member.state, member.call = "opening", member.actor.open.remote(own)
                return
        except self.ray.exceptions.RayTaskError as e:
            self._stop(member)
            if not isinstance(e.cause, DqreloError):
                raise
            self._refuse(member, str(e.cause), e.cause)
        except DqreloError as e:
            self._stop(member)
            self._refuse(member, str(e), e)
        except self.ray.exceptions.RayError as e:
            self._fail(member, f"its worker did not start: {_reason(e)}. Is the same dqrelo-gguf installed there?")
        else:
            member.state = "ready"
            note = processor_note(member.label, found, self.order.view)
            if note is not None and note not in self.notes:
                self.notes.append(note)

    def _refuse(self, member: _Member, reason: str, error: DqreloError | None = None) -> None:
        """Does without a machine; before the work begins, what is wrong with its files or programs ends the conversion.

        Raises:
            DqreloError: the error.
        """
        member.state = "refused"
        if error is not None and not self._has_begun:
            raise error
        self.notes.append(reason if reason.startswith(member.label) else f"{member.label}: {reason}")

    def _end(self, ticket: int) -> Ended:
        work = self._work.pop(ticket)
        try:
            outcome = self.ray.get(work.outcome)
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as e:
            reason = f"{work.member.label}: {_reason(e)}"
            if work.member.state == "ready" and work.member.worker.key == work.key:
                self._fail(work.member, _reason(e))
            return Ended(ticket, lost=reason)
        work.member.n_failures = 0
        if outcome.error is None and outcome.lost is None:
            self._ended[ticket] = work
        return Ended(ticket, outcome.error, outcome.lost)

    def _fail(self, member: _Member, reason: str) -> None:
        """Counts a worker that was lost; after some in a row the machine is done without."""
        self._stop(member)
        member.n_failures += 1
        member.state = "none"
        if member.n_failures >= _MAX_FAILURES:
            self._refuse(member, reason)

    def _stop(self, member: _Member) -> None:
        if member.actor is not None:
            self.ray.kill(member.actor)
        member.actor = member.call = None

    def _reasons(self) -> str:
        known = [note for note in self.notes if note.startswith("node ")]
        return printable(known[-1]) if known else "The cluster has no processors"


def _reason(error: Exception) -> str:
    """What Ray says of a lost worker, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "Error" in line), lines[0] if lines else type(error).__name__)
    return printable(said)[:200]

"""How Ray Serve's handles choose a replica: `Placement` with what Ray knows of the replicas. It lives in every front."""

from __future__ import annotations

import time
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from dqrelo_gguf.integrations.fleet.messages import Call
from dqrelo_gguf.integrations.fleet.placement import Kind, Placement, Report
from dqrelo_gguf.integrations.fleet.reports import report_of

_PLACING = frozenset({Kind.SPREAD, Kind.ROOM, Kind.EVICTS})


class DeltaRouter(RequestRouter):  # type: ignore[misc]  # Ray's types are not followed.
    """Ranks the replicas for each call by the deltas that it needs."""

    # Ray Serve asks a replica for its number of requests and takes the next rank where the answer is late, after 0.1 s by default:
    # on a busy machine a delta would then be loaded a second time elsewhere, which costs more than the wait.
    queue_len_response_deadline_s = 2.0

    def initialize_state(self, *, slots: int, budget_bytes: int | None) -> None:
        """Ray Serve calls it once, before anything else.

        Args:
            slots: of each replica.
            budget_bytes: memory for the deltas of each; None is no limit.
        """
        self._placement = Placement(time.monotonic)
        self._base_names: frozenset[str] = frozenset()
        self._new = Report(slots, budget_bytes)  # A replica that has not told anything yet.

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray Serve calls it when a replica comes, goes, or tells something new."""
        super().update_replicas(replicas)
        self._base_names = frozenset(name for r in replicas for name in r.routing_stats.get("base", ()))
        self._placement.update({r.replica_id.unique_id: report_of(r.routing_stats, self._new) for r in replicas})

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """All candidates, each as a rank of its own, the best one first; Ray Serve takes the first one that has room for a request."""
        if pending_request is None:
            return [candidate_replicas]
        call: Call = pending_request.args[0]
        by_key = {r.replica_id.unique_id: r for r in candidate_replicas if r.replica_id.unique_id not in call.failed}
        if not by_key:  # A replica that failed once is better than none.
            by_key = {r.replica_id.unique_id: r for r in candidate_replicas}
        running = {key: self.replica_queue_len_cache.get(r.replica_id) or 0 for key, r in by_key.items()}
        deltas = self._deltas(call)
        ranking = [(key, kind) for key, kind in self._placement.ranking(deltas, running) if key in by_key]
        if ranking and ranking[0][1] in _PLACING:
            # So the next request for the same delta finds it there, before the replica has told of it.
            self._placement.chosen(deltas, ranking[0][0])
        return [[by_key[key]] for key, _ in ranking]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Ray Serve calls it when a replica has taken a call."""
        super().on_request_routed(pending_request, replica_id, result)
        call: Call = pending_request.args[0]
        deltas = self._deltas(call)
        self._placement.accepted(deltas)
        self._placement.sent(deltas, replica_id.unique_id)

    def _deltas(self, call: Call) -> tuple[str, ...]:
        """What has to be in memory for a call; nothing for the base, which every replica has."""
        return tuple(name for name in call.names if name not in self._base_names)

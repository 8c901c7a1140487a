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

    def initialize_state(self, *, slots: int, budget_bytes: int | None) -> None:
        """Ray Serve calls it once, before anything else.

        Args:
            slots: of each replica.
            budget_bytes: memory for the deltas of each; None is no limit.
        """
        self._placement = Placement(time.monotonic)
        self._new = Report(slots, budget_bytes)  # A replica that has not told anything yet.

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray Serve calls it when a replica comes, goes, or tells something new."""
        super().update_replicas(replicas)
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
        ranking = [(key, kind) for key, kind in self._placement.ranking(call.deltas, running) if key in by_key]
        if ranking and ranking[0][1] in _PLACING:
            # So the next request for the same delta finds it there, before the replica has told of it.
            self._placement.sent(call.deltas, ranking[0][0])
        return [[by_key[key]] for key, _ in ranking]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Ray Serve calls it when a replica has taken a call."""
        super().on_request_routed(pending_request, replica_id, result)
        call: Call = pending_request.args[0]
        self._placement.accepted(call.deltas)
        self._placement.sent(call.deltas, replica_id.unique_id)

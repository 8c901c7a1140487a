"""A fleet of servers behind one endpoint, as an application of Ray Serve (docs/ray-serve.md):

serve run dqrelo_gguf.integrations.ray_serve:app base=base.gguf deltas=DIR replicas=3
"""

from __future__ import annotations

from typing import Any

import click
from ray import serve
from ray.serve.config import RequestRouterConfig

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.integrations.fleet.arguments import Arguments
from dqrelo_gguf.integrations.fleet.front import Front
from dqrelo_gguf.integrations.fleet.replica import Replica
from dqrelo_gguf.integrations.fleet.request_router import DeltaRouter

# A replica takes as many requests again as it has slots, so that a slot that gets free has work at once. More wait in the fronts, where
# they can still go to any replica.
WAVES = 2
HEALTH_SECONDS = 5.0
BACKOFF_SECONDS = 0.02
MAX_BACKOFF_SECONDS = 0.2
MAX_ONGOING = 10_000  # of a front; what waits for replicas has a bound of its own.


class ArgumentError(InputError, click.ClickException):
    """An argument that cannot be used. As click's exception it is one line of `serve run`."""


def app(args: dict[str, Any]) -> serve.Application:
    """Builds the application.

    Args:
        args: those of fleet.arguments.Arguments.

    Raises:
        ArgumentError: they cannot be used.
    """
    try:
        arguments = Arguments.read(args)
    except InputError as error:
        raise ArgumentError(str(error)) from None
    scale: dict[str, Any] = {"num_replicas": arguments.replicas}
    if arguments.max_replicas is not None:
        scale = {
            "autoscaling_config": {
                "min_replicas": arguments.replicas,
                "max_replicas": arguments.max_replicas,
                "target_ongoing_requests": arguments.slots,
            }
        }
    replicas = serve.deployment(
        Replica,
        name="Replica",
        max_ongoing_requests=WAVES * arguments.slots,
        max_queued_requests=arguments.max_waiting,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=arguments.drain_seconds,
        request_router_config=RequestRouterConfig(
            request_router_class=f"{DeltaRouter.__module__}.{DeltaRouter.__name__}",
            request_router_kwargs={"slots": arguments.slots, "budget_bytes": arguments.budget_bytes},
            request_routing_stats_period_s=arguments.stats_seconds,
            initial_backoff_s=BACKOFF_SECONDS,
            max_backoff_s=MAX_BACKOFF_SECONDS,
        ),
        **scale,
    ).bind(arguments)
    return serve.deployment(
        Front,
        name="Front",
        num_replicas=arguments.fronts,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=arguments.drain_seconds,
    ).bind(replicas, arguments)

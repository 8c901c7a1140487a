"""The application of Ray Serve as it is built, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="ray[serve] is not installed: pip install 'dqrelo-gguf[serve]'")

LEAST = {"base": "base.gguf", "deltas": "deltas"}


def deployments(**arguments: Any) -> tuple[Any, Any]:
    """The front and the replica of an application."""
    from dqrelo_gguf.integrations.ray_serve import app

    front = app(LEAST | arguments)._bound_deployment
    return front, front.init_args[0]._bound_deployment


def test_a_wrong_argument_is_one_line_of_serve_run() -> None:
    from click.testing import CliRunner
    from ray.serve.scripts import cli

    done = CliRunner().invoke(
        cli, ["run", "dqrelo_gguf.integrations.ray_serve:app", "base=b", "deltas=d", "replicas=0"]
    )
    assert done.exit_code == 1
    assert "Error: replicas=0: expected a whole number from 1 to 10000" in done.output.splitlines()
    assert "Traceback" not in done.output


def test_a_wrong_argument_is_an_error_of_the_package() -> None:
    from dqrelo_gguf.errors import InputError
    from dqrelo_gguf.integrations.ray_serve import app

    with pytest.raises(InputError, match="base is missing"):
        app({})


def test_replicas_are_fixed_or_scaled_by_the_requests_that_run() -> None:
    front, replica = deployments(replicas="3", fronts=2, slots=8, gpus=1, drain_seconds=7)
    assert (front.num_replicas, replica.num_replicas, replica.max_ongoing_requests) == (2, 3, 16)
    assert replica.ray_actor_options["num_gpus"] == 1
    assert replica._deployment_config.graceful_shutdown_timeout_s == 7
    _, scaled = deployments(replicas=2, max_replicas=9, slots=8)
    scaling = scaled._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 9, 8)


def test_the_router_knows_what_a_new_replica_has_room_for() -> None:
    from dqrelo_gguf.integrations.fleet.request_router import DeltaRouter

    _, replica = deployments(slots=8, delta_memory=3)
    config = replica._deployment_config.request_router_config
    assert config.get_request_router_class() is DeltaRouter
    assert config.request_router_kwargs == {"slots": 8, "budget_bytes": 3 << 20}

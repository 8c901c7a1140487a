"""Bodies that a front holds: bounded all together, and forgotten however a request ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import pytest

from tests.support.coroutines import FOREVER, run_apart

pytest.importorskip("ray.serve", reason="ray[serve] is not installed: pip install 'dqrelo-gguf[serve]'")
starlette = pytest.importorskip("starlette.requests", reason="ray[serve] is not installed")

MIB = 1 << 20


def request_of(chunks: Iterable[bytes], *, breaks_off: bool = False) -> Any:
    """A POST whose body comes in chunks."""
    sent = [*chunks]

    async def receive() -> dict[str, Any]:
        if sent or not breaks_off:
            return {"type": "http.request", "body": sent.pop(0), "more_body": breaks_off or bool(sent)}
        return {"type": "http.disconnect"}

    return starlette.Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


def test_the_bodies_of_all_requests_have_a_bound_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from dqrelo_gguf.integrations.fleet import bodies
    from dqrelo_gguf.integrations.fleet.refusal import RefusedError

    monkeypatch.setattr(bodies, "MOST_AT_ONCE", 3)

    async def hold() -> list[int]:
        held = bodies.Bodies(max_body=1)
        n_held = []
        async with held.of(request_of([b"x" * MIB])), held.of(request_of([b"x" * MIB])):
            async with held.of(request_of([b"x" * (MIB // 2)] * 2)) as body:
                assert body == b"x" * MIB
                n_held.append(held.n_held)
                with pytest.raises(RefusedError, match="other requests take all memory") as refused:
                    async with held.of(request_of([b"x"])):
                        pass
                assert refused.value.status is HTTPStatus.SERVICE_UNAVAILABLE
            async with held.of(request_of([b"x"])):  # There is room again.
                n_held.append(held.n_held)
        return [*n_held, held.n_held]

    assert run_apart(asyncio.wait_for(hold(), FOREVER)) == [3 * MIB, 2 * MIB + 1, 0]


@pytest.mark.parametrize("ending", ["too long", "broken off", "an error within the block"])
def test_a_body_is_forgotten_however_its_request_ends(ending: str) -> None:
    from dqrelo_gguf.integrations.fleet.bodies import Bodies
    from dqrelo_gguf.integrations.fleet.refusal import RefusedError

    async def end() -> int:
        held = Bodies(max_body=1)
        chunks = [b"x" * MIB] * (2 if ending == "too long" else 1)
        with pytest.raises(ZeroDivisionError if "error" in ending else RefusedError):
            async with held.of(request_of(chunks, breaks_off=ending == "broken off")):
                raise ZeroDivisionError
        return held.n_held

    assert run_apart(asyncio.wait_for(end(), FOREVER)) == 0

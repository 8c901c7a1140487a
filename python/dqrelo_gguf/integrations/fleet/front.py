"""The endpoint of the fleet: a Ray Serve deployment that passes what may pass on to a replica that has the delta, and its answer back."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.integrations.fleet import passing
from dqrelo_gguf.integrations.fleet.arguments import Arguments
from dqrelo_gguf.integrations.fleet.bodies import Bodies
from dqrelo_gguf.integrations.fleet.messages import Accepted, Call, Head, ServerGoneError, ServerSlowError
from dqrelo_gguf.integrations.fleet.refusal import RefusedError, error_document

# A request whose replica fails before anything of the answer was passed on goes to another one.
MAX_TRIES = 3
HEALTH_SECONDS = 5.0
# Within which a message of some replica shows that all is well. Asking would wait behind the others where all replicas are busy.
HEARD_SECONDS = 15.0
_STREAM = "text/event-stream"
_ANTHROPIC = "/v1/messages"

_logger = logging.getLogger("ray.serve")


class Front:
    """Takes the clients' requests.

    Args:
        replicas: the deployment whose `answer` takes a Call.
    """

    def __init__(self, replicas: DeploymentHandle, arguments: Arguments) -> None:
        self._answers = replicas.options(method_name="answer", stream=True)
        self._arguments = arguments
        self._bodies = Bodies(arguments.max_body)
        self._heard_at = -math.inf

    async def __call__(self, request: Request) -> Response:
        """Answers one HTTP request."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        try:
            if request.method in ("GET", "HEAD") and path in passing.HEALTH:
                return await self._health()
            return await self._pass(request, path)
        except RefusedError as error:
            return error.answer()

    async def _pass(self, request: Request, path: str) -> Response:
        """Has it answered by a replica, if it may pass."""
        server_path = passing.server_path(request.method, path)
        if server_path is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "File Not Found")
        headers = passing.request_headers(request.headers.items())
        if request.method != "POST":
            return await self._answer(Call(request.method, server_path, headers))
        async with self._bodies.of(request) as body:
            return await self._answer(Call("POST", server_path, headers, body, passing.asked_names(body)))

    async def _answer(self, call: Call) -> Response:
        """From the first replica that does not fail before its answer begins."""
        failed: set[str] = set()
        for _ in range(MAX_TRIES):
            tried = Call(call.method, call.path, call.headers, call.body, call.names, frozenset(failed))
            messages = self._answers.remote(tried)
            replica = ""
            try:
                replica = (await self._accepted(messages)).replica
                head: Head = await anext(messages)
                self._heard_at = time.monotonic()
                return _response(call.path, head, messages)
            except ServerSlowError:
                raise RefusedError(HTTPStatus.GATEWAY_TIMEOUT, "the answer took longer than it may") from None
            except (ServerGoneError, RayActorError) as error:
                _logger.warning(f"replica {replica or '?'} failed before it answered: {type(error).__name__}")
                failed.add(replica)
            except asyncio.CancelledError:  # The client has left.
                messages.cancel()
                raise
        raise RefusedError(
            HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_TRIES} replicas ended before they answered. Try again later"
        )

    async def _accepted(self, messages: Any) -> Accepted:
        """Waits for a replica to take the call."""
        seconds = self._arguments.wait_seconds
        try:
            async with asyncio.timeout(seconds):
                accepted: Accepted = await anext(messages)
                return accepted
        except TimeoutError:
            messages.cancel()
            message = f"no replica was free for {seconds:g} s. Try again later"
        except BackPressureError:
            message = f"{self._arguments.max_waiting} requests wait for a replica. Try again later"
        except DeploymentUnavailableError:
            message = "no replica can start. Its log says why"
        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, message)

    async def _health(self) -> Response:
        """Well as long as some replica is."""
        if time.monotonic() - self._heard_at < HEARD_SECONDS:
            return JSONResponse({"status": "ok"})
        messages = self._answers.remote(Call("GET", "/health"))
        with suppress(TimeoutError, RayError, DqreloError, BackPressureError, DeploymentUnavailableError):
            async with asyncio.timeout(HEALTH_SECONDS):
                await anext(messages)
                head: Head = await anext(messages)
                return Response(head.body, head.status, dict(head.headers))
        messages.cancel()
        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "no replica answers")


def _response(path: str, head: Head, messages: Any) -> Response:
    headers = dict(head.headers)
    content_type = {name.lower(): value for name, value in head.headers}.get("content-type", "")
    if not content_type.startswith(_STREAM):
        return Response(head.body, head.status, headers)
    return StreamingResponse(_stream(path, head.body, messages), head.status, headers)


async def _stream(path: str, first: bytes, messages: Any) -> AsyncIterator[bytes]:
    """The events as they come. What breaks off ends with an error event: by then it is too late for another replica."""
    last, is_over = first, False
    try:
        yield first
        async for chunk in messages:
            last = chunk
            yield chunk
        is_over = True
    except (ServerSlowError, ServerGoneError, RayActorError) as error:
        _logger.warning(f"a stream broke off: {type(error).__name__}")
        is_slow = isinstance(error, ServerSlowError)
        message = "the answer took longer than it may" if is_slow else "the replica ended within this answer. Ask again"
        is_over = True
        yield (b"" if last.endswith(b"\n\n") else b"\n\n") + _error_event(path, message)
    finally:
        if not is_over:  # The client has left: the server need not go on.
            messages.cancel()


def _error_event(path: str, message: str) -> bytes:
    event = b"event: error\n" if path == _ANTHROPIC else b""
    return event + b"data: " + json.dumps(error_document(HTTPStatus.SERVICE_UNAVAILABLE, message)).encode() + b"\n\n"

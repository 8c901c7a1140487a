"""A replica of the fleet: a Ray Serve deployment around one server."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import aiohttp
from ray import serve

from dqrelo_gguf.errors import CommandError
from dqrelo_gguf.integrations.fleet.arguments import Arguments
from dqrelo_gguf.integrations.fleet.messages import Accepted, Call, Head, ServerGoneError, ServerSlowError
from dqrelo_gguf.integrations.fleet.passing import answer_headers
from dqrelo_gguf.integrations.fleet.reports import Stats, base_names_of, stats_of
from dqrelo_gguf.integrations.fleet.server_process import ServerProcess

# Answers that are not streamed are kept until they are whole, so that one that breaks off can be asked for again elsewhere. The
# largest ones are log probabilities of prompts, some ten MiB (docs/serving.md).
MAX_ANSWER_BYTES = 256 << 20
CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 10.0
_STREAM = "text/event-stream"
_UNIX = "http://localhost"  # The name does not matter, the connection is the socket's.

_logger = logging.getLogger("ray.serve")


def _log(line: str) -> None:
    """Into the replica's log file of Ray Serve, not to the driver's terminal."""
    _logger.info(line, extra={"log_to_stderr": False})


class Replica:
    """Starts the server, passes calls on to it, and tells what it has in memory.

    Raises:
        CommandError: the server did not start.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._id: str = serve.get_replica_context().replica_id.unique_id
        self._server = ServerProcess(
            arguments.server_command(),
            has_keys=arguments.has_keys,
            start_seconds=arguments.start_seconds,
            log=_log,
        )
        try:
            base_names = base_names_of(self._server.ask("/v1/models"))
            self._stats = stats_of(self._server.ask("/deltas"), arguments.slots, base_names)
        except (OSError, ValueError) as error:
            self._server.stop()
            raise CommandError(f"what a server that just started says of itself: {error}") from error
        self._is_changed = False
        self._session: aiohttp.ClientSession | None = None
        self._server.when_ended(self._end)

    async def answer(self, call: Call) -> AsyncIterator[Accepted | Head | bytes]:
        """Passes a call on.

        Yields:
            Accepted, then Head, then what is left of a stream, as it comes. An answer that is no stream is whole in Head.

        Raises:
            ServerGoneError: the server ended, at once or within the answer.
            ServerSlowError: the answer took longer than it may.
        """
        yield Accepted(self._id)
        timeout = aiohttp.ClientTimeout(total=self._arguments.answer_seconds, sock_connect=CONNECT_SECONDS)
        try:
            async with self._connected().request(
                call.method,
                _UNIX + call.path,
                headers=call.headers,
                data=call.body or None,
                allow_redirects=False,
                timeout=timeout,
            ) as found:
                headers = answer_headers(found.headers.items())
                # An answer that begins shows that its deltas are loaded, and that others may have left for them.
                is_loaded = found.status < HTTPStatus.BAD_REQUEST
                here = {*self._stats["resident"], *self._stats["base"]}
                self._is_changed |= is_loaded and not here.issuperset(call.names)
                if found.content_type != _STREAM:
                    yield Head(found.status, headers, await _whole(found))
                    return
                yield Head(found.status, headers, await found.content.readany())
                async for chunk in found.content.iter_any():
                    yield chunk
        except TimeoutError as error:
            raise ServerSlowError(f"the answer took more than {self._arguments.answer_seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerGoneError(f"the server of replica {self._id} broke off") from error

    async def record_routing_stats(self) -> Stats:
        """Ray Serve asks for it now and then, and hands it to the routers of all fronts."""
        if self._is_changed:
            self._is_changed = False
            self._stats = stats_of(await self._get("/deltas"), self._arguments.slots, self._stats["base"])
        return self._stats

    async def check_health(self) -> None:
        """Raises an exception if the server does not answer; Ray Serve replaces this replica then."""
        await self._get("/health")

    def __del__(self) -> None:
        """Ray Serve calls it when no request is left."""
        if self._server is not None:
            self._server.stop()

    def _end(self, reason: str) -> None:
        """Ends the whole replica at once: Ray's routers take requests away from a dead actor, and Ray Serve replaces it."""
        _logger.error(f"replica {self._id} ends: {reason}")
        logging.shutdown()
        os._exit(1)

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:  # It belongs to the event loop that runs now.
            connector = aiohttp.UnixConnector(path=str(self._server.socket), limit=0)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self._session

    async def _get(self, path: str) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=HEALTH_SECONDS)
        async with self._connected().get(_UNIX + path, headers=self._server.headers, timeout=timeout) as found:
            found.raise_for_status()
            answer: dict[str, Any] = await found.json()
            return answer


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ServerGoneError(f"an answer has more than {MAX_ANSWER_BYTES:,} bytes")
    return bytes(body)

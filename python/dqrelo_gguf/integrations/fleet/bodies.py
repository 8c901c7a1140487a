"""The bodies of requests that a front has not had answered yet: each of them bounded, and all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request

from dqrelo_gguf.integrations.fleet.refusal import RefusedError

BODY_SECONDS = 60.0  # In which a client sends its body.
MOST_AT_ONCE = 64  # Bodies of the greatest length that a front holds. Others are shorter, and so many more of them fit.


class Bodies:
    """Reads bodies, and counts the bytes that are held of them.

    Args:
        max_body: MiB of one.
    """

    def __init__(self, max_body: int) -> None:
        self._max_body = max_body
        self.n_held = 0

    @asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[bytes]:
        """A whole body. It counts as held until the block ends.

        Raises:
            RefusedError: it is too long, too slow or broken off, or too much is held of others.
        """
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and len(length) < 20:
            self._check_length(int(length))
        body = bytearray()
        try:
            await self._read(request, body)
            yield bytes(body)
        finally:
            self.n_held -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    self.n_held += len(chunk)
                    self._check_length(len(body))
                    if self.n_held > MOST_AT_ONCE * self._max_body << 20:
                        message = "the bodies of other requests take all memory that there is for them. Try again later"
                        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, message)
        except TimeoutError:
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {BODY_SECONDS:g} s") from None
        except ClientDisconnect:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the client left within its body") from None

    def _check_length(self, n_bytes: int) -> None:
        if n_bytes > self._max_body << 20:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {self._max_body} MiB")

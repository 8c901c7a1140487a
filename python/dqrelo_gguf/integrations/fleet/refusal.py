"""Errors that the front answers by itself, worded as the servers word theirs."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response

from dqrelo_gguf.errors import DqreloError

RETRY_AFTER_SECONDS = 2

_TYPES = {  # llama-server's words for the status of an error
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "unavailable_error",
}


class RefusedError(DqreloError):
    """The front answers by itself, with an error."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status

    def answer(self) -> Response:
        """The error as a response."""
        is_temporary = self.status is HTTPStatus.SERVICE_UNAVAILABLE
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if is_temporary else {}
        return JSONResponse(error_document(self.status, str(self)), status_code=int(self.status), headers=headers)


def error_document(status: HTTPStatus, message: str) -> dict[str, Any]:
    """What stands in the body of an error, or in the event that ends a stream."""
    return {"error": {"code": int(status), "message": message, "type": _TYPES.get(status, "server_error")}}

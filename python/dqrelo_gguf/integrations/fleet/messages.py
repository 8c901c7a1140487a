"""What goes between the front and the replicas, pickled by Ray, and the errors that tell what became of a request."""

from __future__ import annotations

from dataclasses import dataclass

from dqrelo_gguf.errors import DqreloError


@dataclass(frozen=True)
class Call:
    """A request on its way to a server.

    Args:
        path: one that passing.server_path gave.
        headers: those of passing.request_headers.
        names: of the models that are asked for: deltas, or the base by one of its names.
        failed: ids of replicas that it was sent to in vain.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    names: tuple[str, ...] = ()
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Accepted:
    """The first message of an answer: which replica has the request."""

    replica: str


@dataclass(frozen=True)
class Head:
    """The second message: status, headers, and the first bytes of the body. All further ones are bytes."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class ServerGoneError(DqreloError):
    """The server behind a replica did not answer, or ended within an answer."""


class ServerSlowError(DqreloError):
    """The server took longer than an answer may take."""

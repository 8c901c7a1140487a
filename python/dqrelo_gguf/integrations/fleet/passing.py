"""What passes through the front: which calls, which headers, and which models a request asks for. Everything here is from outside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import msgspec

# Every call that has a body and a model.
POSTS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/rerank",
        "/tokenize",
        "/detokenize",
    }
)
MODELS = "/v1/models"
HEALTH = frozenset({"/health", "/v1/health"})

# A key comes in the first two; the servers decide what it may do, and refuse a request with several.
_REQUEST_HEADERS = frozenset({"authorization", "x-api-key", "content-type", "accept"})
_ANSWER_HEADERS = frozenset({"content-type", "retry-after", "cache-control", "x-accel-buffering"})

MAX_PARTS = 8  # of a blend
_MAX_NAME_BYTES = 200
_MAX_VALUE_BYTES = 1 << 16  # of `model` or `deltas`
_FORBIDDEN = frozenset("/\\\"'")


def is_name(text: str) -> bool:
    """Whether a delta may have this name, by the rules of --deltas-dir (docs/serving.md)."""
    try:
        n_bytes = len(text.encode())
    except UnicodeEncodeError:  # Half of a surrogate pair, which JSON can hold.
        return False
    return 0 < n_bytes <= _MAX_NAME_BYTES and text[0] != "." and text.isprintable() and _FORBIDDEN.isdisjoint(text)


def server_path(method: str, path: str) -> str | None:
    """The path to ask a server for, or None where the call does not pass.

    Args:
        method: as it came.
        path: as it came, decoded.
    """
    if method == "POST" and path in POSTS:
        return path
    if method == "GET" and path == MODELS:
        return path
    name = path.removeprefix(MODELS + "/")
    if method == "GET" and name != path and is_name(name):
        return f"{MODELS}/{quote(name, safe='')}"
    return None


def request_headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Those that go on to the server; a header that came twice goes on twice."""
    return tuple((name, value) for name, value in headers if name.lower() in _REQUEST_HEADERS)


def answer_headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Those that go back to the client."""
    return tuple((name, value) for name, value in headers if name.lower() in _ANSWER_HEADERS)


class _Asked(msgspec.Struct):
    """What is looked at of a request; all else is passed over without making objects of it."""

    model: msgspec.Raw = msgspec.Raw(b"null")
    deltas: msgspec.Raw = msgspec.Raw(b"null")


_REQUESTS = msgspec.json.Decoder(_Asked)


def asked_names(body: bytes) -> tuple[str, ...]:
    """The names of the models that a request asks for, as far as they could be names; none where it cannot be read.

    It only decides which server is asked: what the request means, and what is wrong with it, that server says. A body of 16 MiB takes some 30 ms.
    """
    try:
        asked = _REQUESTS.decode(body)
        model, parts = (_value(raw) for raw in (asked.model, asked.deltas))
    except (ValueError, RecursionError):
        return ()
    found = _listed(parts) if isinstance(parts, list) else _parts(_text(model))
    names = dict.fromkeys(name for name in found if is_name(name))
    return tuple(names) if len(names) <= MAX_PARTS else ()


def _value(raw: msgspec.Raw) -> Any:
    """A value of a request, unless it is longer than what names a few deltas."""
    if memoryview(raw).nbytes > _MAX_VALUE_BYTES:
        raise ValueError("too long")
    return msgspec.json.decode(raw)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _listed(deltas: list[Any]) -> list[str]:
    """The deltas of [{"name": "math", "scale": 0.6}, ...]."""
    return [_text(part.get("name")) for part in deltas[: MAX_PARTS + 1] if isinstance(part, dict)]


def _parts(model: str) -> list[str]:
    """The deltas of `math*0.6+words*0.4`; a text without a scale is one name, whatever is in it."""
    if len(model) > MAX_PARTS * (_MAX_NAME_BYTES + 32):
        return []
    if "*" not in model:
        return [model]
    return [piece.rpartition("*")[0] or piece for piece in model.split("+")]

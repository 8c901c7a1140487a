"""A web server on this machine that serves bytes, with ranges and ETags, and misbehaves as it is told to."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Served:
    """A file of the server.

    Args:
        data: its bytes.
        etag: None for a server that has none.
        has_ranges: parts are given.
        headers: further ones.
    """

    data: bytes
    etag: str | None = None
    has_ranges: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes, **other: Any) -> Served:
        """With an ETag of its bytes."""
        return cls(data, f'"{hashlib.sha256(data).hexdigest()[:16]}"', **other)


@dataclass
class Request:
    """What a client asked for."""

    path: str  # with the query
    headers: dict[str, str]


Action = Callable[["Handler"], None]


@dataclass
class Rule:
    """What happens in place of the usual answer.

    Args:
        path: part of the path that it is for.
        action: what happens.
        times: how often; -1 for always.
        skip: requests that are answered as ever before it begins.
    """

    path: str
    action: Action
    times: int = -1
    skip: int = 0


class WebServer:
    """Files by path, rules, and a list of the requests."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.rules: list[Rule] = []
        self.requests: list[Request] = []
        self.url = ""
        self.lock = threading.Lock()

    def action_for(self, path: str) -> Action | None:
        """The action of the first rule that is due."""
        with self.lock:
            for rule in self.rules:
                if rule.path not in path or rule.times == 0:
                    continue
                if rule.skip > 0:
                    rule.skip -= 1
                    continue
                rule.times -= 1
                return rule.action
        return None

    def count(self, part: str) -> int:
        """Requests whose path has this part."""
        return sum(part in request.path for request in self.requests)

    def answer(self, handler: Handler) -> None:
        """The usual answer: the file of this path."""
        served = self.files.get(urlsplit(handler.path).path)
        if served is None:
            handler.plain(404, b"not here")
        else:
            handler.send_file(served)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    web: WebServer

    def log_message(self, *_args: object) -> None:
        """Nothing."""

    def handle(self) -> None:
        """Clients may go when they like."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        self.web.requests.append(Request(self.path, {k.lower(): v for k, v in self.headers.items()}))
        action = self.web.action_for(self.path)
        if action is None:
            self.web.answer(self)
        else:
            action(self)

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815 - names of the standard library

    def plain(self, status: int, body: bytes, **headers: str) -> None:
        """An answer of these bytes; `_` in a header's name stands for `-`."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.write_body(body)

    def write_body(self, body: bytes) -> None:
        """What follows the headers; nothing does where they alone are asked for."""
        if self.command != "HEAD":
            self.wfile.write(body)

    def span(self, n_bytes: int) -> tuple[int, int] | None:
        """The range that is asked for."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return None if found is None else (int(found[1]), min(int(found[2]) + 1, n_bytes))

    def send_file(self, served: Served, *, declared: int | None = None, sent: int | None = None) -> None:
        """The file or the range of it.

        Args:
            served: the file.
            declared: what Content-Length says; what is sent, where None.
            sent: bytes that are sent before the connection ends; all where None.
        """
        span = self.span(len(served.data)) if served.has_ranges else None
        if span is not None and span[0] >= len(served.data):
            self.plain(416, b"", Content_Range=f"bytes */{len(served.data)}")
            return
        data = served.data if span is None else served.data[slice(*span)]
        self.send_response(200 if span is None else 206)
        if served.etag is not None:
            self.send_header("ETag", served.etag)
        if span is not None:
            self.send_header("Content-Range", f"bytes {span[0]}-{span[1] - 1}/{len(served.data)}")
        for name, value in served.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if declared is None else declared))
        self.end_headers()
        self.write_body(data[:sent])
        if sent is not None or declared is not None:
            self.close_connection = True


def status(code: int, **headers: str) -> Action:
    """Answers with this status."""
    return lambda handler: handler.plain(code, b"no", **headers)


def redirect(target: str) -> Action:
    """Sends elsewhere."""
    return lambda handler: handler.plain(302, b"", Location=target)


def cut(served: Served, n_bytes: int) -> Action:
    """Ends the connection after some bytes of what was asked for."""
    return lambda handler: handler.send_file(served, sent=n_bytes)


@contextmanager
def serving(web: WebServer) -> Iterator[WebServer]:
    """Serves on a free port of this machine."""
    handler = type("OwnHandler", (Handler,), {"web": web})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

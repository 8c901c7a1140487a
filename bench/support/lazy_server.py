"""Checkpoints that are made as they are asked for, over HTTP on loopback: folders and their files, by ranges with an ETag, as a web server has them."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support.lazy_model import Checkpoint

_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})")
LOOPBACK = "127.0.0.1"


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    folders: Mapping[str, Checkpoint]

    def log_message(self, *_args: object) -> None:
        """Nothing."""

    def handle(self) -> None:
        """Clients may go when they like."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        _, folder, *rest = self.path.split("/")
        checkpoint, name = self.folders.get(folder), "/".join(rest)
        n_bytes = None if checkpoint is None else checkpoint.size(name)
        if checkpoint is None or n_bytes is None:
            self._head(404, 0)
            return
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        start, end = (0, n_bytes) if found is None else (int(found[1]), min(int(found[2]) + 1, n_bytes))
        if start >= end:
            self._head(416, 0)
            return
        extra = {} if found is None else {"Content-Range": f"bytes {start}-{end - 1}/{n_bytes}"}
        self._head(200 if found is None else 206, end - start, {"ETag": f'"{checkpoint.version}"', **extra})
        for piece in checkpoint.read(name, start, end):
            self.wfile.write(piece)

    def _head(self, status: int, n_bytes: int, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(n_bytes)}.items():
            self.send_header(name, value)
        self.end_headers()


def server_of(folders: Mapping[str, Checkpoint], port: int = 0) -> ThreadingHTTPServer:
    """A server of checkpoints by folder, on loopback; 0 is a free port."""
    server = ThreadingHTTPServer((LOOPBACK, port), type("Handler", (_Handler,), {"folders": folders}))
    server.daemon_threads = True
    return server


@contextmanager
def serving(folders: Mapping[str, Checkpoint]) -> Iterator[str]:
    """Serves them for a while; gives the address in front of the folders."""
    server = server_of(folders)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

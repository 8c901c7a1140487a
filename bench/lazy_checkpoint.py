"""Serves checkpoints of any size over HTTP, on this machine, without a disk: what is asked for of them is made.

  lazy_checkpoint.py --shape llama-70b --port 8900
  dqrelo-convert base.gguf http://127.0.0.1:8900/tuned -o tuned.dq.gguf --stream

/base is the model that was tuned, /tuned its fine-tune: folders with config.json, a vocabulary of made-up pieces, an index and shards. Ranges are served as
a web server does, with an ETag.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support.large_shapes import SHAPES
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


def main() -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True, help="of the model")
    parser.add_argument("--layers", type=int, help="(default: the shape's)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="(default: a free one)")
    args = parser.parse_args()
    shape = SHAPES[args.shape] if args.layers is None else SHAPES[args.shape].with_layers(args.layers)
    folders = {name: Checkpoint(shape, args.seed, is_tuned=name == "tuned") for name in ("base", "tuned")}
    server = server_of(folders, args.port)
    for name, checkpoint in folders.items():
        print(f"http://{LOOPBACK}:{server.server_port}/{name}: {checkpoint.n_bytes:,} bytes", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())

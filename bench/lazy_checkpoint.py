"""Serves checkpoints of any size over HTTP, on this machine, without a disk: what is asked for of them is made.

  lazy_checkpoint.py --shape llama-70b --port 8900
  dqrelo-convert base.gguf http://127.0.0.1:8900/tuned -o tuned.dq.gguf --stream

/base is the model that was tuned, /tuned its fine-tune: folders with config.json, a vocabulary of made-up pieces, an index and shards. Ranges are served as
a web server does, with an ETag.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from support.large_shapes import SHAPES
from support.lazy_model import Checkpoint
from support.lazy_server import LOOPBACK, server_of


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

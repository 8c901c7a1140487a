"""dqrelo-demo: converts an example, serves it, asks every model the same questions."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dqrelo_gguf.cli import run

PROG = "dqrelo-demo"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _parser().parse_args(argv)
    return run(lambda: _demo(args), PROG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="One base and its fine-tunes as deltas in one server: convert an example that comes with the package, serve "
        "it, and ask every model the same questions.",
        epilog=f"example: {PROG} --ratio 1/16",
    )
    parser.add_argument(
        "--pair",
        metavar="DIR",
        type=Path,
        help="a folder with base/ and ft-*/, Hugging Face directories (default: the package's)",
    )
    parser.add_argument(
        "--ratio",
        metavar="R",
        default="1/8",
        help="size of a delta's tensors (default: %(default)s of 16 bits a weight)",
    )
    parser.add_argument(
        "--work", metavar="DIR", type=Path, help="keep the files in this folder (default: a temporary one, removed)"
    )
    return parser


def _demo(args: argparse.Namespace) -> None:
    from rich.console import Console

    from dqrelo_gguf.demo.pair import convert, example
    from dqrelo_gguf.demo.server import serve
    from dqrelo_gguf.demo.tables import show_answers, show_sizes

    console = Console(highlight=False)
    with contextlib.ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dqrelo-demo-")))
        work.mkdir(parents=True, exist_ok=True)
        models = convert(args.pair or example(), args.ratio, work, console)
        show_sizes(models, console)
        url = stack.enter_context(serve(models, work / "server.log"))
        show_answers(models, url, console)


if __name__ == "__main__":
    sys.exit(main())

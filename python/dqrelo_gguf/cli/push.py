"""dqrelo-push: a delta goes to the Hugging Face Hub, with a model card made of the file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dqrelo_gguf.cli import run

PROG = "dqrelo-push"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _parser().parse_args(argv)
    return run(lambda: _push(args), PROG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Upload a delta to a model repository of the Hugging Face Hub. A repository without a README.md gets a model "
        "card made of the file: base, licence, how to run it, and what dqrelo-eval --stamp measured.",
        epilog=f"example: {PROG} math.dq.gguf owner/math-delta. It needs `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("delta", metavar="DELTA", help="the delta file, *.dq.gguf")
    parser.add_argument("repo", metavar="OWNER/REPO", help="the repository; it is made if it is not there")
    parser.add_argument("--private", action="store_true", help="make it a private one (default: public)")
    parser.add_argument(
        "--base-model", metavar="OWNER/REPO", help="the base's repository, for the card (default: as the delta says)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the card, upload nothing")
    return parser


def _push(args: argparse.Namespace) -> None:
    from pathlib import Path

    from dqrelo_gguf.file.reader import DeltaReader
    from dqrelo_gguf.publish.card import model_card
    from dqrelo_gguf.publish.push import Target, push

    target = Target(args.repo, args.private, args.base_model)
    if args.dry_run:
        print(model_card(DeltaReader(Path(args.delta)), target.repo, target.base_model), end="")
        return
    print(push(Path(args.delta), target))


if __name__ == "__main__":
    sys.exit(main())

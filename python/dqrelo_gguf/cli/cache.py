"""dqrelo-cache: what was fetched from buckets and web servers, and removing what is not used any more."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dqrelo_gguf.cli import run

if TYPE_CHECKING:
    from dqrelo_gguf.address.kept import Contents, Kept

PROG = "dqrelo-cache"
HUB = "Files of hf:// addresses are in huggingface_hub's cache, whose command is `hf cache`."
_MOST_GIB = 1 << 20
_MOST_DAYS = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.action == "list":
        return run(lambda: _list(args), PROG)
    if args.max_size is None and args.older_than is None and not args.unfinished:
        parser.error("prune: give what may go: --max-size GiB, --older-than DAYS or --unfinished")
    return run(lambda: _prune(args), PROG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Show and bound what was fetched from s3://, gs:// and https:// addresses (the folder DQRELO_CACHE, default: "
        f"~/.cache/dqrelo). {HUB}",
        epilog=f"example: {PROG} prune --max-size 50. DQRELO_CACHE_MAX=50 in the environment does so after each download.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    listing = actions.add_parser(
        "list",
        help="show what is there",
        description="Show what is in the cache: size, when its address was last resolved, address; the least recently used first.",
    )
    listing.add_argument("--json", action="store_true", help="print one JSON object (default: a table)")
    pruning = actions.add_parser(
        "prune",
        help="remove what was not used for long",
        description="Remove files from the cache, the least recently used first, without asking. What a process fetches, or has resolved and "
        "still runs, stays. A process that has a file open without that keeps reading it.",
        epilog=f"example: {PROG} prune --unfinished --older-than 30 --dry-run",
    )
    pruning.add_argument(
        "--max-size", metavar="GiB", type=_gib, help="remove until so much is left (0: all that nobody uses)"
    )
    pruning.add_argument(
        "--older-than", metavar="DAYS", type=_days, help="remove what was last used before so many days"
    )
    pruning.add_argument("--unfinished", action="store_true", help="remove downloads that were not finished")
    pruning.add_argument("--dry-run", action="store_true", help="remove nothing, print what would go")
    return parser


def _gib(text: str) -> int:
    """In bytes."""
    return int(_number(text, _MOST_GIB) * 2**30)


def _days(text: str) -> float:
    """In seconds."""
    return _number(text, _MOST_DAYS) * 86400


def _number(text: str, most: int) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number from 0 to {most}")
    return number


def _list(args: argparse.Namespace) -> None:
    from dqrelo_gguf.address.kept import contents, opened_cache
    from dqrelo_gguf.cli import json_text
    from dqrelo_gguf.errors import InputError, printable
    from dqrelo_gguf.sizes import bytes_text

    with opened_cache() as root:
        found = contents(root)
    if args.json:
        sys.stdout.write(json_text(_as_json(found)))
    else:
        for kept in found.kept:
            print(f"{bytes_text(kept.n_bytes):>10}  {_time(kept)}  {printable(kept.label)}{_state(kept)}")
        print(f"{bytes_text(found.n_bytes):>10}  in all, {len(found.kept)} in {printable(str(found.folder))}")
        if found.n_others:
            print(f"{found.n_others} other files or folders lie there, and are none of the cache's")
        print(HUB)
    if found.problems:
        raise InputError(f"{len(found.problems)} could not be looked at, first {found.problems[0]}")


def _as_json(found: Contents) -> dict[str, Any]:
    from datetime import UTC, datetime

    def entry(kept: Kept) -> dict[str, Any]:
        used = datetime.fromtimestamp(kept.used_ns // 10**9, UTC)
        return {
            "address": kept.address,
            "folder": kept.place,
            "files": list(kept.names),
            "n_bytes": kept.n_bytes,
            "last_used": used.isoformat().replace("+00:00", "Z"),
            "unfinished": kept.is_unfinished,
            "older_version": kept.is_older,
        }

    return {
        "folder": str(found.folder),
        "n_bytes": found.n_bytes,
        "kept": [entry(kept) for kept in found.kept],
        "n_others": found.n_others,
        "problems": list(found.problems),
    }


def _time(kept: Kept) -> str:
    """When it was last used, in local time."""
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.localtime(kept.used_ns // 10**9))


def _state(kept: Kept) -> str:
    """What is special about it, behind its address."""
    known = [
        (len(kept.names) > 1, f"{len(kept.names)} parts"),
        (kept.is_unfinished, "unfinished"),
        (kept.is_older, "older version"),
    ]
    said = [text for holds, text in known if holds]
    return f" ({', '.join(said)})" if said else ""


def _prune(args: argparse.Namespace) -> None:
    from dqrelo_gguf.address.prune import Bounds, prune
    from dqrelo_gguf.errors import InputError, printable
    from dqrelo_gguf.sizes import bytes_text

    def say(kept: Kept) -> None:
        verb = "would remove" if args.dry_run else "removed"
        print(f"{verb}  {bytes_text(kept.n_bytes):>10}  {_time(kept)}  {printable(kept.label)}{_state(kept)}")

    done = prune(Bounds(args.max_size, args.older_than, args.unfinished), args.dry_run, say)
    for kept in done.in_use:
        print(f"in use, stays: {printable(kept.label)} ({bytes_text(kept.n_bytes)})")
    n_bytes = sum(kept.n_bytes for kept in done.removed)
    verb = "would be removed" if args.dry_run else "removed"
    print(f"{bytes_text(n_bytes)} {verb}, {bytes_text(done.n_left)} left")
    if done.problems:
        raise InputError(f"{len(done.problems)} could not be removed or looked at, first {done.problems[0]}")


if __name__ == "__main__":
    sys.exit(main())

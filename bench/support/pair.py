"""What the programs have in common that measure fine-tunes of one base on problems of their tasks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dqrelo_gguf.errors import InputError
from support.machine import commit, cpu
from support.problems import MAKERS, Problem, make_problems, read_problems


def add_models(parser: argparse.ArgumentParser) -> None:
    """The base and its fine-tunes."""
    parser.add_argument("--base", type=Path, required=True, help="the base, a checkpoint or an F16 GGUF")
    parser.add_argument(
        "--tuned", action="append", required=True, metavar="TASK=PATH", help="a fine-tune, as --base; repeatable"
    )


def add_problems(parser: argparse.ArgumentParser) -> None:
    """What they are measured on, and with."""
    parser.add_argument("--problems", type=int, default=200, metavar="N", help="a task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the problems (default: %(default)s)")
    parser.add_argument("--given", type=Path, metavar="DIR", help="leave out the problems of DIR/TASK.jsonl")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")


def fine_tunes(arguments: argparse.Namespace) -> dict[str, str]:
    """The paths of --tuned by their tasks.

    Raises:
        InputError: there is no such task.
    """
    tuned = dict(t.split("=", 1) for t in arguments.tuned)
    for task in tuned:
        if task not in MAKERS:
            raise InputError(f"--tuned {task}=: expected one of {', '.join(MAKERS)}")
    return tuned


def new_problems(arguments: argparse.Namespace, task: str, n: int, seed: int) -> list[Problem]:
    """Problems that are in none of the given files."""
    folder = arguments.given
    return make_problems(task, n, seed, read_problems(folder / f"{task}.jsonl") if folder else ())


def facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a report begins with."""
    return {"command": " ".join(sys.argv), "commit": commit(), "cpu": cpu(), "threads": arguments.threads}


def note(text: str) -> None:
    """Says something beside the tables."""
    print(f"# {text}", file=sys.stderr, flush=True)

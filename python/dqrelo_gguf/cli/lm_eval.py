"""dqrelo-lm-eval: lm-evaluation-harness with the model `dqrelo`, and `sweep`, which runs a base and several deltas."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqrelo_gguf.cli import ADDRESSES, run, write_json

PROG = "dqrelo-lm-eval"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["sweep"]:
        options = _parser().parse_args(args[1:])
        return run(lambda: _sweep(options), PROG)
    return run(lambda: _hand_over(args), PROG)


def _hand_over(args: list[str]) -> None:
    """Everything but `sweep` is lm-evaluation-harness's own command, which takes its arguments from sys.argv."""
    from dqrelo_gguf.harness.package import register

    register()
    from lm_eval.__main__ import cli_evaluate

    sys.argv[:] = [PROG, *args]
    cli_evaluate()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROG} sweep",
        description="Run tasks of lm-evaluation-harness for a base and several of its deltas, with the base in memory once, and "
        "print one table." + ADDRESSES,
        epilog=f"example: {PROG} sweep base.gguf --delta math.dq.gguf --delta words.dq.gguf --tasks gsm8k,arc_easy --limit 100",
    )
    parser.add_argument("base", metavar="BASE", help="the base GGUF")
    parser.add_argument(
        "--delta", metavar="FILE", action="append", default=[], help="a delta of the base; give one for each"
    )
    parser.add_argument(
        "--tasks", metavar="NAMES", required=True, help="names of tasks, or files of them, with commas between"
    )
    parser.add_argument("--include_path", metavar="DIR", help="a folder with further tasks")
    parser.add_argument("--num_fewshot", metavar="N", type=int, help="examples in a prompt (default: the task's)")
    parser.add_argument(
        "--limit", metavar="N", type=float, help="problems of each task, or a share below 1 (default: all)"
    )
    parser.add_argument(
        "--batch_size", metavar="N", default="auto", help="sequences read together (default: %(default)s)"
    )
    parser.add_argument("--apply_chat_template", action="store_true", help="through each model's own chat template")
    parser.add_argument("--fewshot_as_multiturn", action="store_true", help="each example as a turn of its own")
    parser.add_argument("--system_instruction", metavar="TEXT", help="the system message")
    parser.add_argument("--gen_kwargs", metavar="NAME=VALUE,...", help="settings of generation, over the task's")
    parser.add_argument(
        "--model_args",
        metavar="NAME=VALUE,...",
        default="",
        help="what --model_args of the model dqrelo takes, but base and delta",
    )
    parser.add_argument("--log_samples", action="store_true", help="write every request and answer into --json too")
    parser.add_argument(
        "--json", metavar="FILE", help="also write everything to FILE, - for stdout instead of the table"
    )
    return parser


def _sweep(args: argparse.Namespace) -> None:
    from dqrelo_gguf.address.choose import Kind
    from dqrelo_gguf.address.resolve import all_local, local
    from dqrelo_gguf.harness.package import require
    from dqrelo_gguf.output import check_outputs

    require()
    base, deltas = local(args.base, Kind.MODEL), all_local(args.delta, Kind.DELTA)
    if args.json not in (None, "-"):
        check_outputs([Path(args.json)], [base, *deltas], force=True)
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable, setup_logging, simple_parse_args_string

    from dqrelo_gguf.harness.sweep import sweep

    setup_logging()
    results = sweep(
        base,
        deltas,
        args.tasks.split(","),
        model_args={**simple_parse_args_string(args.model_args), "batch_size": args.batch_size},
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        apply_chat_template=args.apply_chat_template,
        fewshot_as_multiturn=args.fewshot_as_multiturn,
        system_instruction=args.system_instruction,
        gen_kwargs=args.gen_kwargs,
        log_samples=args.log_samples,
        task_manager=TaskManager(include_path=args.include_path),
    )
    if args.json is not None:
        write_json(_plain(results, handle_non_serializable), args.json, force=True)
    if args.json != "-":
        _print(results)


def _plain(results: dict[str, Any], other: Any) -> dict[str, Any]:
    import json

    plain: dict[str, Any] = json.loads(json.dumps(results, default=other), parse_constant=lambda _: None)
    return plain


def _print(results: dict[str, Any]) -> None:
    from rich.console import Console

    from dqrelo_gguf.harness.sweep import table

    console = Console(highlight=False)
    console.width = max(console.width, 64 + 24 * len(results))  # No figure is cut short.
    console.print(table(results))


if __name__ == "__main__":
    sys.exit(main())

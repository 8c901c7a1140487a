"""dqrelo-bench: tokens a second of a base alone and with its deltas, side by side."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dqrelo_gguf.cli import ADDRESSES, run

if TYPE_CHECKING:
    from dqrelo_gguf.bench.plan import Plan, Settings

PROG = "dqrelo-bench"
# The defaults are llama-bench's.
_DEFAULTS = {
    "n_prompt": "512",
    "n_gen": "128",
    "batch_size": "2048",
    "ubatch_size": "512",
    "cache_type_k": "f16",
    "cache_type_v": "f16",
    "n_gpu_layers": "-1",
    "flash_attn": "auto",
    "mmap": "1",
    "repack": "1",
}
_FLASH_ATTN = {"-1": "auto", "0": "off", "1": "on"}  # llama-bench takes these, too.


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.model is None and not args.gpu_check:
        parser.error("the following arguments are required: -m/--model")
    return run(lambda: _check_gpu(args) if args.gpu_check else _bench(args), PROG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Measure prompts (pp) and generation (tg) as llama-bench does: the base alone, each delta and blend on it "
        "in turns, and all deltas together in one batch." + ADDRESSES,
        epilog=f"example: {PROG} -m base.gguf --delta math.dq.gguf --delta words.dq.gguf -p 512 -n 128. "
        "Numbers may be lists (-t 1,2), and options given more than once.",
    )
    parser.add_argument("-m", "--model", metavar="FILE", help="the base GGUF")
    parser.add_argument(
        "--delta",
        metavar="[NAME=]FILE",
        action="append",
        default=[],
        help="a delta of it; give one for each (default: none)",
    )
    parser.add_argument(
        "--blend",
        metavar="NAME=SPEC",
        action="append",
        default=[],
        help="deltas that are added up in one stream: DELTA*SCALE+DELTA*SCALE (default: none)",
    )
    tests = parser.add_argument_group("tests")
    _add_list(tests, "-p", "--n-prompt", "N", "tokens of a prompt; 0: no such test")
    _add_list(tests, "-n", "--n-gen", "N", "tokens generated; 0: no such test")
    tests.add_argument(
        "-pg", metavar="PP,TG", action="append", default=[], help="a prompt and then generation (default: none)"
    )
    tests.add_argument(
        "-npl",
        "--parallel",
        metavar="N",
        action="append",
        help="streams that generate together, a delta each in turn; 1: no such test (default: as many as deltas)",
    )
    tests.add_argument(
        "-r", "--repetitions", metavar="N", default="5", help="how often each is measured (default: %(default)s)"
    )
    tests.add_argument("--no-warmup", action="store_true", help="measure at once (default: run each first)")
    _add_settings(parser.add_argument_group("llama.cpp"))
    parser.add_argument(
        "--gpu-check",
        action="store_true",
        help="compare the operator of every GPU with what is expected; with -m, also the logits with the CPU's; with "
        "-m and --delta, then time steps of 1, 2, 4, 8 and 16 deltas (-npl for others), a token of each (default: off)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o", "--output", choices=("md", "json", "jsonl", "csv"), default="md", help="format (default: %(default)s)"
    )
    output.add_argument("--progress", action="store_true", help="say on stderr what is measured (default: off)")
    dangerous = parser.add_argument_group("dangerous")
    dangerous.add_argument(
        "--allow-other-base",
        "--delta-allow-other-base",
        action="store_true",
        help="accept another quantisation of a delta's base (default: refuse)",
    )
    return parser


def _add_settings(group: argparse._ArgumentGroup) -> None:
    _add_list(group, "-t", "--threads", "N", "CPU threads")
    _add_list(group, "-b", "--batch-size", "N", "tokens submitted at once")
    _add_list(group, "-ub", "--ubatch-size", "N", "tokens a graph")
    _add_list(group, "-ctk", "--cache-type-k", "TYPE", "type of the cached keys")
    _add_list(group, "-ctv", "--cache-type-v", "TYPE", "type of the cached values")
    _add_list(group, "-ngl", "--n-gpu-layers", "N", "layers on a GPU; -1: all")
    _add_list(group, "-fa", "--flash-attn", "WHEN", "flash attention: on, off or auto")
    _add_list(group, "-mmp", "--mmap", "0|1", "map the base file, or read it into memory")
    _add_list(group, "-rpk", "--repack", "0|1", "let the CPU backend keep weights of some types in a layout of its own")


def _add_list(group: argparse._ArgumentGroup, short: str, long: str, metavar: str, text: str) -> None:
    """An option that takes comma lists and may be repeated."""
    default = _DEFAULTS.get(long.strip("-").replace("-", "_"), "all")
    group.add_argument(short, long, metavar=metavar, action="append", help=f"{text} (default: {default})")


def _bench(args: argparse.Namespace) -> None:
    from dqrelo_gguf.bench.output import print_rows
    from dqrelo_gguf.bench.run import machine, note_to_stderr, run_plan

    plan = _plan(args)
    rows = run_plan(plan, note_to_stderr) if args.progress else run_plan(plan)
    print_rows(args.output, rows, machine(), plan, sys.stdout)


def _check_gpu(args: argparse.Namespace) -> None:
    from dqrelo_gguf.bench.gpu import check_logits, check_operator, print_steps, time_steps
    from dqrelo_gguf.bench.plan import numbers

    n_streams = numbers("-npl/--parallel", args.parallel or ["1,2,4,8,16"], 1)
    plan = _plan(args) if args.model is not None else None
    check_operator()
    if plan is not None:
        check_logits(plan, sys.stdout)
    if plan is not None and plan.deltas:
        print_steps(time_steps(plan, n_streams), sys.stdout)


def _plan(args: argparse.Namespace) -> Plan:
    from dqrelo_gguf.address.choose import Kind
    from dqrelo_gguf.address.resolve import local
    from dqrelo_gguf.bench.plan import Plan, blends, delta_files, make_tests, numbers, pairs

    deltas = delta_files(args.delta)
    model = str(local(args.model, Kind.MODEL))
    n_streams = numbers("-npl/--parallel", args.parallel or [str(max(len(deltas), 1))], 1)
    tests = make_tests(
        numbers("-p/--n-prompt", _given(args, "n_prompt"), 0),
        numbers("-n/--n-gen", _given(args, "n_gen"), 0),
        pairs("-pg", args.pg),
        n_streams,
    )
    return Plan(
        model,
        deltas,
        tests,
        _settings(args),
        n_repetitions=_one("-r/--repetitions", args.repetitions),
        warm_up=not args.no_warmup,
        allow_other_base=args.allow_other_base,
        blends=blends(args.blend, deltas),
    )


def _settings(args: argparse.Namespace) -> tuple[Settings, ...]:
    """Every combination of the lists."""
    from dqrelo_gguf.bench.plan import Settings, names, numbers

    values = itertools.product(
        numbers("-b/--batch-size", _given(args, "batch_size"), 1),
        numbers("-ub/--ubatch-size", _given(args, "ubatch_size"), 1),
        names(_given(args, "cache_type_k")),
        names(_given(args, "cache_type_v")),
        numbers("-ngl/--n-gpu-layers", _given(args, "n_gpu_layers"), -1),
        [_FLASH_ATTN.get(name, name) for name in names(_given(args, "flash_attn"))],
        _switches("-mmp/--mmap", _given(args, "mmap")),
        _switches("-rpk/--repack", _given(args, "repack")),
        numbers("-t/--threads", args.threads, 1) if args.threads else [None],
    )
    return tuple(dict.fromkeys(Settings(*one) for one in values))


def _switches(option: str, texts: Sequence[str]) -> list[int]:
    """Comma lists of 0 and 1."""
    from dqrelo_gguf.bench.plan import numbers
    from dqrelo_gguf.errors import InputError

    found = numbers(option, texts, 0)
    if max(found) > 1:
        raise InputError(f"{option} '{max(found)}': expected 0 or 1")
    return found


def _given(args: argparse.Namespace, name: str) -> list[str]:
    """What was given for a list option, or its default."""
    return getattr(args, name) or [_DEFAULTS[name]]


def _one(option: str, text: str) -> int:
    from dqrelo_gguf.bench.plan import number

    return number(option, text, 1)


if __name__ == "__main__":
    sys.exit(main())

"""dqrelo-merge: a base and deltas in, a plain GGUF or one delta out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dqrelo_gguf.cli import ADDRESSES, run

PROG = "dqrelo-merge"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _parser().parse_args(argv)
    return run(lambda: _merge(args), PROG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Add a delta, or several, to the base: a plain GGUF that any llama.cpp runs, or one delta."
        + ADDRESSES,
        epilog=f"example: {PROG} base-f16.gguf math.dq.gguf -o math.gguf --outtype f16",
    )
    source = parser.add_argument_group("input")
    source.add_argument("base", metavar="BASE", help="the base GGUF, whole or a shard of a split one")
    source.add_argument("delta", metavar="DELTA", nargs="+", help="the delta file, *.dq.gguf, or several")
    source.add_argument(
        "--scales",
        metavar="SCALE",
        type=float,
        nargs="+",
        default=[],
        help="what each delta is multiplied by, in their order (default: 1 for each)",
    )
    source.add_argument(
        "--no-verify", action="store_true", help="do not check the deltas' SHA-256 digests (default: check)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--outfile", metavar="FILE", required=True, help="the merged model, or delta")
    output.add_argument(
        "--outtype",
        choices=("f16", "bf16", "f32", "q8_0"),
        help="type of the matrices; vectors stay F32 (default: f16)",
    )
    output.add_argument(
        "--as-delta",
        action="store_true",
        help="write the sum as one delta, *.dq.gguf, compressed anew by the method best: its report says what that loses",
    )
    output.add_argument(
        "--ratio",
        metavar="R",
        help="of the delta to the 16-bit size of what it changes, such as 1/8 (default: as many bytes as the deltas have together)",
    )
    output.add_argument("--force", action="store_true", help="replace an existing file (default: refuse)")
    performance = parser.add_argument_group("performance")
    performance.add_argument("-t", "--threads", metavar="N", type=int, help="threads (default: all cores)")
    dangerous = parser.add_argument_group("dangerous")
    dangerous.add_argument(
        "--allow-other-base",
        action="store_true",
        help="accept another quantisation of the delta's base (default: refuse)",
    )
    return parser


def _merge(args: argparse.Namespace) -> None:
    from dqrelo_gguf.errors import InputError

    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads {args.threads}: must be at least 1")
    if args.as_delta and args.outtype is not None:
        raise InputError("--outtype: is for a merged model, and --as-delta writes a delta")
    if not args.as_delta and args.ratio is not None:
        raise InputError("--ratio: is for --as-delta, and a merged model has no ratio")
    if args.as_delta:
        _write_delta(args)
    else:
        _write_model(args)


def _write_model(args: argparse.Namespace) -> None:
    from dqrelo_gguf.convert.merge import MergeOptions, merge
    from dqrelo_gguf.progress import phases_for_stderr
    from dqrelo_gguf.sizes import bytes_text

    options = MergeOptions(
        args.outtype or "f16",
        allow_other_base=args.allow_other_base,
        verify=not args.no_verify,
        force=args.force,
        n_threads=args.threads,
        scales=tuple(args.scales),
    )
    result = merge(args.base, args.delta, args.outfile, options, phases_for_stderr())
    print(
        f"{result.outfile}: {result.n_changed} of {result.n_tensors} weights changed, "
        f"{bytes_text(result.n_file_bytes)}, {options.out_type}; base: {result.comparison.match.value}"
    )


def _write_delta(args: argparse.Namespace) -> None:
    from pathlib import Path

    from dqrelo_gguf.address.choose import Kind
    from dqrelo_gguf.address.resolve import all_local
    from dqrelo_gguf.compress.budget import parse_ratio
    from dqrelo_gguf.convert.job import Job, convert
    from dqrelo_gguf.convert.merged_model import Blend, ratio_together
    from dqrelo_gguf.convert.plan import Options
    from dqrelo_gguf.output import check_outputs
    from dqrelo_gguf.progress import phases_for_stderr

    check_outputs([Path(args.outfile)], [], args.force)  # It fails at once, not after downloads.
    deltas = tuple(all_local(args.delta, Kind.DELTA))
    blend = Blend(deltas, tuple(args.scales), args.allow_other_base, not args.no_verify)
    ratio = ratio_together(deltas) if args.ratio is None else parse_ratio(args.ratio)
    job = Job(args.base, blend, args.outfile, force=args.force, n_threads=args.threads)
    for line in convert(job, Options(ratio=ratio), phases_for_stderr()).summary():
        print(line)


if __name__ == "__main__":
    sys.exit(main())

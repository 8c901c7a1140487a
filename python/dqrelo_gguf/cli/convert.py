"""dqrelo-convert: a fine-tune and its base in, a delta file out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dqrelo_gguf.cli import ADDRESSES, run, write_json
from dqrelo_gguf.convert.methods import CALIBRATION, FACTOR_TYPE, METHODS, RANK, SVD, VECTORS, taking
from dqrelo_gguf.model.parts import MODULES

if TYPE_CHECKING:
    from dqrelo_gguf.convert.lanes import OpenLanes
    from dqrelo_gguf.convert.plan import Options
    from dqrelo_gguf.convert.result import ConvertResult
    from dqrelo_gguf.convert.sources import Sources
    from dqrelo_gguf.convert.work import Calibrate, Weigh
    from dqrelo_gguf.publish.push import Target

PROG = "dqrelo-convert"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _parser().parse_args(argv)
    return run(lambda: _convert(args), PROG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Write what a fine-tune changed over its base GGUF as a small delta file." + ADDRESSES,
        epilog=f"example: {PROG} base-q4_k_m.gguf my-finetune/ -o my-finetune.dq.gguf --ratio 1/8",
    )
    source = parser.add_argument_group("input")
    source.add_argument(
        "base",
        metavar="BASE",
        help="the base GGUF that the delta will run on; any type, whole or a shard of a split one",
    )
    source.add_argument(
        "tuned",
        metavar="FINE_TUNE",
        help="the full fine-tune: a Hugging Face directory or a GGUF; or an adapter: PEFT's directory "
        "(LoRA, DoRA, LoHa, LoKr, VeRA) or a GGUF LoRA",
    )
    source.add_argument(
        "--stream",
        action="store_true",
        help="do not download the weights of a FINE_TUNE that is an address: read each by ranges when it is its turn, "
        "two or three times in all (default: download)",
    )
    source.add_argument(
        "--reference",
        metavar="GGUF",
        help="an F16 GGUF of the base: the delta is against it, "
        "and serves every quantisation of the base (default: BASE)",
    )
    source.add_argument(
        "--base-config",
        metavar="PATH",
        help="the base's config.json, or a directory that has it, for an adapter whose tensors' names BASE does not decide "
        "(default: by BASE)",
    )
    source.add_argument(
        "--base-mmproj",
        metavar="GGUF",
        help="the base's mmproj: a fine-tune whose vision or audio tower is another one is refused, because a server has one "
        "for all deltas (default: not compared)",
    )
    source.add_argument("--include", metavar="REGEX", help="convert only weights whose name matches (default: all)")
    source.add_argument(
        "--exclude", metavar="REGEX", help="leave these weights as they are in the base (default: none)"
    )
    source.add_argument(
        "--layers",
        metavar="RANGE",
        help="compress only these blocks, such as 3-7 or 0-25%%; all else stays the fine-tune's, and is not counted "
        "(default: all)",
    )
    source.add_argument(
        "--modules",
        metavar="LIST",
        help=f"compress only these of {','.join(MODULES)}, likewise; embed is all outside the blocks (default: all)",
    )
    method = parser.add_argument_group("method")
    size = method.add_mutually_exclusive_group()
    size.add_argument(
        "--ratio",
        metavar="R",
        help="bytes of the delta to the 16-bit size of the weights, such as 1/8 or 0.125 (default: 1/8)",
    )
    size.add_argument(
        "--rank",
        metavar="N",
        type=int,
        help=f"rank of every weight, at most its smaller side, instead of a ratio (methods {taking(RANK)})",
    )
    method.add_argument(
        "--method",
        choices=tuple(METHODS),
        help=f"{'; '.join(f'{name}: {method.what}' for name, method in METHODS.items())} "
        "(default: best, or paper where an option of it is given)",
    )
    method.add_argument(
        "--importance",
        choices=("norm", "probe"),
        default="norm",
        help="the method best: what errors of different weights count. norm takes it from their deltas; probe measures it by "
        "forward passes on text that base and fine-tune write, which takes minutes and 4 bytes a parameter of memory "
        "and disk (default: %(default)s)",
    )
    method.add_argument(
        "--calibrate",
        metavar="self|FILE",
        help=f"methods {taking(CALIBRATION)}: errors count by what the weights multiply while the fine-tune reads text, and each weight makes up "
        "for those before it: conversations (*.jsonl with 'messages'; the fine-tune answers where they end with a question), UTF-8 text, or "
        "text that base and fine-tune write themselves. Takes minutes",
    )
    method.add_argument(
        "--save-calibration", metavar="FILE", help="keep what --calibrate measured, as safetensors, for other ratios"
    )
    method.add_argument("--calibration", metavar="FILE", help="calibrate with what --save-calibration kept")
    method.add_argument(
        "--imatrix", metavar="GGUF", help="the method wanda: what the weights multiply, by llama-imatrix"
    )
    method.add_argument(
        "--vectors",
        choices=("whole", "paper"),
        help="norms and biases kept whole, or the paper's selection by magnitude with the paper's rank equation "
        f"(methods {taking(VECTORS)}; default: whole)",
    )
    method.add_argument(
        "--factor-type",
        choices=("f16", "bf16", "f32", "q8_0", "q4_0"),
        help=f"type of the low-rank factors (methods {taking(FACTOR_TYPE)}; default: f16)",
    )
    method.add_argument(
        "--svd",
        choices=("randomised", "exact"),
        help=f"truncated SVD; exact is slow and takes more memory (methods {taking(SVD)}; default: randomised)",
    )
    _add_output(parser)
    dangerous = parser.add_argument_group("dangerous")
    dangerous.add_argument(
        "--min-cosine",
        metavar="X",
        type=float,
        default=0.3,
        help="the self-check refuses a weight whose cosine with the base is smaller than X, or that is more than 1/X "
        "times as large or as small; -1 turns it off (default: %(default)s)",
    )
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "-o", "--outfile", metavar="FILE", required=True, help="the delta file, NAME.dq.gguf, or the merged model"
    )
    output.add_argument("--name", metavar="NAME", help="name of the fine-tune (default: its own)")
    output.add_argument("--force", action="store_true", help="replace existing files (default: refuse)")
    output.add_argument(
        "--resume",
        action="store_true",
        help="go on after the last whole weight of an interrupted conversion with the same inputs and options, and keep what is "
        "finished if this one is interrupted (default: begin anew)",
    )
    output.add_argument(
        "--dry-run", action="store_true", help="check everything, print what would be written, write nothing"
    )
    output.add_argument(
        "--plan", action="store_true", help="also print of every weight what it is stored as and what that is to lose"
    )
    output.add_argument("--json", metavar="FILE", help="also write the report with every weight to FILE, - for stdout")
    output.add_argument("--verbose", action="store_true", help="show the log of llama.cpp's conversion on stderr")
    output.add_argument(
        "--push",
        metavar="OWNER/REPO",
        help="then upload the delta to this repository of the Hugging Face Hub (dqrelo-push)",
    )
    performance = parser.add_argument_group("performance")
    performance.add_argument(
        "-t", "--threads", metavar="N", type=int, help="threads; the result does not depend on it (default: all cores)"
    )
    performance.add_argument(
        "--device",
        metavar="cpu|cuda[:N]",
        default="cpu",
        help="what compresses; a GPU needs a CUDA build of torch, may give other bytes, and has never been tried "
        "(default: %(default)s)",
    )
    performance.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const="auto",
        help="spread the weights over the machines of a Ray cluster, HOST:PORT, of which this machine is one; without ADDRESS, or "
        "auto: the one that RAY_ADDRESS names or that runs on this machine, or else, as local, one of this machine alone. Then "
        "--threads is what each worker has (default: no cluster)",
    )


def _convert(args: argparse.Namespace) -> None:
    from dqrelo_gguf.quiet import quiet_libraries

    quiet_libraries(args.verbose)  # This must come before torch and transformers are imported.
    from dqrelo_gguf.convert.job import Job, convert
    from dqrelo_gguf.errors import InputError
    from dqrelo_gguf.output import check_outputs
    from dqrelo_gguf.progress import phases_for_stderr

    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads {args.threads}: must be at least 1")
    job = Job(
        args.base,
        args.tuned,
        args.outfile,
        reference=args.reference,
        base_config=args.base_config,
        base_mmproj=args.base_mmproj,
        name=args.name,
        force=args.force,
        dry_run=args.dry_run,
        calibrate=args.calibrate,
        calibration=args.calibration,
        imatrix=args.imatrix,
        save_calibration=args.save_calibration,
        n_threads=args.threads,
        resume=args.resume,
        device=args.device,
        stream=args.stream,
    )
    given, options = job.sources(), _options(args)
    target = _push_target(args, options)
    check_outputs(job.output_files(), [], args.force)  # It fails at once, not after downloads.
    job = job.fetched()
    if args.json not in (None, "-"):
        check_outputs([*job.output_files(), Path(args.json)], job.input_files(), args.force)
    try:
        result = convert(
            job,
            options,
            phases_for_stderr(),
            _weigh(args.importance),
            _calibrate(args.calibrate or args.calibration),
            open_lanes=_open_lanes(args, given),
        )
    except KeyboardInterrupt:
        if not args.resume:
            raise
        raise InputError(f"{args.outfile}: interrupted. Run again with --resume, and it goes on") from None
    if args.json is not None:
        write_json(result.as_json(), args.json, args.force)
    if args.json != "-":
        _print_report(result, args.plan)
    if target is not None:
        from dqrelo_gguf.publish.push import push

        print(push(result.outfile, target), file=sys.stderr)


def _push_target(args: argparse.Namespace, options: Options) -> Target | None:
    """Where the delta goes, checked before the work; None where it stays here."""
    from dqrelo_gguf.errors import InputError
    from dqrelo_gguf.publish.push import Target, require_login

    if args.push is None:
        return None
    if args.dry_run or options.row.keeps is not None:
        raise InputError("--push: uploads a delta, and this conversion writes none")
    target = Target(args.push)
    require_login(target)
    return target


def _weigh(importance: str) -> Weigh | None:
    """The probe where it is asked for: only it needs the runtime, whose libraries take a while to load."""
    if importance != "probe":
        return None
    from dqrelo_gguf.probe.weigh import measured_importance

    return measured_importance


def _calibrate(source: str | None) -> Calibrate | None:
    """The calibration where it is asked for, likewise."""
    if source is None:
        return None
    from dqrelo_gguf.probe.in_sequence import CALIBRATE

    return CALIBRATE


def _open_lanes(args: argparse.Namespace, given: Sources) -> OpenLanes:
    """Where weights are worked on; `given` are the inputs, with their addresses."""
    from dqrelo_gguf.convert.lanes import local_lanes
    from dqrelo_gguf.errors import InputError

    if args.ray is None:
        return local_lanes
    if args.stream:
        raise InputError(
            "--stream, --ray: only one of them goes. Workers read a fine-tune at an address by downloading it: leave out --stream"
        )
    from dqrelo_gguf.convert.cluster.connect import import_ray
    from dqrelo_gguf.convert.cluster.lanes import on_ray

    import_ray()  # It fails at once.
    return on_ray(args.ray, given, args.threads)


def _options(args: argparse.Namespace) -> Options:
    from dqrelo_gguf.compress.budget import parse_ratio
    from dqrelo_gguf.convert.plan import Options
    from dqrelo_gguf.model.pairing import Selection

    return Options(
        ratio=None if args.ratio is None else parse_ratio(args.ratio),
        method=args.method,
        importance=args.importance,
        rank=args.rank,
        vectors=args.vectors,
        factor_type=args.factor_type,
        svd=args.svd,
        selection=Selection.of(args.include, args.exclude, args.layers, args.modules),
        min_cosine=args.min_cosine,
    )


def _print_report(result: ConvertResult, with_plan: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from dqrelo_gguf.convert.report import LEGEND, by_kind, plan_table, table, total

    console = Console(highlight=False)
    for line in result.summary():
        console.print(Text(line), soft_wrap=True)
    if with_plan:
        console.print()
        console.print(plan_table(result.planned))
    if result.weights:
        console.print()
        console.print(table([*by_kind(result.weights), total(result.weights)], "kind"))
        console.print(LEGEND)


if __name__ == "__main__":
    sys.exit(main())

"""dqrelo-eval: what deltas keep of their fine-tune, on text and on problems."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dqrelo_gguf.cli import ADDRESSES, EXIT_FAILED, EXIT_OK, run, write_json

if TYPE_CHECKING:
    from dqrelo_gguf.evaluate.job import Job
    from dqrelo_gguf.evaluate.report import Evaluation

PROG = "dqrelo-eval"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _parser().parse_args(argv)
    command = shlex.join([PROG, *(sys.argv[1:] if argv is None else argv)])
    return run(lambda: _evaluate(args, command), PROG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Measure what deltas keep of their fine-tune: on text, how far their probabilities are from the fine-tune's "
        "(as llama-perplexity --kl-divergence does, in one process and without files of logits); on problems, which share of "
        "what the fine-tune gained over the base." + ADDRESSES,
        epilog=f"example: {PROG} base.gguf --tuned ft/ --delta ft.dq.gguf --problems math.jsonl --compare number --stamp",
    )
    models = parser.add_argument_group("models")
    models.add_argument("base", metavar="BASE", help="the base GGUF, whole or a shard of a split one")
    models.add_argument(
        "--tuned", metavar="FINE_TUNE", required=True, help="the full fine-tune: a Hugging Face directory or a GGUF"
    )
    models.add_argument(
        "--delta", metavar="FILE", action="append", required=True, help="a delta of the base; give one for each"
    )
    models.add_argument(
        "--model",
        metavar="GGUF",
        action="append",
        default=[],
        help="a whole model to compare as well, such as a merged one; give one for each",
    )
    models.add_argument(
        "--rival",
        metavar="TYPE",
        action="append",
        default=[],
        help="compare the fine-tune itself in a type of llama-quantize's as well, such as IQ2_XXS, Q2_K or Q4_K_M; give one for each",
    )
    models.add_argument(
        "--pruned",
        metavar="METHOD[:RATIO]",
        action="append",
        default=[],
        help="compare a pruned delta as well, which no delta file holds and which is merged with the base for it: random, magnitude or wanda "
        "(default ratio: 1/8); give one for each",
    )
    models.add_argument(
        "--imatrix",
        metavar="FILE",
        help="importance matrix for --rival and --pruned wanda, as llama-imatrix writes it (default: measured on text that the fine-tune writes)",
    )
    text = parser.add_argument_group("text")
    text.add_argument(
        "--text",
        metavar="FILE|self",
        help="text to read: a file (*.jsonl: conversations, 'messages' a line, through the fine-tune's chat template), or self: "
        "text that the fine-tune writes (default: self where there are no problems)",
    )
    text.add_argument("--ctx", metavar="N", type=int, default=512, help="tokens of a window (default: %(default)s)")
    text.add_argument("--tokens", metavar="N", type=int, help="tokens of the text (default: all; 8192 of self)")
    problems = parser.add_argument_group("problems")
    problems.add_argument(
        "--problems",
        metavar="FILE",
        action="append",
        default=[],
        help="a task: a JSON object a line, with 'prompt' or 'messages', 'answer', and optionally 'compare' and 'stop'",
    )
    problems.add_argument(
        "--compare",
        choices=("exact", "regex", "number"),
        default="exact",
        help="what is right where a problem does not say: the answer word for word, a text that the answer as a regular "
        "expression finds something in, or the same final number (default: %(default)s)",
    )
    problems.add_argument("--limit", metavar="N", type=int, help="problems of each file (default: all)")
    problems.add_argument(
        "--max-tokens", metavar="N", type=int, default=256, help="tokens of an answer (default: %(default)s)"
    )
    _add_output(parser)
    performance = parser.add_argument_group("performance")
    performance.add_argument("-t", "--threads", metavar="N", type=int, help="CPU threads (default: all cores)")
    performance.add_argument(
        "-ngl",
        "--n-gpu-layers",
        metavar="N",
        type=int,
        default=-1,
        help="layers on a GPU; -1: all (default: %(default)s)",
    )
    performance.add_argument(
        "--sequential",
        action="store_true",
        help="keep one model in memory at a time, and up to 4 GiB of logits in a temporary file (default: both models)",
    )
    dangerous = parser.add_argument_group("dangerous")
    dangerous.add_argument(
        "--allow-other-base",
        action="store_true",
        help="accept another quantisation of the deltas' base (default: refuse)",
    )
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", help="also write everything to FILE, - for stdout instead of tables")
    output.add_argument(
        "--html",
        metavar="FILE",
        help="also write a page with plots to FILE: it needs no network, and plotly to be made (pip install 'dqrelo-gguf[html]'). "
        "Spectra of some weights are measured for it",
    )
    output.add_argument(
        "--stamp", action="store_true", help="write what was measured into each delta's metadata (default: off)"
    )
    output.add_argument(
        "--seed",
        metavar="N",
        type=int,
        default=1,
        help="of text and intervals; the same gives the same (default: %(default)s)",
    )


def _evaluate(args: argparse.Namespace, command: str) -> int:
    from pathlib import Path

    from dqrelo_gguf.quiet import quiet_libraries

    quiet_libraries(verbose=False)  # This must come before torch and transformers are imported.
    from dqrelo_gguf.evaluate.job import evaluate, stamp
    from dqrelo_gguf.evaluate.page.render import require_plotly, write_page
    from dqrelo_gguf.output import check_outputs
    from dqrelo_gguf.progress import phases_for_stderr

    job = _job(args)
    if args.html is not None:
        require_plotly()
    outputs = [Path(path) for path in (args.json, args.html) if path not in (None, "-")]
    check_outputs(outputs, job.input_files(), force=True)
    evaluation = evaluate(job, command, phases_for_stderr, _say)
    if args.json is not None:
        write_json(evaluation.as_json(), args.json, force=True)
    if args.html is not None:
        write_page(evaluation, Path(args.html))
    if args.json != "-":
        _print_report(evaluation)
    if evaluation.is_interrupted:
        _say("interrupted: what is above was measured until then, nothing was stamped")
        return EXIT_FAILED
    if job.stamp:
        stamp(job, evaluation)
    return EXIT_OK


def _job(args: argparse.Namespace) -> Job:
    from dqrelo_gguf.address.choose import Kind
    from dqrelo_gguf.address.resolve import all_local, local
    from dqrelo_gguf.errors import InputError
    from dqrelo_gguf.evaluate.job import Job
    from dqrelo_gguf.evaluate.text import SELF

    least = {"ctx": 8, "tokens": 1, "limit": 1, "max_tokens": 1, "threads": 1, "seed": 0, "n_gpu_layers": -1}
    for name, smallest in least.items():
        value = getattr(args, name)
        if value is not None and not smallest <= value < 1 << 31:
            raise InputError(
                f"--{name.replace('_', '-')} {value}: expected a number from {smallest} to {(1 << 31) - 1}"
            )
    return Job(
        base=local(args.base, Kind.MODEL),
        tuned=local(args.tuned, Kind.TUNED),
        deltas=tuple(all_local(args.delta, Kind.DELTA)),
        text=str(local(args.text, Kind.FILE)) if args.text else None if args.problems else SELF,
        problems=tuple(all_local(args.problems, Kind.FILE)),
        n_ctx=args.ctx,
        n_tokens=args.tokens,
        compare=args.compare,
        limit=args.limit,
        max_tokens=args.max_tokens,
        seed=args.seed,
        n_threads=args.threads,
        n_gpu_layers=args.n_gpu_layers,
        allow_other_base=args.allow_other_base,
        is_sequential=args.sequential,
        stamp=args.stamp,
        models=tuple(all_local(args.model, Kind.MODEL)),
        rivals=tuple(args.rival),
        prunings=tuple(args.pruned),
        imatrix=None if args.imatrix is None else local(args.imatrix, Kind.FILE),
        with_details=args.html is not None,
    )


def _print_report(evaluation: Evaluation) -> None:
    from rich.console import Console
    from rich.text import Text

    from dqrelo_gguf.evaluate.report import problems_table, summary, text_table

    console = Console(highlight=False)
    console.width = max(console.width, 16 + 32 * (len(evaluation.names) + 2))  # No figure is cut short.
    for line in summary(evaluation):
        console.print(Text(line), soft_wrap=True)
    for table in (text_table(evaluation), problems_table(evaluation)):
        if table is not None:
            console.print()
            console.print(table)


def _say(text: str) -> None:
    from dqrelo_gguf.errors import printable

    print(f"{PROG}: {printable(text)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""What converting a model that does not fit takes: matrices of each kind are converted, and the whole model is their sum.

  measure_shapes.py --shape llama-70b -o work
  measure_shapes.py --shape llama-3b -o work --full

The base is a GGUF in F16 with some blocks, and the fine-tune is read by ranges from a server on this machine (lazy_checkpoint.py) that has made it
before. Kinds of matrices that the converter gives all threads, one at a time, are measured by one of them, the others by those of all blocks, each kind
in a process of its own, at the ratio that the whole model gives it. `--full` converts the whole model as well and compares. The disk needs twice the
16-bit bytes of what is converted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

from dqrelo_gguf.cli import run
from dqrelo_gguf.errors import CommandError
from support.large_shapes import SHAPES, LargeShape, kinds
from support.lazy_model import Checkpoint
from support.lazy_server import serving
from support.machine import commit, cpu, heading
from support.shape_ratios import best_ratios
from support.shape_runs import RATIO, Measured, Part, Projected, measure, project, write_base

PROG = "measure_shapes.py"
METHODS = ("paper", "best")
_SHARES = ("seconds", "processor_seconds", "peak_bytes", "n_read", "n_delta_bytes")


def run_apart(what: str, *arguments: str) -> str:
    """The last line that a process of its own says of this script.

    Raises:
        CommandError: it failed.
    """
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandError(f"{what}: {done.stderr.strip()[-500:]}")
    return (done.stdout.splitlines() or [""])[-1]


def run_one(base: Path, tuned: str, method: str, part: Part, n_threads: int) -> Measured:
    """`measure` in a process of its own.

    Raises:
        CommandError: it failed.
    """
    what = f"{part.pattern or 'all tensors'}, {method}"
    return Measured.of(run_apart(what, "one", str(base), tuned, method, json.dumps(asdict(part)), str(n_threads)))


def find_ratios(shape: LargeShape, base: Path, tuned: str, n_threads: int) -> dict[str, Fraction]:
    """`best_ratios` in a process of its own.

    Raises:
        CommandError: it failed.
    """
    found = run_apart(f"ratios of {shape.name}", "ratios", str(base), tuned, json.dumps(asdict(shape)), str(n_threads))
    return {name: Fraction(ratio) for name, ratio in json.loads(found).items()}


def print_ratios(base: Path, tuned: str, shape: LargeShape, n_threads: int) -> None:
    """What `find_ratios` reads."""
    print(json.dumps({name: str(r) for name, r in best_ratios(base, tuned, shape, RATIO, n_threads).items()}))


def make_base(folder: Path, name: str, address: str) -> Path:
    """The base's GGUF, unless it is there."""
    target = folder / f"{name}.gguf"
    if not target.exists():
        unfinished = folder / f".{name}.gguf"
        run_apart(str(target), "base", address, str(unfinished))
        unfinished.replace(target)
    return target


@contextmanager
def made(shape: LargeShape, args: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """A base's file and a fine-tune's address, as long as the block."""
    with TemporaryDirectory(dir=args.outdir) as folder:
        tuned = Checkpoint(shape, args.seed, is_tuned=True, keep=Path(folder))
        with serving({"base": Checkpoint(shape, args.seed, is_tuned=False), "tuned": tuned}) as address:
            base = make_base(args.outdir, f"{shape.name}-{shape.n_layer}", f"{address}/base")
            tuned.make_all(args.threads)
            yield base, f"{address}/tuned"


def measure_kinds(shape: LargeShape, args: argparse.Namespace, method: str, base: Path, tuned: str) -> Projected:
    """Measures matrices of each kind, prints a row of each, and projects the model."""
    found = {}
    ratios = find_ratios(shape, base, tuned, args.threads) if method == "best" else {}
    for kind in sorted(kinds(shape), key=lambda kind: kind.n_elements):
        part = Part.of(kind, kinds(shape), args.threads, ratios.get(kind.names[0], RATIO))
        found[kind] = m = run_one(base, tuned, method, part, args.threads)
        dims = "x".join(map(str, kind.dims))
        print(
            f"{method:6} {'/'.join(kind.names):26} {dims:>16} {m.n_weights:2} of {kind.count(shape):4} {m.seconds:9.2f} s "
            f"{m.processor_seconds:9.2f} s proc {m.reading_seconds:8.2f} s read {(m.peak_bytes - m.start_bytes) / 1e9:6.2f} GB "
            f"{m.n_delta_bytes / (2 * m.n_weights * kind.n_elements):.4f}",
            flush=True,
        )
    return project(shape, found)


def report(args: argparse.Namespace) -> None:
    """Measures and prints."""
    args.outdir.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[args.shape] if args.layers is None else SHAPES[args.shape].with_layers(args.layers)
    n_bytes = Checkpoint(shape, args.seed, is_tuned=True).n_bytes
    facts = {"shape": shape.name, "bytes": f"{n_bytes:,}", "commit": commit(), "cpu": cpu(), "threads": args.threads}
    print(heading(facts), flush=True)
    documents = []
    with made(shape.with_layers(min(args.blocks, shape.n_layer)), args) as (base, tuned):
        for method in args.method or METHODS:
            projected = measure_kinds(shape, args, method, base, tuned)
            print(f"{method:6} projected: {_row(projected)}", flush=True)
            documents.append({**facts, "method": method, "projected": asdict(projected)})
    if args.full:
        with made(shape, args) as (base, tuned):
            for document in documents:
                whole = run_one(base, tuned, document["method"], Part(), args.threads)
                document["measured"] = asdict(whole)
                print(f"{document['method']:6} measured:  {_row(whole)}", flush=True)
                shares = {
                    key: document["projected"][key] / value for key, value in asdict(whole).items() if key in _SHARES
                }
                print(
                    f"{document['method']:6} projected / measured: "
                    + ", ".join(f"{k} {v:.3f}" for k, v in shares.items())
                )
    with (args.outdir / "shapes.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(document) + "\n" for document in documents)


def _row(found: Projected | Measured) -> str:
    return (
        f"{found.seconds:.0f} s, {found.processor_seconds:.0f} s of processor, peak {found.peak_bytes / 1e9:.1f} GB, "
        f"{found.n_read / 1e9:.1f} GB read, {found.n_delta_bytes / 1e9:.2f} GB of delta"
    )


def main() -> int:
    """Runs the command; returns its exit code."""
    if sys.argv[1:2] == ["one"]:
        base, tuned, method, part, n_threads = sys.argv[2:]
        one = Path(base), tuned, method, Part(**json.loads(part)), int(n_threads)
        return run(lambda: print(measure(*one).as_line()), PROG)
    if sys.argv[1:2] == ["ratios"]:
        base, tuned, shape, n_threads = sys.argv[2:]
        return run(lambda: print_ratios(Path(base), tuned, LargeShape(**json.loads(shape)), int(n_threads)), PROG)
    if sys.argv[1:2] == ["base"]:
        return run(lambda: write_base(sys.argv[2], Path(sys.argv[3])), PROG)
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), required=True)
    parser.add_argument(
        "-o", "--outdir", type=Path, required=True, help="for the bases and shapes.jsonl; made if missing"
    )
    parser.add_argument("--method", choices=METHODS, action="append", help="repeatable (default: both)")
    parser.add_argument("--layers", type=int, help="of the whole model (default: the shape's)")
    parser.add_argument(
        "--blocks", type=int, default=4, help="that are measured, of a kind at once (default: %(default)s)"
    )
    parser.add_argument("--full", action="store_true", help="also convert the whole model, and compare")
    parser.add_argument("-t", "--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    return run(lambda: report(args), PROG)


if __name__ == "__main__":
    sys.exit(main())

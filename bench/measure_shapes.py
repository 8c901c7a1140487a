"""What converting a model that does not fit takes: one tensor of each kind is converted, and the whole model is their sum.

  measure_shapes.py --shape llama-70b -o work
  measure_shapes.py --shape llama-3b -o work --full

The base is a GGUF in F16 with one block of the shape, and the fine-tune is read by ranges from a server that makes it (lazy_checkpoint.py). Each
tensor is converted in a process of its own: large ones with all threads, small ones with one, as the converter would. The time that the reading is waited
for is given apart: it is the network's, and here the generator's. `--full` converts the whole model as well and compares.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from dqrelo_gguf.cli import run
from dqrelo_gguf.errors import CommandError
from support.large_shapes import SHAPES, LargeShape, kinds
from support.lazy_model import Checkpoint
from support.lazy_server import serving
from support.machine import commit, cpu, heading
from support.shape_runs import Measured, Projected, is_alone, measure, project, write_base

PROG = "measure_shapes.py"
METHODS = ("paper", "best")


def run_one(base: Path, tuned: str, method: str, tensor: str | None, n_threads: int) -> Measured:
    """`measure` in a process of its own.

    Raises:
        CommandError: it failed.
    """
    command = [sys.executable, __file__, "one", str(base), tuned, method, tensor or "", str(n_threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandError(f"{tensor or 'all tensors'}, {method}: {done.stderr.strip()[-500:]}")
    return Measured.of(done.stdout.splitlines()[-1])


def make_base(folder: Path, name: str, address: str) -> Path:
    """The base's GGUF, unless it is there."""
    target = folder / f"{name}.gguf"
    if not target.exists():
        unfinished = folder / f".{name}.gguf"
        command = [sys.executable, __file__, "base", address, str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CommandError(f"{target}: {done.stderr.strip()[-500:]}")
        unfinished.replace(target)
    return target


def measure_kinds(shape: LargeShape, args: argparse.Namespace, method: str) -> Projected:
    """Measures a tensor of each kind, prints a row of each, and projects the model."""
    one = shape.with_layers(1)
    folders = {name: Checkpoint(one, args.seed, is_tuned=name == "tuned") for name in ("base", "tuned")}
    found = {}
    with serving(folders) as address:
        base = make_base(args.outdir, f"{shape.name}-1", f"{address}/base")
        for kind in sorted(kinds(shape), key=lambda kind: kind.n_elements):
            n_threads = args.threads if is_alone(kind, kinds(shape), args.threads) else 1
            found[kind] = m = run_one(base, f"{address}/tuned", method, kind.tensor(), n_threads)
            dims = "x".join(map(str, kind.dims))
            print(
                f"{method:6} {'/'.join(kind.names):26} {dims:>16} {kind.count(shape):5} {m.n_threads:2} thr {m.seconds:9.2f} s "
                f"{m.processor_seconds:9.2f} s proc {m.reading_seconds:8.2f} s read {(m.peak_bytes - m.start_bytes) / 1e9:6.2f} GB "
                f"{m.n_delta_bytes / (2 * kind.n_elements):.4f}",
                flush=True,
            )
    return project(shape, found, args.threads)


def measure_full(shape: LargeShape, args: argparse.Namespace, method: str) -> Measured:
    """Converts the whole model."""
    folders = {name: Checkpoint(shape, args.seed, is_tuned=name == "tuned") for name in ("base", "tuned")}
    with serving(folders) as address:
        base = make_base(args.outdir, f"{shape.name}-{shape.n_layer}", f"{address}/base")
        return run_one(base, f"{address}/tuned", method, None, args.threads)


def report(args: argparse.Namespace) -> None:
    """Measures and prints."""
    args.outdir.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[args.shape] if args.layers is None else SHAPES[args.shape].with_layers(args.layers)
    n_bytes = Checkpoint(shape, args.seed, is_tuned=True).n_bytes
    facts = {"shape": shape.name, "bytes": f"{n_bytes:,}", "commit": commit(), "cpu": cpu(), "threads": args.threads}
    print(heading(facts), flush=True)
    for method in args.method or METHODS:
        whole = measure_kinds(shape, args, method)
        print(f"{method:6} projected: {_row(whole)}", flush=True)
        document = {**facts, "method": method, "projected": asdict(whole)}
        if args.full:
            full = measure_full(shape, args, method)
            print(f"{method:6} measured:  {_row(full)}, {full.reading_seconds:.0f} s of waiting for bytes", flush=True)
            print(
                f"{method:6} projected / measured: time {whole.seconds / full.seconds:.3f}, "
                f"processor {whole.processor_seconds / full.processor_seconds:.3f}, peak {whole.peak_bytes / full.peak_bytes:.3f}"
            )
            document["measured"] = asdict(full)
        with (args.outdir / "shapes.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(document) + "\n")


def _row(found: Projected | Measured) -> str:
    return (
        f"{found.seconds:.0f} s, {found.processor_seconds:.0f} s of processor, peak {found.peak_bytes / 1e9:.1f} GB, "
        f"{found.n_read / 1e9:.1f} GB read, {found.n_delta_bytes / 1e9:.2f} GB of delta"
    )


def main() -> int:
    """Runs the command; returns its exit code."""
    if sys.argv[1:2] == ["one"]:
        base, tuned, method, tensor, n_threads = sys.argv[2:]
        return run(lambda: print(measure(Path(base), tuned, method, tensor or None, int(n_threads)).as_line()), PROG)
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
    parser.add_argument("--full", action="store_true", help="also convert the whole model, and compare")
    parser.add_argument("-t", "--threads", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    return run(lambda: report(args), PROG)


if __name__ == "__main__":
    sys.exit(main())

"""How much faster is the randomised truncated SVD than a full one, and what does it lose?

Measures dqrelo_gguf.compress.lowrank.truncated_svd against torch.linalg.svd (gesdd) on the same matrix, in one run, and prints
the time of both and the errors of the rank that both keep. The default, a Gaussian matrix, has the flattest spectrum
there is and so needs the most passes.

  bench_svd.py [--size 4096] [--rank 128] [--repeat 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch

from dqrelo_gguf.compress.blocks import Blocks, n_cores, open_blocks
from dqrelo_gguf.compress.lowrank import LowRank, truncated_svd
from support.machine import commit, cpu


def main() -> int:
    """Runs the benchmark; exit code 1 if the promise (20x, 0.5 %) is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=128, help="rank kept (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of the randomised SVD (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=n_cores(), help="for both (default: all cores)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    A = torch.randn((args.size, args.size), generator=torch.Generator().manual_seed(0))
    print(f"{' '.join(sys.argv)}; commit {commit()}; {cpu()}; {args.threads} threads; torch {torch.__version__}")

    with open_blocks(args.threads) as blocks:
        fast_seconds, error = measure_fast(A, args.rank, blocks, args.repeat)
    print(f"randomised: {fast_seconds:8.2f} s (median of {args.repeat}), error {error:.2f}", flush=True)
    begun = time.perf_counter()
    S = torch.linalg.svd(A, full_matrices=False).S
    exact_seconds = time.perf_counter() - begun
    smallest = float(S[args.rank :].double().norm())
    print(f"exact:      {exact_seconds:8.2f} s (one run), error {smallest:.2f}, load {os.getloadavg()[0]:.1f}")
    speedup, excess = exact_seconds / fast_seconds, error / smallest - 1
    print(f"{speedup:.0f} times faster; error {100 * excess:.3f} % above the smallest possible one")
    return 0 if speedup >= 20 and excess <= 0.005 else 1


def measure_fast(A: torch.Tensor, rank: int, blocks: Blocks, repeat: int) -> tuple[float, float]:
    """Median seconds, and the error of the approximation."""
    seconds, result = [], None
    for _ in range(repeat):
        took, result = timed(lambda: truncated_svd(A, rank, blocks, seed=1))
        seconds.append(took)
    assert result is not None
    return statistics.median(seconds), float((A - result.U @ result.V).double().norm())


def timed(fn: Callable[[], LowRank]) -> tuple[float, LowRank]:
    begun = time.perf_counter()
    result = fn()
    return time.perf_counter() - begun, result


if __name__ == "__main__":
    sys.exit(main())

"""Upstream's tiny random models of every architecture, with near-exact deltas: tests/cpp's test-archs compares them with merged models."""

from __future__ import annotations

import math
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import exact_delta
from tests.support.programs import need_test_program

# Merged and delta form sum the same numbers in another order, the delta with 16-bit activations; measured at most 2e-6 on models without routing or recurrence.
MAX_NMSE = 1e-4

MIN_ARCHS = 100

# How much of the two deltas a blend has.
BLEND = (0.5, -0.25)

# Faults of llama.cpp itself with these models, with or without deltas, that leave nothing to compare.
FAULTS = {
    "cogvlm-dense": "its graph returns logits for every token, whatever outputs were asked for, and the wrong rows are read",
    "kimi-linear-moe": "no context with 17 sequences can be made",
    "plamo2-dense": "sequences of one batch change each other's logits",
}

# A cross-section for the quick suite: fused q/k/v, biases, norms a head, parallel blocks, position embeddings, scales, experts, MLA.
QUICK = (
    "llama-dense",
    "qwen2-dense",
    "qwen3-dense",
    "gemma3-dense",
    "falcon-dense",
    "gpt2-dense",
    "qwen3moe-moe",
    "deepseek2-moe",
)

# Tensors that some op reads for all tokens at once: ubatches of one delta. Biases and sinks of experts, a recurrent state, experts with rope factors.
OWN_BATCH = ("gpt-oss-moe", "mamba-dense", "llama-moe")


@dataclass
class Outcome:
    """What test-archs found out about a model."""

    arch: str
    carried: int = 0
    own_batch: bool = False  # The deltas' tokens share no ubatch with others.
    inert: list[str] = field(default_factory=list)  # No graph reads these tensors.
    nmse: dict[str, float] = field(default_factory=dict)  # It maps a case to its figure.
    base_diff: float = 0.0  # difference of rows without a delta
    failed: str = ""


def run_arch(base: Path, directory: Path, kind: exact_delta.Kind = exact_delta.PLAIN, **env: str) -> Outcome:
    """Makes two deltas of a model, and runs test-archs on them and their blend with `env` in its environment."""
    outcome = Outcome(base.stem)
    unchanged = []
    if base.stem == "llama-dense":
        # It keeps its random scales, whose form is the same for all, in ubatches of many deltas.
        unchanged = ["rope_freqs.weight"]
    else:
        exact_delta.without_scales(base, directory / "base.gguf")
        base = directory / "base.gguf"
    names = [directory / n for n in ("a.dq.gguf", "b.dq.gguf", "a.gguf", "b.gguf")]
    for seed, (delta, merged) in enumerate(zip(names[:2], names[2:], strict=True)):
        outcome.carried = len(exact_delta.make(base, delta, merged, seed, unchanged, kind=kind))
    blended = exact_delta.blend(base, directory / "blended.gguf", dict(zip(names[2:], BLEND, strict=True)))
    done = subprocess.run(
        [need_test_program("test-archs"), base, *names, *map(str, BLEND), blended],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | env,
    )
    outcome.own_batch = "own_batch 1" in done.stdout
    outcome.inert = re.findall(r"^inert (\S+\.\S+)$", done.stdout, re.MULTILINE)
    for case, nmse, diff in re.findall(r"^(\w+): nmse (\S+) base_nmse \S+ base_diff (\S+)$", done.stdout, re.MULTILINE):
        outcome.nmse[case] = float(nmse)
        outcome.base_diff = max(outcome.base_diff, float(diff))
    problems = re.findall(r"^.*(?:failed|refused).*$", done.stdout, re.MULTILINE)
    promises = ("kept 1", "other_context 1", "freed 1")
    if done.returncode != 0 or problems or not all(p in done.stdout for p in promises):
        outcome.failed = f"exit {done.returncode}: {problems} {done.stderr[-500:]}"
    return outcome


def check(outcomes: list[Outcome]) -> None:
    """Asserts that deltas did what merging does, and nothing to rows without one."""
    bad = [o for o in outcomes if o.failed or o.base_diff != 0.0 or not worst(o) <= MAX_NMSE]
    assert not bad, "\n".join(map(str, bad))


def worst(outcome: Outcome) -> float:
    """The largest NMSE of all cases that have rows with a delta."""
    return max((n for case, n in outcome.nmse.items() if case != "unbound"), default=math.inf)

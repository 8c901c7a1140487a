"""The graph pass on upstream's tiny random models of every architecture: near-exact deltas against merged models.

Upstream's test-llama-archs writes the base models; test-archs (tests/cpp) runs them. Weights that the operator has no form for are refused by name, one kind
after another; the test leaves them out and goes on, so that what is carried is compared and what is refused is known.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import exact_delta

# Merged and delta form sum the same numbers in another order, the delta with 16-bit activations; measured at most 2e-6 on models without routing or recurrence.
MAX_NMSE = 1e-4

MIN_ARCHS = 100

# Faults of llama.cpp itself with these models, with or without deltas, that leave nothing to compare.
FAULTS = {
    "cogvlm-dense": "its graph returns logits for every token, whatever outputs were asked for, and the wrong rows are read",
    "kimi-linear-moe": "no context with 17 sequences can be made",
    "plamo2-dense": "sequences of one batch change each other's logits",
}

# A cross-section for the quick suite: fused q/k/v, biases, norms a head, parallel blocks, position embeddings, scales, experts left out.
QUICK = ("llama-dense", "qwen2-dense", "qwen3-dense", "gemma3-dense", "falcon-dense", "gpt2-dense", "qwen3moe-moe")


def binary(name: str) -> Path:
    directory = os.environ.get("DQRELO_TEST_BIN_DIR")
    if not directory or not (Path(directory) / name).is_file():
        pytest.skip(
            f"{name}: not found; build with -DDQRELO_BUILD_TESTS=ON and set DQRELO_TEST_BIN_DIR to the directory of the binaries"
        )
    return Path(directory) / name


@dataclass
class Outcome:
    arch: str
    carried: int = 0
    refused: dict[str, str] = field(default_factory=dict)  # kind of tensor -> reason
    nmse: dict[str, float] = field(default_factory=dict)  # case -> figure
    base_diff: float = 0.0  # of rows without a delta
    failed: str = ""


def kind(tensor: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", tensor)


def run_arch(base: Path, directory: Path, driver: Path) -> Outcome:
    outcome = Outcome(base.stem)
    exclude: list[str] = []
    if base.stem != "llama-dense":  # it keeps its random scales, whose form is the same for all
        exact_delta.without_scales(base, directory / "base.gguf")
        base = directory / "base.gguf"
    names = [directory / n for n in ("a.dq.gguf", "b.dq.gguf", "a.gguf", "b.gguf")]
    while True:
        for seed, (delta, merged) in enumerate(zip(names[:2], names[2:], strict=True)):
            outcome.carried = len(exact_delta.make(base, delta, merged, seed, exclude))
        done = subprocess.run([driver, base, *names], capture_output=True, text=True, timeout=300, check=False)
        # a batch of embeddings may read weights that no graph of tokens does: they are refused when it runs
        refused = re.search(r"refused: .*?tensor '([^']+)' (.*?)\. Convert", done.stdout) or re.search(
            r"^dqrelo: tensor '([^']+)' (.*)$", done.stderr, re.MULTILINE
        )
        if not refused:
            break
        outcome.refused[kind(refused[1])] = refused[2]
        exclude.append(re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(refused[1])))
    for case, nmse, diff in re.findall(r"^(\w+): nmse (\S+) base_nmse \S+ base_diff (\S+)$", done.stdout, re.MULTILINE):
        outcome.nmse[case] = float(nmse)
        outcome.base_diff = max(outcome.base_diff, float(diff))
    problems = re.findall(r"^.*(?:failed|refused).*$", done.stdout, re.MULTILINE)
    promises = ("kept 1", "other_context 1", "freed 1")
    if done.returncode != 0 or problems or not all(p in done.stdout for p in promises):
        outcome.failed = f"exit {done.returncode}: {problems} {done.stderr[-500:]}"
    return outcome


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("archs")
    command = [binary("test-llama-archs"), "-o", directory, "-v", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return {path.stem: path for path in sorted(directory.glob("*.gguf"))}


def check(outcomes: list[Outcome]) -> None:
    bad = [o for o in outcomes if o.failed or o.base_diff != 0.0 or not worst(o) <= MAX_NMSE]
    assert not bad, "\n".join(map(str, bad))


def worst(outcome: Outcome) -> float:
    """The largest NMSE of all cases that have rows with a delta."""
    return max((n for case, n in outcome.nmse.items() if case != "unbound"), default=math.inf)


@pytest.mark.parametrize("arch", QUICK)
def test_architecture(bases: dict[str, Path], tmp_path: Path, arch: str) -> None:
    outcome = run_arch(bases[arch], tmp_path, binary("test-archs"))
    check([outcome])
    assert outcome.carried > 10


@pytest.mark.slow
def test_every_architecture_carries_deltas_or_names_what_it_cannot(bases: dict[str, Path], tmp_path: Path) -> None:
    driver = binary("test-archs")
    outcomes = [run_arch(base, tmp_path, driver) for arch, base in bases.items() if arch not in FAULTS]
    assert len(outcomes) >= MIN_ARCHS
    for outcome in outcomes:
        print(outcome.arch, outcome.carried, f"{worst(outcome):.1e}", *sorted(outcome.refused))
    check(outcomes)

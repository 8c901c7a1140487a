"""The graph pass on upstream's tiny random models of every architecture: near-exact deltas against merged models.

Upstream's test-llama-archs writes the base models; test-archs (tests/cpp) runs them. Every tensor of every architecture changes, and nothing may be refused.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.file.reader import DeltaReader
from tests.support import exact_delta

# Merged and delta form sum the same numbers in another order, the delta with 16-bit activations; measured at most 2e-6 on models without routing or recurrence.
MAX_NMSE = 1e-4

MIN_ARCHS = 100

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
    own_batch: bool = False  # the deltas' tokens share no ubatch with others
    inert: list[str] = field(default_factory=list)  # tensors that no graph reads
    nmse: dict[str, float] = field(default_factory=dict)  # case -> figure
    base_diff: float = 0.0  # of rows without a delta
    failed: str = ""


def run_arch(
    base: Path, directory: Path, driver: Path, kind: exact_delta.Kind = exact_delta.PLAIN, **env: str
) -> Outcome:
    outcome = Outcome(base.stem)
    unchanged = []
    if (
        base.stem == "llama-dense"
    ):  # it keeps its random scales, whose form is the same for all, in ubatches of many deltas
        unchanged = ["rope_freqs.weight"]
    else:
        exact_delta.without_scales(base, directory / "base.gguf")
        base = directory / "base.gguf"
    names = [directory / n for n in ("a.dq.gguf", "b.dq.gguf", "a.gguf", "b.gguf")]
    for seed, (delta, merged) in enumerate(zip(names[:2], names[2:], strict=True)):
        outcome.carried = len(exact_delta.make(base, delta, merged, seed, unchanged, kind=kind))
    done = subprocess.run(
        [driver, base, *names], capture_output=True, text=True, timeout=300, check=False, env=os.environ | env
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


@pytest.mark.parametrize("arch", QUICK + OWN_BATCH)
def test_architecture(bases: dict[str, Path], tmp_path: Path, arch: str) -> None:
    outcome = run_arch(bases[arch], tmp_path, binary("test-archs"))
    check([outcome])
    assert outcome.carried > 10
    assert outcome.own_batch == (arch in OWN_BATCH)


def refusal(base: Path, delta: Path) -> str:
    """The line with which a delta is refused."""
    command = [binary("test-archs"), base, delta, delta, base, base]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    (line,) = re.findall(r"^refused: (.*)$", done.stdout, re.MULTILINE)
    return str(line)


def test_tensor_that_the_base_lacks_is_refused_by_name(bases: dict[str, Path], tmp_path: Path) -> None:
    more, delta = tmp_path / "more.gguf", tmp_path / "a.dq.gguf"
    exact_delta.without_scales(bases["llama-dense"], tmp_path / "base.gguf")
    exact_delta.with_tensor(tmp_path / "base.gguf", more, "blk.0.planted.weight", np.ones((4, 8), np.float32))
    exact_delta.make(more, delta, tmp_path / "a.gguf")
    assert "no tensor 'blk.0.planted.weight'" in refusal(tmp_path / "base.gguf", delta)


def test_unsupported_form_is_refused_by_name(bases: dict[str, Path], tmp_path: Path) -> None:
    base, delta = tmp_path / "base.gguf", tmp_path / "a.dq.gguf"
    reader = gguf.GGUFReader(bases["mamba-dense"])
    (weight,) = [t.data for t in reader.tensors if t.name == "blk.0.ssm_conv1d.weight"]
    # a merged copy can be made of F32 only
    exact_delta.with_tensor(bases["mamba-dense"], base, "blk.0.ssm_conv1d.weight", weight.astype(np.float16))
    exact_delta.make(base, delta, tmp_path / "a.gguf")
    assert re.search(
        r"tensor 'blk\.0\.ssm_conv1d\.weight' is read by SSM_CONV .* for F32 tensors only", refusal(base, delta)
    )


def test_a_check_is_of_the_loaded_delta_not_of_the_hash_that_it_declares(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    base, delta, forged = (tmp_path / name for name in ("base.gguf", "a.dq.gguf", "b.dq.gguf"))
    conv = "blk.0.ssm_conv1d.weight"
    (weight,) = [t.data for t in gguf.GGUFReader(bases["mamba-dense"]).tensors if t.name == conv]
    exact_delta.with_tensor(bases["mamba-dense"], base, conv, weight.astype(np.float16))
    exact_delta.make(base, delta, tmp_path / "a.gguf", unchanged=[conv])
    exact_delta.make(base, forged, tmp_path / "b.gguf")
    hashes = [bytes(DeltaReader(path).content_hash, "ascii") for path in (delta, forged)]
    forged.write_bytes(forged.read_bytes().replace(hashes[1], hashes[0]))
    done = subprocess.run(
        [binary("test-coverage"), base, delta, forged], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_tensor_that_no_graph_reads_is_inert(bases: dict[str, Path], tmp_path: Path) -> None:
    outcome = run_arch(bases["dream-dense"], tmp_path, binary("test-archs"))
    check([outcome])
    assert outcome.inert == ["output.bias"]


@pytest.mark.slow
def test_every_architecture_carries_deltas(bases: dict[str, Path], tmp_path: Path) -> None:
    driver = binary("test-archs")
    outcomes = [run_arch(base, tmp_path, driver) for arch, base in bases.items() if arch not in FAULTS]
    assert len(outcomes) >= MIN_ARCHS
    for outcome in outcomes:
        print(outcome.arch, outcome.carried, f"{worst(outcome):.1e}", "own batch" * outcome.own_batch, *outcome.inert)
    check(outcomes)

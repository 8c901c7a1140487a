"""Fine-tunes of every architecture, the user's way: transformers' directories, upstream's conversion, dqrelo-convert, the runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.errors import DqreloError
from tests.support import architecture_table
from tests.support.architecture_runs import Outcome, Run
from tests.support.encoder_runs import EncoderRun
from tests.support.tiny_architectures import ARCHITECTURES
from tests.support.tiny_tokenizers import known_to_the_conversion

# The merged model and base + delta sum the same numbers in another order; the delta's activations have 16 bits.
MAX_NMSE = 1e-4
# Rounding of the base is what any run of it has; the delta may add as much again.
MAX_OVER_BASE = 2.0

QUICK = ("llama", "qwen3moe", "gemma3", "gpt2")


@pytest.fixture(autouse=True)
def conversion() -> Iterator[None]:
    with known_to_the_conversion():
        yield


@pytest.fixture(scope="session")
def outcomes(pytestconfig: pytest.Config) -> Iterator[list[Outcome]]:
    """All that were run; the table is made of them if that was asked for."""
    found: list[Outcome] = []
    yield found
    if pytestconfig.getoption("write_architectures"):
        architecture_table.write(found)


def check(outcome: Outcome) -> None:
    for base_type, f in outcome.figures.items():
        allowed = max(MAX_NMSE, MAX_OVER_BASE * f.rounding)
        assert max(f.merged, f.tuned, f.mixed, f.blended) <= allowed, f"{base_type}: {f}"
        assert f.effect > 50 * allowed, f"{base_type}: {f}"
        assert f.is_base_kept, base_type


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]
)
def test_architecture(name: str, tmp_path: Path, outcomes: list[Outcome]) -> None:
    arch = ARCHITECTURES[name]
    outcome = (EncoderRun if arch.is_encoder else Run)(name, arch, tmp_path).everything()
    outcomes.append(outcome)
    print(outcome)
    check(outcome)


@pytest.mark.parametrize("name", [name for name, arch in ARCHITECTURES.items() if arch.fault is not None])
def test_fault_of_the_conversion_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    arch = ARCHITECTURES[name]
    assert arch.fault is not None
    if not arch.fault.happens():
        pytest.skip(f"this transformers is older than {arch.fault.transformers}")
    run = Run(name, arch, tmp_path)
    # Where nothing helps, it is a base of the same architecture without the tensors that the conversion stumbles over.
    other = name.split("-", maxsplit=1)[0]
    base = run if arch.fault.hparams is not None else Run(other, ARCHITECTURES[other], tmp_path / "other")
    with pytest.raises(DqreloError, match=arch.fault.line) as caught:
        convert(Job(base.gguf(base.checkpoint, "F32"), run.tuned[0], tmp_path / "out.dq.gguf"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.dq.gguf").exists()
    print(caught.value)


def test_the_table_has_every_architecture() -> None:
    assert architecture_table.titles() == [arch.title for arch in ARCHITECTURES.values()]

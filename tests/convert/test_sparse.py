"""Fine-tunes that changed few weights: what of them is kept exactly, and what is said of it."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import save_file

from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.moments import FORMAT
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.convert.report import plan_table
from dqrelo_gguf.convert.result import ConvertResult
from dqrelo_gguf.convert.work import Work
from dqrelo_gguf.file.layout import Type
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.models import convert_hf, read_gguf, save_model
from tests.support.moments import inputs, moments
from tests.support.sparse_tunes import tune_sparsely

WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_hidden_layers": 1,
}
Q = "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("wide") / "base", **WIDE)


@pytest.fixture(scope="module")
def base(source: Path) -> Path:
    return convert_hf(source, source.with_name("base.gguf"), "MOSTLY_BF16")


@pytest.fixture(scope="module")
def tuned(source: Path) -> Path:
    """8 % of the elements moved by 2 to 60 units in the last place: values of up to eight bits."""
    return tune_sparsely(source, source.with_name("tuned"), 0.08, (2, 60))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "ft.dq.gguf"


def is_merged_exactly(base: Path, delta: Path, tuned: Path, out_type: str) -> bool:
    """Whether base and delta are the fine-tune, bit by bit."""
    merged = delta.with_name(f"merged-{out_type}.gguf")
    merge(base, delta, merged, MergeOptions(out_type))
    wanted = read_gguf(convert_hf(tuned, delta.with_name(f"wanted-{out_type}.gguf"), "MOSTLY_BF16"))
    found = read_gguf(merged)
    return all(np.array_equal(found[name], w) for name, w in wanted.items())


def error_of(result: ConvertResult) -> float:
    n = sum(w.n_elements for w in result.weights)
    return float((sum(w.error_delta**2 * w.n_elements for w in result.weights) / n) ** 0.5)


def test_few_changes_are_kept_exactly(base: Path, tuned: Path, out: Path) -> None:
    result = convert(Job(base, tuned, out))
    reader = DeltaReader(out)
    reader.verify()
    assert result.ratio == reader.ratio <= 1 / 8
    assert {w.error_delta for w in reader.weights} == {w.error_weight for w in reader.weights} == {0.0}
    assert {w.entry_type for w in reader.weights} == {Type.BF16}
    assert is_merged_exactly(base, out, tuned, "f32")
    assert is_merged_exactly(base, out, tuned, "bf16")
    assert "changed   8.0 % of the matrices' elements; 9 of 9 matrices are kept exactly" in result.summary()
    assert "weights   0 compressed; 9 sparse; 0 dense; 36 tensors" in result.summary()

    published = convert(Job(base, tuned, out, force=True), Options(method="paper"))
    assert error_of(published) > 0.8


def test_small_steps_are_exact_in_a_byte(source: Path, base: Path, out: Path) -> None:
    tuned = tune_sparsely(source, out.with_name("small"), 0.11, (1, 3))
    result = convert(Job(base, tuned, out))
    assert result.ratio <= 1 / 8
    assert {w.entry_type for w in DeltaReader(out).weights} == {Type.I8}
    assert error_of(result) == 0
    assert is_merged_exactly(base, out, tuned, "f32")


def test_of_many_changes_the_largest_are_kept(source: Path, base: Path, out: Path) -> None:
    tuned = tune_sparsely(source, out.with_name("many"), 0.3, (1, 3))
    result = convert(Job(base, tuned, out))
    assert result.ratio <= 1 / 8
    assert 0 < error_of(result) < 0.4
    (line,) = (line for line in result.summary() if line.startswith("changed"))
    n_exact = sum(w.error_delta == 0 for w in result.weights)
    assert n_exact < 9
    assert line == (
        f"changed   30.0 % of the matrices' elements; {n_exact} of 9 matrices are kept exactly, "
        f"{9 - n_exact} by their largest entries or rounded"
    )
    for p, w in zip(result.planned, result.weights, strict=True):
        assert p.predicted_error == pytest.approx(w.error_delta, rel=1e-3)


def test_half_of_the_changes_at_half_of_the_ratio(base: Path, tuned: Path, out: Path) -> None:
    result = convert(Job(base, tuned, out), Options(ratio=Fraction(1, 16)))
    assert result.ratio <= 1 / 16
    assert 0 < error_of(result) < 0.5


def test_bytes_do_not_depend_on_the_threads(base: Path, tuned: Path, out: Path) -> None:
    files = []
    for n_threads in (1, 2, 3):
        convert(Job(base, tuned, out, n_threads=n_threads, force=True), Options(ratio=Fraction(1, 10)))
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]
    assert any(w.n_entries for w in DeltaReader(out).weights)


def test_a_quantised_base_leaves_no_element_as_it_was(source: Path, tuned: Path, out: Path) -> None:
    base = convert_hf(source, out.with_name("q8.gguf"), "MOSTLY_Q8_0")
    result = convert(Job(base, tuned, out))
    assert not any(w.n_entries for w in DeltaReader(out).weights)
    assert not any(line.startswith("changed") for line in result.summary())
    assert result.as_json()["weights"][0]["n_changed"] > 0.99 * result.planned[0].spec.n_elements


def test_experts_have_one_form(out: Path) -> None:
    source = save_model(out.with_name("experts"), "mixtral", hidden_size=256, intermediate_size=256)
    base = convert_hf(source, out.with_name("base.gguf"), "MOSTLY_BF16")
    tuned = tune_sparsely(source, out.with_name("tuned"), 0.05, (1, 3))
    convert(Job(base, tuned, out))
    stacks = [w for w in DeltaReader(out).weights if len(w.ne) == 3]
    assert stacks
    assert all(w.n_entries > 0 and w.error_delta == 0 for w in stacks)
    assert is_merged_exactly(base, out, tuned, "f32")


def test_a_dry_run_and_its_plan_say_what_will_be_kept(base: Path, tuned: Path, out: Path) -> None:
    result = convert(Job(base, tuned, out, dry_run=True))
    assert "changed   8.0 % of the matrices' elements; 9 of 9 matrices are kept exactly" in result.summary()
    console = Console(width=80)
    with console.capture() as captured:
        console.print(plan_table(result.planned))
    (row,) = (line.split() for line in captured.get().splitlines() if "attn_q" in line)
    planned = next(p for p in result.planned if p.spec.name == Q)
    assert planned.spec.sparse is not None
    assert row[:5] == ["blk.0.attn_q", "0", str(planned.spec.sparse.n_entries), "entries", "in"]
    entry = next(w for w in result.as_json()["weights"] if w["name"] == Q)
    assert json.dumps(entry)
    assert (entry["n_entries"], entry["entry_type"], entry["predicted_error"]) == (entry["n_changed"], "bf16", 0.0)


def test_a_probe_hears_mixes_only(base: Path, tuned: Path, out: Path) -> None:
    """What is kept exactly does nothing to answers, and says nothing of a weight."""

    def weigh(_: Work, planned: list[Planned]) -> dict[str, float]:
        assert not any(p.spec.sparse for p in planned)
        return {p.spec.name: 1.0 for p in planned}

    result = convert(Job(base, tuned, out), Options(importance="probe"), weigh=weigh)
    assert error_of(result) == 0


@pytest.mark.parametrize("ratio", [Fraction(1, 8), Fraction(1, 16)])
def test_what_a_calibration_says_of_entries(ratio: Fraction, base: Path, tuned: Path, out: Path) -> None:
    save_file({Q: moments(inputs(1024, 2048))}, out.with_name("m"), metadata={"format": FORMAT, "aliases": "{}"})
    result = convert(Job(base, tuned, out, calibration=out.with_name("m")), Options(ratio=ratio))
    found = {w.name: w for w in result.weights}
    assert found["blk.0.attn_k.weight"].error_outputs is None
    lost = found[Q].error_outputs
    assert lost is not None
    assert (lost == 0) == (found[Q].error_delta == 0) == (ratio == Fraction(1, 8))
    assert lost < 1

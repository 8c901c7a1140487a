"""merged_model.py: deltas of one base as one delta (`dqrelo-merge --as-delta`); merging into a plain GGUF is in test_merge.py."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from dqrelo_gguf.cli.merge import main
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.merge import MergeOptions, merge
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.file.container import GGUFFile
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.pairing import Selection
from tests.support.logits import Floats
from tests.support.models import pico_gguf, read_gguf, rewrite_gguf, tuned_gguf

TEMPLATE = "{{ messages[0]['content'] }}"


class Deltas(NamedTuple):
    """Deltas of one base: of all weights, with a template of its own, and of the matrices of the first block."""

    base: Path
    first: Path
    second: Path

    @property
    def command(self) -> list[str]:
        return [str(path) for path in self]


@pytest.fixture(scope="module")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> Deltas:
    folder = tmp_path_factory.mktemp("deltas")
    base = pico_gguf("llama")
    fields = {"general.name": "My Tune"}
    tuned = rewrite_gguf(
        tuned_gguf(base, folder / "a.gguf"), folder / "first.gguf", fields=fields, added_template=TEMPLATE
    )
    convert(Job(base, tuned, folder / "first.dq.gguf"))
    other = rewrite_gguf(
        tuned_gguf(base, folder / "b.gguf", seed=5), folder / "second.gguf", fields={"general.name": "Other"}
    )
    selection = Selection(include=r"blk\.0\.(attn|ffn)_[a-z]+\.weight", exclude="norm")
    convert(Job(base, other, folder / "second.dq.gguf"), Options(selection=selection))
    return Deltas(base, folder / "first.dq.gguf", folder / "second.dq.gguf")


def _merged(base: Path, parts: tuple[Path, ...], out: Path, *scales: float) -> dict[str, Floats]:
    merge(base, parts, out, MergeOptions("f32", scales=scales))
    return read_gguf(out)


def test_deltas_become_one(deltas: Deltas, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, first, second = deltas
    out = tmp_path / "mix.dq.gguf"
    command = [*deltas.command, "--scales", "0.6", "-0.5", "--as-delta", "-o", str(out)]
    assert main(command) == 0
    assert "of the 16-bit weights" in capsys.readouterr().out
    expected = _merged(base, (first, second), tmp_path / "sum.gguf", 0.6, -0.5)
    got, plain, delta = _merged(base, (out,), tmp_path / "one.gguf", 1.0), read_gguf(base), DeltaReader(out)
    assert delta.name == "0.6 My Tune + -0.5 Other"
    assert GGUFFile(out).value("tokenizer.chat_template") == TEMPLATE
    assert {w.name for w in delta.weights} == {w.name for w in DeltaReader(first).weights}
    for weight in delta.weights:
        changed = np.linalg.norm(expected[weight.name] - plain[weight.name])
        lost = np.linalg.norm(expected[weight.name] - got[weight.name])
        # What the file says of its error is what it is, but for the rounding of the sum.
        assert lost <= (weight.error_delta * 1.001 + 1e-5) * changed, weight.name
        assert weight.error_delta < 0.8
    # It is no larger than the two, and a ratio says otherwise.
    assert delta.n_bytes <= DeltaReader(first).n_bytes + DeltaReader(second).n_bytes
    assert main([*command, "--force", "--ratio", "1/3"]) == 0
    assert delta.ratio < DeltaReader(out).ratio <= 1 / 3


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--as-delta", "--outtype", "f32"], "--outtype: is for a merged model"),
        (["--ratio", "1/8"], "--ratio: is for --as-delta"),
        (["--as-delta", "--ratio", "1/1000"], "--ratio"),
        (["--as-delta", "--ratio", "none"], "ratio"),
        (["--as-delta", "--scales", "1"], "--scales: got 1 for 2 deltas"),
        (["--as-delta", "--scales", "1", "nan"], "--scales: got nan, expected finite numbers"),
        (["--as-delta", "--scales", "0", "0"], "nothing to convert: none of the"),
    ],
)
def test_what_becomes_no_delta(
    options: list[str], line: str, deltas: Deltas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*deltas.command, "-o", str(tmp_path / "mix.dq.gguf"), *options]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert line in error
    assert list(tmp_path.iterdir()) == []


def test_a_delta_is_not_replaced_by_the_sum_of_itself(deltas: Deltas) -> None:
    before = deltas.second.read_bytes()
    assert main([*deltas.command, "--as-delta", "--force", "-o", str(deltas.second)]) == 1
    assert deltas.second.read_bytes() == before

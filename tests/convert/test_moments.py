"""convert/moments.py: files of second moments, good and bad, and conversions with them."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dqrelo_gguf.compress.metric import Metric
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.moments import ANSWERS, FORMAT, QUESTION_WEIGHT, TOKENS, Moments, Text, in_parts
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import DqreloError, InputError
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.base import GgufModel
from tests.support.models import pico_gguf, pico_tuned_gguf, read_gguf


def gram(n: int, seed: int = 0) -> torch.Tensor:
    X = torch.randn((3 * n, n), generator=torch.Generator().manual_seed(seed)) * 0.9 ** torch.arange(n)
    H = X.T @ X / len(X)
    return (H + H.T) / 2


def write(path: Path, tensors: dict[str, torch.Tensor], aliases: object = None, **metadata: str) -> Path:
    text = aliases if isinstance(aliases, str) else json.dumps(aliases or {})
    save_file(tensors, path, metadata={"format": FORMAT, "aliases": text} | metadata)
    return path


def test_a_group_has_one_metric(tmp_path: Path) -> None:
    moments = Moments(write(tmp_path / "m", {"q": gram(16), "experts": torch.stack([gram(8), gram(8, 1)])}, {"k": "q"}))
    own, other = moments.metrics("q", 16, 1), moments.metrics("k", 16, 1)
    assert own is not None
    assert other is not None
    assert torch.equal(own[0].H, Metric(gram(16)).H)
    assert other[0] is own[0]
    assert len(moments.metrics("experts", 8, 2) or []) == 2
    assert len(moments.metrics("q", 16, 3) or []) == 3  # a stack whose matrices read the same rows
    assert moments.metrics("unknown", 16, 1) is None
    assert moments.covers("k")
    assert not moments.covers("unknown")


BAD = {
    "text": b"no safetensors",
    "empty": b"",
    "header": (1 << 60).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_file_of_moments(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m"
    path.write_bytes(BAD[name])
    with pytest.raises(InputError, match=r"--calibration .*m: is not a readable safetensors file"):
        Moments(path)
    with pytest.raises(InputError, match=r"--calibration .*missing: no such file or directory"):
        Moments(tmp_path / "missing")


@pytest.mark.parametrize("aliases", ["[", "[1]", '{"k": "missing"}', '{"k": 3}'])
def test_bad_aliases(tmp_path: Path, aliases: str) -> None:
    with pytest.raises(InputError, match="aliases"):
        Moments(write(tmp_path / "m", {"q": gram(8)}, aliases))


@pytest.mark.parametrize("sequence", ["[", "{}", '["missing"]', "3"])
def test_bad_sequences(tmp_path: Path, sequence: str) -> None:
    with pytest.raises(InputError, match="sequence"):
        Moments(write(tmp_path / "m", {"q": gram(8)}, sequence=sequence))


def ints(*rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def test_the_text_of_a_file(tmp_path: Path) -> None:
    """A row a text; one without tokens is none. Rows that lead to an answer count in full."""
    tensors = {"q": gram(8), TOKENS: ints([1, 5, 6, 7], [1, 2, -1, -1], [-1, -1, -1, -1]), ANSWERS: ints(3, 0, 0)}
    texts = Moments(write(tmp_path / "m", tensors, sequence='["q"]')).texts
    assert [t.tokens.tolist() for t in texts] == [[1, 5, 6, 7], [1, 2]]
    assert texts[0].weights.tolist() == pytest.approx([QUESTION_WEIGHT, QUESTION_WEIGHT, 1, 1])
    assert texts[1].weights.tolist() == [1, 1]
    assert Text(np.arange(2, dtype=np.int32), 9).weights.tolist() == pytest.approx([QUESTION_WEIGHT] * 2)


def test_parts_of_a_text() -> None:
    texts = [Text(np.zeros(n, np.int32)) for n in (3, 4, 1, 9, 2)]
    sizes = [[len(text.tokens) for text in part] for part in in_parts(texts, 5)]
    assert sizes == [[3, 4], [1, 9], [2]]
    assert [len(part) for part in in_parts(texts, 1)] == [1] * 5


@pytest.mark.parametrize(
    ("tokens", "answers"),
    [
        (ints([1, -2]), ints(0)),
        (ints([1, 2]).float(), ints(0)),
        (ints([1, 2]).long(), ints(0)),
        (ints(1, 2), ints(0)),
        (ints([1, 2]), ints(0, 0)),
        (ints([1, 2]), ints(-1)),
        (ints([1, 2]), ints(0).float()),
        (torch.zeros((1, (1 << 20) + 1), dtype=torch.int32), ints(0)),
    ],
)
def test_what_is_no_text(tmp_path: Path, tokens: torch.Tensor, answers: torch.Tensor) -> None:
    path = write(tmp_path / "m", {"q": gram(8), TOKENS: tokens, ANSWERS: answers}, sequence='["q"]')
    with pytest.raises(
        InputError, match="'tokens' and 'answers' are no texts of 512 tokens at most each, and 1048576 in all"
    ):
        Moments(path)


def test_a_file_of_an_earlier_version_has_no_text(tmp_path: Path) -> None:
    assert Moments(write(tmp_path / "m", {"q": gram(8)})).texts == []


def test_a_step_has_moments_and_shifts_of_its_own(tmp_path: Path) -> None:
    moments = Moments(write(tmp_path / "m", {"q": gram(16), "o": gram(16, 1)}, {"k": "q"}))
    whole = moments.metrics("o", 16, 1)
    step = moments.with_step({"q": gram(16, 2)}, {"q": torch.eye(16)})
    for name in ("q", "k"):
        found = step.metrics(name, 16, 1)
        assert found is not None
        assert torch.equal(found[0].H, Metric(gram(16, 2)).H)
        assert torch.equal(step.shift(name), torch.eye(16))  # type: ignore[arg-type]
        assert moments.shift(name) is None
    assert step.shift("o") is None
    assert step.shift("unknown") is None
    other = step.metrics("o", 16, 1)
    assert other is not None
    assert whole is not None
    assert torch.equal(other[0].H, whole[0].H)


class Raced(Moments):
    """Another thread puts its own metrics there as soon as one has put some."""

    @property
    def _last(self) -> tuple[str, list[Metric]] | None:  # type: ignore[override]
        return "b", [Metric(gram(16))]

    @_last.setter
    def _last(self, value: object) -> None:
        pass


def test_a_thread_gets_the_metrics_that_it_asked_for(tmp_path: Path) -> None:
    found = Raced(write(tmp_path / "m", {"a": gram(8), "b": gram(16)})).metrics("a", 8, 1)
    assert found is not None
    assert torch.equal(found[0].H, Metric(gram(8)).H)


def test_another_writer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was not written by dqrelo-convert --save-calibration"):
        Moments(write(tmp_path / "m", {"q": gram(8)}, format="other"))


def broken(**changes: float) -> torch.Tensor:
    H = gram(8)
    for place, value in changes.items():
        H[int(place[1]), int(place[2])] = value
    return H


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (broken(_12=float("nan")), "not finite and symmetric"),
        (broken(_11=float("inf")), "not finite and symmetric"),
        (broken(_12=5.0), "not finite and symmetric"),
        (broken(_12=50.0, _21=50.0), "not positive semidefinite"),
        (gram(8)[:, :4].contiguous(), "no square float32 matrix"),
        (gram(8)[0].contiguous(), "no square float32 matrix"),
        (gram(8).double(), "no square float32 matrix"),
        (gram(16), "made with another model"),
        (torch.stack([gram(8)] * 3), "made with another model"),
    ],
)
def test_tensors_that_are_no_moments(tmp_path: Path, tensor: torch.Tensor, reason: str) -> None:
    moments = Moments(write(tmp_path / "m", {"q": tensor}))
    with pytest.raises(InputError, match=reason):
        moments.metrics("q", 8, 1)


def test_a_conversion_loses_less_of_the_outputs(tmp_path: Path) -> None:
    """One weight has moments: its outputs lose less, at the same bytes, and the report says how much."""
    base, tuned = pico_gguf("llama"), pico_tuned_gguf("llama")
    name = "blk.0.ffn_down.weight"
    H = gram(GgufModel(base).shapes[name][0])
    calibration = write(tmp_path / "m", {name: H})
    D = read_gguf(tuned)[name] - read_gguf(base)[name]
    metric = Metric(H).H.double().numpy()
    lost, reports = [], []
    for given in (None, calibration):
        out = tmp_path / "d.dq.gguf"
        reports.append(convert(Job(base, tuned, out, force=True, calibration=given), Options(ratio=Fraction(1, 8))))
        E = (D - DeltaReader(out).reconstruct(name)).astype(np.float64)
        lost.append(float(((E @ metric) * E).sum() / ((D.astype(np.float64) @ metric) * D).sum()) ** 0.5)
    assert lost[1] < 0.95 * lost[0]
    stated = {w.name: w.error_outputs for w in reports[1].weights}
    assert stated[name] == pytest.approx(lost[1], rel=0.02)
    assert {n for n, e in stated.items() if e is not None} == {name}
    assert all(w.error_outputs is None for w in reports[0].weights)
    assert abs(reports[0].n_bytes - reports[1].n_bytes) < 0.01 * reports[0].n_bytes
    assert len(DeltaReader(tmp_path / "d.dq.gguf").options["calibration"]) == 64


@pytest.mark.parametrize(
    ("job", "options", "reason"),
    [
        ({"save_calibration": "x"}, {}, "--save-calibration: needs --calibrate"),
        ({"calibrate": "self", "calibration": "x"}, {}, "give one of them"),
        ({"calibrate": "self"}, {}, "needs the runtime"),
        ({"calibration": "x"}, {"method": "paper"}, "cannot go with --method paper"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, job: dict[str, str], options: dict[str, str], reason: str
) -> None:
    with pytest.raises(DqreloError, match=reason):
        convert(Job(pico_gguf("llama"), pico_tuned_gguf("llama"), tmp_path / "d.dq.gguf", **job), Options(**options))
    assert list(tmp_path.iterdir()) == []

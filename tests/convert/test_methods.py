"""The methods by name: what each stores, what that costs, and which options it takes."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.methods import METHODS
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.convert.planners import plan_stages
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.model.parts import module_of
from tests.support.models import pico_gguf, pico_tuned_gguf, read_gguf, rewrite_gguf
from tests.support.programs import need_test_program

NAMES = [name for name, method in METHODS.items() if method.keeps is None]
# What the smallest models pay for: their vectors and scales are a larger part of them.
RATIO = Fraction(1, 4)


def sized(name: str) -> Options:
    """The method at the tests' ratio, or at its own size."""
    return Options(method=name, ratio=RATIO if "--ratio" in METHODS[name].takes else None)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize("name", NAMES)
def test_a_delta_of_every_method(name: str, kind: str, tmp_path: Path) -> None:
    """Both readers take it, its errors are those of its numbers, and it costs what was asked for."""
    base, tuned, out = pico_gguf(kind), pico_tuned_gguf(kind), tmp_path / "d.dq.gguf"
    result = convert(Job(base, tuned, out), sized(name))
    reader = DeltaReader(out)
    reader.verify()
    done = subprocess.run([need_test_program("dqrelo-check-file"), out, base], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert reader.meta(fmt.KEY_METHOD) == name
    plain, target = read_gguf(base), read_gguf(tuned)
    for w in reader.weights:
        D = (target[w.name] - plain[w.name]).astype(np.float64)
        measured = np.linalg.norm(D - reader.reconstruct(w.name)) / np.linalg.norm(D)
        assert w.error_delta == pytest.approx(measured, abs=1e-4), w.name
        assert measured < 1, w.name
    n_full = 2 * sum(w.size for w in plain.values())
    assert result.ratio == pytest.approx(reader.n_bytes / n_full)
    if "--ratio" in METHODS[name].takes:
        assert 0.9 * RATIO < result.ratio <= RATIO


def test_noise_is_stored_as_planes_of_one_scale_each(tmp_path: Path) -> None:
    """Nothing else buys anything: two planes are two bits a number, and their scales next to nothing."""
    base, out, rng = pico_gguf("llama"), tmp_path / "d.dq.gguf", np.random.default_rng(0)
    plain = read_gguf(base)
    noise = {n: (0.01 * rng.standard_normal(w.shape)).astype(np.float32) for n, w in plain.items() if w.ndim > 1}
    tuned = rewrite_gguf(base, tmp_path / "t.gguf", {n: plain[n] + D for n, D in noise.items()})
    result = convert(Job(base, tuned, out), Options(ratio=Fraction(1, 7)))
    assert result.ratio <= Fraction(1, 7)
    reader, target = DeltaReader(out), read_gguf(tuned)
    reader.verify()
    done = subprocess.run([need_test_program("dqrelo-check-file"), out, base], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    alone = [w for w in reader.weights if w.n_planes > 0 and w.scale_per_row == (False,) * w.n_planes]
    assert len(alone) >= 0.9 * len(noise)
    for w in alone:
        D = (target[w.name] - plain[w.name]).astype(np.float64)
        measured = np.linalg.norm(D - reader.reconstruct(w.name)) / np.linalg.norm(D)
        assert w.error_delta == pytest.approx(measured, abs=1e-4), w.name
        if w.n_planes == 2:
            assert measured < 0.36, w.name
    assert any(w.n_planes == 2 for w in alone)


@pytest.mark.parametrize("name", [n for n in NAMES if METHODS[n].stages])
def test_planes_and_ranks_follow_the_stages(name: str) -> None:
    pairs = [Pair(f"blk.0.{n}.weight", ne, n) for n, ne in {"attn_q": (512, 512), "ffn_up": (512, 1024)}.items()]
    for p in plan_stages(pairs, sized(name)):
        stages = METHODS[name].stages
        assert p.spec.n_planes == stages.count("sign")
        assert (p.spec.rank > 0) is ("svd" in stages)
        assert not p.spec.scale_per_row
        assert not p.spec.cscale


@pytest.mark.parametrize(("name", "n_planes"), [("bitdelta", 1), ("sign-sign", 2)])
def test_a_method_of_signs_has_one_size(name: str, n_planes: int) -> None:
    (p,) = plan_stages([Pair("w", (1024, 1024), "w")], Options(method=name))
    assert p.spec.n_bytes == n_planes * (1024 * 1024 // 8 + 4)


def test_svd_takes_the_bytes_of_the_signs_for_ranks() -> None:
    pairs = [Pair("w", (1024, 1024), "w")]
    ranks = [plan_stages(pairs, Options(method=m))[0].spec.rank for m in ("paper", "svd-sign", "svd")]
    assert ranks == [31, 31, 64]  # 1/16 less a scale, and 1/8, of 2 x 1024 x 1024 bytes, by 2 x 2 x 1024 a rank


def test_a_small_weight_keeps_the_least_rank() -> None:
    """Its share would be no whole rank, and a weight of no rank is nothing that a file can hold."""
    pairs = [Pair("small", (1024, 8), "small"), Pair("large", (2048, 2048), "large")]
    ranks = [p.spec.rank for p in plan_stages(pairs, Options(method="svd", ratio=Fraction(1, 20)))]
    assert ranks == [1, 51]


def test_lora_is_the_linear_projections_at_one_rank(tmp_path: Path) -> None:
    base, out = pico_gguf("llama"), tmp_path / "d.dq.gguf"
    result = convert(Job(base, pico_tuned_gguf("llama"), out), Options(method="lora", rank=3))
    plain = read_gguf(base)
    linear = {n for n, w in plain.items() if w.ndim == 2 and module_of(n) in ("attn", "mlp")}
    reader = DeltaReader(out)
    assert {w.name for w in reader.weights} == linear
    assert {"blk.0.attn_q.weight", "blk.1.ffn_down.weight"} <= linear
    assert {w.rank for w in reader.weights} == {3}
    assert reader.n_bytes == sum(2 * 3 * sum(plain[n].shape) for n in linear)
    assert set(result.not_carried) == set(plain) - linear
    assert any(line.startswith("left out  ") and "by the method" in line for line in result.summary())


def test_lora_of_a_ratio_has_the_largest_rank_that_fits() -> None:
    pairs = [
        Pair("token_embd.weight", (256, 4096), "e"),
        Pair("blk.0.attn_q.weight", (256, 256), "q"),
        Pair("blk.0.attn_k.weight", (256, 32), "k"),
    ]
    n_full = 2 * 256 * (4096 + 256 + 32)
    planned = plan_stages(pairs, Options(method="lora", ratio=Fraction(1, 20)))
    assert [p.spec.rank for p in planned] == [min(rank := planned[0].spec.rank, 256), min(rank, 32)]
    spent = sum(p.spec.n_bytes for p in planned)
    assert spent <= n_full / 20 < spent + 2 * 512


def test_a_rank_equation_that_gives_nothing_is_refused() -> None:
    pairs = [Pair("small", (1024, 8), "small"), Pair("large", (2048, 2048), "large")]
    with pytest.raises(InputError, match="the rank equation gives small no rank"):
        plan_stages(pairs, Options(method="svd", vectors="paper"))


@pytest.mark.parametrize("name", NAMES)
def test_options_are_recorded(name: str) -> None:
    recorded = sized(name).as_metadata()
    assert recorded["ratio"] == "1/4" if "--ratio" in METHODS[name].takes else "ratio" not in recorded
    assert ("svd" in recorded) is ("--svd" in METHODS[name].takes)


def test_an_unknown_method_is_named_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match="--method gzip: unknown, expected one of best, paper, svd"):
        Options(method="gzip")


def test_report_of_a_method_without_a_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "d.dq.gguf"
    arguments = [str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(out), "--json", "-"]
    assert main([*arguments, "--method", "bitdelta"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ratio"] == pytest.approx(DeltaReader(out).ratio)
    assert {w["n_planes"] for w in report["weights"]} == {0, 1}

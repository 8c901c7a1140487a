"""The methods that prune: the merged model that they write, what they are charged, and what they refuse."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.compress.pruning import pruned_bytes
from dqrelo_gguf.convert.imatrix import Imatrix
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.methods import METHODS
from dqrelo_gguf.convert.moments import FORMAT
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import DqreloError, InputError
from dqrelo_gguf.model.base import GgufModel
from tests.support.models import Floats, pico_gguf, pico_tuned_gguf, read_gguf, rewrite_gguf

NAMES = [name for name, method in METHODS.items() if method.keeps is not None]
FFN = "blk.0.ffn_down.weight"
RATIO = Fraction(1, 4)


def write_imatrix(path: Path, entries: dict[str, tuple[Floats, Floats]], kind: str = "imatrix") -> Path:
    """An importance matrix as llama-imatrix writes it: of each weight the sums (n_mat, n_in) and the counts (n_mat,)."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type(kind)
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def imatrix(path: Path, base: Path, leave_out: str = "token_embd") -> tuple[Path, dict[str, Floats]]:
    """An importance matrix of all matrices but one, and the root mean squares that it stands for."""
    rng, entries, norms = np.random.default_rng(0), {}, {}
    for name, w in read_gguf(base).items():
        if w.ndim > 1 and leave_out not in name:
            n_mat = 1 if w.ndim == 2 else len(w)
            norms[name] = rng.exponential(size=(n_mat, w.shape[-1])).astype(np.float32)
            counts = rng.integers(1, 9, n_mat).astype(np.float32)
            entries[name] = norms[name] ** 2 * counts[:, None], counts
    return write_imatrix(path, entries), norms


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
@pytest.mark.parametrize("name", NAMES)
def test_the_merged_model_has_base_plus_what_is_kept(name: str, kind: str, tmp_path: Path) -> None:
    base, tuned, out = pico_gguf(kind), pico_tuned_gguf(kind), tmp_path / "m.gguf"
    given = {"imatrix": imatrix(tmp_path / "i.gguf", base)[0]} if name == "wanda" else {}
    result = convert(Job(base, tuned, out, **given), Options(method=name, ratio=RATIO))
    plain, target, merged = read_gguf(base), read_gguf(tuned), read_gguf(out)
    assert list(merged) == list(plain)
    assert 0.98 * RATIO < result.ratio <= RATIO
    kept = {p.spec.name: p.n_kept for p in result.planned}
    stated = {w.name: w.error_delta for w in result.weights}
    n_bytes = 0
    for n, w in plain.items():
        D, D_hat = (x.astype(np.float64) - w for x in (target[n], merged[n]))
        k = kept[n]
        if k is None:
            assert w.size < 1024 or w.ndim == 1
            assert np.array_equal(merged[n], target[n])
            n_bytes += 4 * w.size
            continue
        matrices = D_hat.reshape(-1, *w.shape[-2:])
        # What is kept moves the weight by more than the rounding of the merged model to F16; D may be smaller than that.
        moved = [int(np.count_nonzero(np.abs(m) > 2.0**-11 * np.abs(w).max())) for m in matrices]
        assert all(0.8 * k <= m <= k for m in moved), (n, k, moved)
        n_bytes += len(matrices) * pruned_bytes(k, *w.shape[-2:], name == "random")
        assert stated[n] == pytest.approx(np.linalg.norm(D - D_hat) / np.linalg.norm(D), abs=5e-3)
    assert result.n_bytes == n_bytes
    assert result.n_file_bytes == out.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == (["i.gguf", "m.gguf"] if given else ["m.gguf"])


def test_the_merged_model_is_f16_and_the_fine_tunes(tmp_path: Path) -> None:
    fields = {"general.name": "My Tune", "tokenizer.ggml.eos_token_id": 7}
    tuned = rewrite_gguf(pico_tuned_gguf("llama"), tmp_path / "t.gguf", fields=fields)
    out = tmp_path / "m.gguf"
    convert(Job(pico_gguf("llama"), tuned, out), Options(method="magnitude", ratio=RATIO))
    reader = gguf.GGUFReader(out)
    assert {t.tensor_type.name for t in reader.tensors if sum(n > 1 for n in t.shape.tolist()) > 1} == {"F16"}
    assert reader.fields["general.name"].contents() == "My Tune"
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == 7
    assert not [key for key in reader.fields if key.startswith(("dqrelo.", "adapter."))]


def test_random_depends_on_the_name_alone(tmp_path: Path) -> None:
    files = []
    for n_threads in (1, 2):
        out = tmp_path / f"{n_threads}.gguf"
        job = Job(pico_gguf("llama"), pico_tuned_gguf("llama"), out, n_threads=n_threads)
        convert(job, Options(method="random", ratio=RATIO))
        files.append(out.read_bytes())
    assert files[0] == files[1]
    plain, merged = read_gguf(pico_gguf("llama")), read_gguf(tmp_path / "1.gguf")
    moved = [merged[f"blk.{i}.ffn_up.weight"] != plain[f"blk.{i}.ffn_up.weight"] for i in (0, 1)]
    assert not np.array_equal(*moved)


def test_wanda_takes_the_moments_of_a_calibration_for_the_same(tmp_path: Path) -> None:
    """The diagonal of the moments is what an importance matrix has."""
    base, tuned = pico_gguf("llama"), pico_tuned_gguf("llama")
    path, norms = imatrix(tmp_path / "i.gguf", base)
    moments = tmp_path / "m"
    tensors = {n: torch.diag(torch.from_numpy(x[0]) ** 2) for n, x in norms.items()}
    save_file(tensors, moments, metadata={"format": FORMAT, "aliases": "{}"})
    outs, options = [tmp_path / "a.gguf", tmp_path / "b.gguf"], Options(method="wanda", ratio=RATIO)
    first = convert(Job(base, tuned, outs[0], imatrix=path), options)
    second = convert(Job(base, tuned, outs[1], calibration=moments), options)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    for result in (first, second):
        (note,) = (n for n in result.notes if "no inputs" in n)
        assert note == "no inputs are known of token_embd.weight: each row keeps its largest entries"
    plain, target, merged = (read_gguf(p)[FFN] for p in (base, tuned, outs[0]))
    scores = np.abs(target - plain) * norms[FFN]
    kept = np.abs(merged - plain) > 1e-3
    for row, mask in zip(scores, kept, strict=True):
        assert row[mask].min() >= 0.95 * np.sort(row)[-int(first.planned[0].n_kept or 0) :].min()


def test_an_expert_that_no_token_reached_has_inputs_of_one(tmp_path: Path) -> None:
    sums = np.array([[4, 8, 0], [0, 0, 0]], np.float32)
    path = write_imatrix(tmp_path / "i.gguf", {"w": (sums, np.array([4, 0], np.float32))})
    norms = Imatrix(path).input_norms("w", 3, 2)
    assert norms is not None
    assert np.allclose(np.stack([n.numpy() for n in norms]), [[1, 2**0.5, 0], [1, 1, 1]])
    assert Imatrix(path).input_norms("v", 3, 2) is None


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("sums", "counts", "reason"),
    [
        (np.ones((1, 4), np.float32), ONE, "'w.in_sum2' is missing, or not F32 of 3x1"),
        (np.ones((1, 3), np.float64), ONE, "'w.in_sum2' is missing, or not F32 of 3x1"),
        (np.ones((1, 3), np.float32), np.ones(2, np.float32), "'w.counts' is missing, or not F32 of 1x1"),
        (np.array([[1, np.nan, 1]], np.float32), ONE, "'w.in_sum2' has a number that is no sum of squares"),
        (np.array([[1, -1, 1]], np.float32), ONE, "'w.in_sum2' has a number that is no sum of squares"),
        (np.ones((1, 3), np.float32), np.array([np.inf], np.float32), "'w.counts' has a number"),
    ],
)
def test_tensors_that_are_no_importance_matrix(tmp_path: Path, sums: Any, counts: Any, reason: str) -> None:
    path = write_imatrix(tmp_path / "i.gguf", {"w": (sums, counts)})
    with pytest.raises(InputError, match=reason):
        Imatrix(path).input_norms("w", 3, 1)


def test_files_that_are_no_importance_matrix(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--imatrix .*: was not written by llama-imatrix"):
        Imatrix(write_imatrix(tmp_path / "i.gguf", {}, kind="model"))
    with pytest.raises(InputError, match=r"--imatrix .*missing: no such file"):
        Imatrix(tmp_path / "missing")
    (tmp_path / "text").write_text("text")
    with pytest.raises(DqreloError):
        Imatrix(tmp_path / "text")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--method", "random", "-o", "m.dq.gguf"], "m.dq.gguf: --method random writes a merged model and no delta"),
        (["--method", "magnitude", "-o", "m.bin"], "m.bin: --method magnitude writes a merged model and no delta"),
        (["--method", "wanda", "-o", "m.gguf"], "--method wanda: needs what the weights multiply. Give one of --cal"),
        (["--method", "random", "-o", "m.gguf", "--imatrix", "x"], "--imatrix: cannot go with --method random"),
        (["--method", "best", "-o", "m.dq.gguf", "--imatrix", "x"], "--imatrix: cannot go with --method best"),
        (["--method", "magnitude", "-o", "m.gguf", "--ratio", "1/1000"], "--ratio 0.00100: the vectors and the places"),
        (
            ["--method", "wanda", "-o", "m.gguf", "--imatrix", "x", "--calibration", "y"],
            "--calibration, --imatrix: give one of them",
        ),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    arguments: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, tuned = pico_gguf("llama"), pico_tuned_gguf("llama")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main([str(base), str(tuned), *arguments]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("checking:")]
    assert len(errors) == 1
    assert errors[0].startswith(f"dqrelo-convert: error: {reason}")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.gguf"
    arguments = [str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(out), "--method", "magnitude"]
    capsys.readouterr()
    assert main([*arguments, "--ratio", "1/4", "--dry-run", "--json", "-"]) == 0
    dry = json.loads(capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--ratio", "1/4", "--plan", "--json", str(tmp_path / "r.json")]) == 0
    text = capsys.readouterr().out
    wet = json.loads((tmp_path / "r.json").read_text())
    assert dry["is_merged"]
    assert wet["is_merged"]
    assert [w.get("n_kept") for w in dry["weights"]] == [w.get("n_kept") for w in wet["weights"]]
    assert dry["n_bytes"] == wet["n_bytes"] == sum(w["n_bytes"] for w in wet["weights"])
    assert 0 <= wet["n_file_bytes"] - dry["n_file_bytes"] < 1 << 16
    assert "bytes are charged for values and places" in text
    assert " kept" in text


def test_a_reference_is_what_the_delta_is_against(tmp_path: Path) -> None:
    base = rewrite_gguf(pico_gguf("llama"), tmp_path / "b.gguf", {}, {"": "Q8_0", "norm": "F32"})
    job = Job(base, pico_tuned_gguf("llama"), tmp_path / "m.gguf", reference=pico_gguf("llama"))
    convert(job, Options(method="magnitude", ratio=RATIO))
    assert GgufModel(tmp_path / "m.gguf").type_of("token_embd.weight") == "F16"

"""LoRA adapters as delta files: the same numbers in the narrowest type, from both forms of an adapter, by every command."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.cli.inspect import main as inspect
from dqrelo_gguf.cli.merge import main as merge
from dqrelo_gguf.convert.adapter import exact_type
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import DqreloError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.layout import Type
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.model.pairing import Selection
from tests.support.adapters import merged_directory, projections, upstreams_gguf, write_adapter
from tests.support.models import convert_hf, pico, pico_gguf, read_gguf
from tests.support.programs import need_test_program

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
HEAD, NORM = "lm_head.weight", "model.norm.weight"


def llama_adapter(path: Path, **options: Any) -> Path:
    return write_adapter(path, pico("llama"), projections(pico("llama")), **options)


def run(*argv: object) -> int:
    return main([str(a) for a in argv])


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gemma3"])
def test_both_forms_of_an_adapter_are_the_same_delta(kind: str, tmp_path: Path) -> None:
    """PEFT's directory, and what convert_lora_to_gguf.py makes of it: with the embedding, whose factors a GGUF turns round."""
    model, base = pico(kind), pico_gguf(kind)
    modules = projections(model) + (["model.embed_tokens"] if kind == "llama" else [])
    adapter = write_adapter(tmp_path / "adapter", model, modules)
    gguf = upstreams_gguf(adapter, model, tmp_path / "lora.gguf")
    files = [tmp_path / "peft.dq.gguf", tmp_path / "gguf.dq.gguf"]
    for source, file in zip((adapter, gguf), files, strict=True):
        convert(Job(base, source, file))
    one, other = map(DeltaReader, files)
    assert one.content_hash == other.content_hash
    merged = convert_hf(merged_directory(model, adapter, tmp_path / "hf"), tmp_path / "merged.gguf", "ALL_F32")
    f32 = convert_hf(model, tmp_path / "base-f32.gguf", "ALL_F32")
    before, after = read_gguf(f32), read_gguf(merged)
    assert {w.name for w in one.weights} == {n for n in after if not np.array_equal(after[n], before[n])}
    for w in one.weights:
        D = after[w.name].astype(np.float64) - before[w.name]
        assert np.linalg.norm(D - one.reconstruct(w.name)) <= 1e-5 * np.linalg.norm(D), w.name
        assert w.error_delta == w.error_weight == 0


def test_the_file_is_a_delta_of_version_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out = pico_gguf("llama"), tmp_path / "x.dq.gguf"
    adapter = llama_adapter(tmp_path / "adapter")
    assert run(base, adapter, "-o", out, "--ratio", "1/16", "--plan") == 0
    report = capsys.readouterr().out
    assert "LoRA adapter, rank 4, 14 weights" in report
    assert "--ratio: not applied, an adapter's factors are stored as they are" in report
    reader = DeltaReader(out)
    reader.verify()
    assert (reader.meta(fmt.KEY_VERSION), reader.meta(fmt.KEY_METHOD)) == (2, "adapter")
    assert reader.name == "adapter"
    assert reader.options == {"include": None, "exclude": None, "layers": None, "modules": None, "rank": "4"}
    done = subprocess.run([need_test_program("dqrelo-check-file"), out, base], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert inspect([str(out), "--check", str(base), "--verify"]) == 0
    assert "LoRA adapter, rank 4, 14 weights" in capsys.readouterr().out
    assert merge([str(base), str(out), "-o", str(tmp_path / "merged.gguf"), "--outtype", "f32"]) == 0
    merged, plain = read_gguf(tmp_path / "merged.gguf"), read_gguf(base)
    for w in reader.weights:
        expected = plain[w.name] + reader.reconstruct(w.name)
        assert np.allclose(merged[w.name], expected, rtol=1e-5, atol=1e-6), w.name


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    out, report = tmp_path / "x.dq.gguf", tmp_path / "r.json"
    assert run(pico_gguf("llama"), llama_adapter(tmp_path / "a"), "-o", out, "--dry-run", "--json", report) == 0
    assert not out.exists()
    assert json.loads(report.read_text())["weights"][0]["rank"] == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("alpha", [8, 5.2])
def test_numbers_stay_what_they_are(dtype: torch.dtype, alpha: float, tmp_path: Path) -> None:
    """V is the file's A in its type; so is U where the scale is a power of two, and in F32 otherwise."""
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [DOWN], dtype=dtype, lora_alpha=alpha)
    convert(Job(pico_gguf("llama"), adapter, tmp_path / "x.dq.gguf"))
    reader = DeltaReader(tmp_path / "x.dq.gguf")
    (w,) = reader.weights
    own = {torch.float16: (Type.F16,), torch.bfloat16: (Type.BF16, Type.F16), torch.float32: (Type.F32,)}[dtype]
    assert w.v_type in own
    assert w.u_type in (own if alpha == 8 else (Type.F32,))
    tensors = {n.rpartition("lora_")[2]: t.float() for n, t in load_file(adapter / "adapter_model.safetensors").items()}
    product = (tensors["B.weight"] * (alpha / 4)) @ tensors["A.weight"]
    assert np.allclose(reader.reconstruct(w.name), product.numpy(), rtol=1e-5, atol=1e-7)


def test_the_narrowest_type_that_is_exact() -> None:
    def typed(*values: float) -> Type:
        return exact_type(np.array([values], np.float32))

    assert typed(0.5, -3, 65504) == Type.F16
    assert typed(65536.0) == typed(2.0**-30) == Type.BF16
    assert typed(1 + 2.0**-12) == typed(65536.0, 1 + 2.0**-9) == Type.F32


def test_a_rank_above_the_smaller_side(tmp_path: Path) -> None:
    """A router has a row an expert: its delta has the rank of that, and is the same product."""
    router = "model.layers.0.block_sparse_moe.gate"
    module = next((m for m in projections(pico("mixtral")) if m.endswith(".gate")), router)
    adapter = write_adapter(tmp_path / "adapter", pico("mixtral"), [module], ranks={module: 16}, r=16)
    convert(Job(pico_gguf("mixtral"), adapter, tmp_path / "x.dq.gguf"))
    reader = DeltaReader(tmp_path / "x.dq.gguf")
    (w,) = reader.weights
    assert (w.ne[:2], w.rank) == ((64, 4), 4)
    a, b = (t.float() for _, t in sorted(load_file(adapter / "adapter_model.safetensors").items()))
    assert np.allclose(reader.reconstruct(w.name), (8 / 16 * b @ a).numpy(), rtol=1e-4, atol=1e-6)


def test_whole_matrices_are_compressed_beside_factors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(pico("llama") / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    head = weights[HEAD].float()
    extra = {HEAD: head + 0.2 * head.std() * torch.randn(head.shape, generator=generator), NORM: weights[NORM] * 1.5}
    adapter = llama_adapter(tmp_path / "adapter", extra=extra)
    out = tmp_path / "x.dq.gguf"
    assert run(pico_gguf("llama"), adapter, "-o", out, "--ratio", "1/4", "--json", tmp_path / "r.json") == 0
    assert "not applied" not in capsys.readouterr().out
    reader = DeltaReader(out)
    by_name = {w.name: w for w in reader.weights}
    assert by_name["output_norm.weight"].dense_type == Type.F32
    output = by_name["output.weight"]
    assert 0.9 / 4 < output.n_bytes / (2 * output.n_elements) <= 1 / 4
    assert 0 < output.error_delta < 1
    assert by_name["blk.0.attn_q.weight"].error_delta == 0
    assert (reader.options["method"], reader.options["ratio"]) == ("best", "1/4")


def test_weights_are_chosen_by_name(tmp_path: Path) -> None:
    result = convert(
        Job(pico_gguf("llama"), llama_adapter(tmp_path / "a"), tmp_path / "x.dq.gguf"),
        Options(selection=Selection.of("attn_q", None)),
    )
    assert [p.spec.name for p in result.planned] == ["blk.0.attn_q.weight", "blk.1.attn_q.weight"]
    assert len(result.excluded) == 12


def test_weights_that_do_not_change_are_left_out(tmp_path: Path) -> None:
    zero = {f"{Q}.lora_A.weight": torch.ones(4, 64), f"{Q}.lora_B.weight": torch.zeros(64, 4)}
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [DOWN], extra=zero)
    result = convert(Job(pico_gguf("llama"), adapter, tmp_path / "x.dq.gguf"))
    assert result.identical == ["blk.0.attn_q.weight"]
    assert [p.spec.name for p in result.planned] == ["blk.1.ffn_down.weight"]
    empty = write_adapter(tmp_path / "empty", pico("llama"), [], extra=zero)
    with pytest.raises(DqreloError, match="nothing to convert"):
        convert(Job(pico_gguf("llama"), empty, tmp_path / "y.dq.gguf"))


@pytest.mark.parametrize("argv", [["--layers", "0-0"], ["--modules", "attn"], ["--method", "magnitude"]])
def test_options_that_an_adapter_cannot_have(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("x.gguf" if "--method" in argv else "x.dq.gguf")
    assert run(pico_gguf("llama"), llama_adapter(tmp_path / "adapter"), "-o", out, *argv) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert argv[0] in error
    assert not out.exists()


def test_a_base_configuration_is_for_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (pico_gguf("llama"), pico("llama"), "-o", tmp_path / "x.dq.gguf", "--base-config", pico("llama"))
    assert run(*argv) == 1
    assert "--base-config: is for a LoRA adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "modules", "config", "error"),
    [
        ("llama", [DOWN], {"lora_alpha": 1e6}, "cosine|times as large"),
        ("llama", [DOWN], {"lora_alpha": 1e29}, "cosine|times as large|NaN or infinite"),
        ("qwen2", ["model.layers.1.mlp.down_proj"], {}, None),
        ("mixtral", [m for m in projections(pico("mixtral")) if "experts" in m], {}, "experts|lacks"),
    ],
)
def test_an_adapter_of_another_base_or_scale(
    kind: str, modules: list[str], config: dict[str, Any], error: str | None, tmp_path: Path
) -> None:
    """Names and shapes tell bases apart, and sizes tell scales apart; a weight that both have cannot be told apart."""
    adapter = write_adapter(tmp_path / "adapter", pico(kind), modules, **config)
    job = Job(pico_gguf("llama"), adapter, tmp_path / "x.dq.gguf")
    if error is None:
        assert len(convert(job).planned) == len(modules)
    else:
        with pytest.raises(DqreloError, match=error) as problem:
            convert(job)
        assert "\n" not in str(problem.value)
        assert not job.output_files()[0].exists()


def test_another_shape_is_refused(tmp_path: Path) -> None:
    pair = {f"{Q}.lora_A.weight": torch.ones(4, 128), f"{Q}.lora_B.weight": torch.ones(64, 4)}
    adapter = write_adapter(tmp_path / "adapter", pico("llama"), [DOWN], extra=pair)
    with pytest.raises(DqreloError, match=r"blk.0.attn_q.weight: base is 64x64, fine-tune is 128x64"):
        convert(Job(pico_gguf("llama"), adapter, tmp_path / "x.dq.gguf"))

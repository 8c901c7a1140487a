"""dqrelo-inspect: what it prints, and its one line for everything that is not a sound delta."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dqrelo_gguf.cli.inspect import main
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.layout import DENSE_TYPES, FACTOR_TYPES, WeightSpec, type_name
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.delta_files import BASE_TENSORS, SPECS, Edited, Type, meta, write_base, write_delta
from tests.support.trio import Trio


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a failing run prints."""
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dqrelo-inspect: error: ")
    assert err.count("\n") == 1
    return err


# --- what it prints ---


def test_text_says_what_it_is(small_delta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(small_delta)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "a D-QReLO delta, version 1" in out
    assert f"base       base (llama), digest {DeltaReader(small_delta).base.digest}" in out
    assert "6 compressed, 2 dense, rank 0 to 32" in out
    assert f"content    {DeltaReader(small_delta).content_hash}" in out
    assert "blk.*.attn_k" in out
    assert max(len(line) for line in out.splitlines() if not line.startswith(("file", "base", "content"))) <= 80


def test_text_and_json_say_what_is_sparse(small_sparse_delta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(small_sparse_delta), "--verify"]) == 0
    assert "1 compressed, 1 dense, rank 0 to 0; 6 sparse, 10.7 % of their elements" in capsys.readouterr().out
    assert main([str(small_sparse_delta), "--json"]) == 0
    weights = json.loads(capsys.readouterr().out)["weights"]
    assert [(w["n_entries"], w["entry_type"]) for w in weights[:3]] == [(200, "i8"), (600, "i8"), (700, "bf16")]
    assert (weights[5]["n_entries"], weights[5]["entry_type"]) == (0, None)


def test_json_holds_every_weight(small_delta: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(small_delta), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [w["name"] for w in document["weights"]] == [s.name for s in SPECS]
    weight = document["weights"][2]
    assert weight["ne"] == [64, 16]
    assert weight["v_type"] == "q4_0"
    assert weight["dense_type"] is None
    assert document["options"] == {"ratio": "1/8", "seed": 0}
    assert document["token_ids"] == {"tokenizer.ggml.eos_token_id": 2}
    assert sum(k["n_bytes"] for k in document["kinds"]) == document["n_bytes"]
    assert "check" not in document


@pytest.mark.parametrize("stored", FACTOR_TYPES, ids=type_name)
def test_json_names_every_type(tmp_path: Path, capsys: pytest.CaptureFixture[str], stored: Type) -> None:
    factors = WeightSpec("w", (64, 8), rank=1, u_type=Type.F32, v_type=stored)
    dense = [WeightSpec.dense(type_name(t), (8,), t) for t in DENSE_TYPES]
    write_delta(tmp_path / "a.dq.gguf", [factors, *dense])
    assert main([str(tmp_path / "a.dq.gguf"), "--json"]) == 0
    weights = json.loads(capsys.readouterr().out)["weights"]
    assert weights[0]["v_type"] == type_name(stored)
    assert [w["dense_type"] for w in weights] == [None, "f32", "f16"]
    assert [w["u_type"] for w in weights[1:]] == [None, None]


NAME = "Ünïcode-日本-\U0001f600"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("option", ["", "--json"])
def test_every_name_can_be_printed_everywhere(tmp_path: Path, encoding: str, option: str) -> None:
    """Also that of a file whose name is no text."""
    path = tmp_path / os.fsdecode(b"\xff.dq.gguf")
    write_delta(path, [SPECS[0]], meta(name=NAME, base_name="\u20ac"))
    done = subprocess.run(
        [sys.executable, "-m", "dqrelo_gguf.cli.inspect", path, *option.split()],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    out = done.stdout.decode(encoding)
    if option:
        assert json.loads(out)["name"] == NAME
        assert json.loads(out)["file"] == str(path)
    else:
        escaped = "".join(c if c.encode(encoding, "ignore") else json.dumps(c).strip('"') for c in NAME)
        assert f"name       {escaped}" in out


def test_an_error_can_be_printed_everywhere(tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.dq.gguf"
    path.write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-m", "dqrelo_gguf.cli.inspect", path],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "\\u65e5\\u672c" in done.stderr
    assert done.stderr.count("\n") == 1


def test_names_from_the_file_are_not_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = WeightSpec("[bold]w[/bold]", (64, 4))
    write_delta(tmp_path / "a.dq.gguf", [spec], meta(name="[red]x\n\ny[/red]\x1b[2J"))
    assert main([str(tmp_path / "a.dq.gguf")]) == 0
    out = capsys.readouterr().out
    assert "[bold]w[/bold]" in out
    assert "[red]x y[/red]?[2J" in out


# --- what a fine-tune changed ---


def test_stats_are_a_row_a_kind_and_all(trio: Trio, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--stats", str(trio.base), str(trio.tuned)]) == 0
    out, _ = capsys.readouterr()
    rows = [line.split()[0] for line in out.splitlines() if line.startswith((" blk", " token", " output", " all"))]
    assert rows[-1] == "all"
    assert "blk.*.attn_output" in rows
    assert "entropy" in out
    assert max(map(len, out[: out.index("mean |D|: ")].splitlines())) <= 80


def test_stats_as_json(trio: Trio, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--stats", str(trio.base), str(trio.tuned), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["all"]["n_weights"] == len(document["weights"])
    assert document["weights"][0]["magnitude"] > 0
    assert {row["entropy"] for row in document["kinds"] if "norm" in row["name"]} == {None}


def test_stats_of_another_model_are_refused(
    trio: Trio, small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--stats", str(trio.base), str(tmp_path / "none")]) == 1
    assert "none: no such file or directory, expected a Hugging Face directory or a GGUF" in capsys.readouterr().err
    assert main(["--stats", str(trio.base), str(small_base)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    "argv", [[], ["a.dq.gguf", "--stats", "b", "c"], ["--stats", "b", "c", "--verify"], ["--stats", "b"]]
)
def test_a_delta_or_two_models(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: dqrelo-inspect" in capsys.readouterr().err


# --- checks ---


def test_check_and_verify_report_success(
    small_delta: Path, small_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(small_delta), "--check", str(small_base), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "all 34 tensors have their declared SHA-256" in out
    assert "same file (correlation 1.0000)" in out


def test_check_accepts_another_quantisation_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = BASE_TENSORS[:5]
    original = write_base(tmp_path / "f32.gguf", all_type=Type.F32, tensors=tensors)
    again = write_base(tmp_path / "q8.gguf", all_type=Type.F16, tensors=tensors)
    write_delta(tmp_path / "a.dq.gguf", SPECS[:3], meta(base_identity(original)))
    assert main([str(tmp_path / "a.dq.gguf"), "--json", "--check", str(again)]) == 0
    assert json.loads(capsys.readouterr().out)["check"]["match"] == "same model, other bytes"


def test_check_fails_for_another_model(small_delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_base(tmp_path / "other.gguf", seed=5, all_type=Type.F32)
    assert "another model" in refused(capsys, str(small_delta), "--check", str(other))


def test_verify_names_the_damaged_tensor(small_delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited = Edited(small_delta)
    edited.data[0] ^= 1
    path = edited.save(tmp_path / "a.dq.gguf")
    assert main([str(path)]) == 0
    capsys.readouterr()
    assert "damaged: the data of 'token_embd.weight.dq_sign'" in refused(capsys, str(path), "--verify")


# --- what is no delta ---


def test_a_model_is_named(small_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "base.gguf: is a model (architecture llama), not a delta file" in refused(capsys, str(small_base))


def test_a_lora_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {
        "general.type": GGUFValue("adapter", ValueType.STRING),
        "adapter.type": GGUFValue("lora", ValueType.STRING),
    }
    path = write_base(tmp_path / "lora.gguf", fields=fields)
    assert "lora.gguf: is a LoRA adapter, not a delta file" in refused(capsys, str(path))


def test_a_random_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x00\x01binary")
    assert "a.bin: is not a GGUF file" in refused(capsys, str(tmp_path / "a.bin"))


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.gguf: no such file" in refused(capsys, str(tmp_path / "none.gguf"))


def test_a_missing_base_is_named(small_delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.gguf: no such file" in refused(capsys, str(small_delta), "--check", str(tmp_path / "none.gguf"))


def test_help_needs_no_numpy_and_fits_80_columns() -> None:
    code = (
        "import sys\n"
        "from dqrelo_gguf.cli.inspect import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(m in sys.modules for m in ('numpy', 'gguf', 'rich')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=None)
    assert "--check BASE" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80

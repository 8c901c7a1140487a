"""Every command and the bindings take addresses where they take paths, and give the same as for the files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dqrelo_gguf.cli import bench, convert, inspect, merge
from dqrelo_gguf.cli import eval as evaluation
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.runtime.session import Runtime
from tests.support.hub_server import HubServer
from tests.support.models import EXAMPLES, convert_hf, pico_gguf, pico_tuned_gguf
from tests.support.programs import need_program

Main = Callable[[list[str]], int]


@pytest.fixture
def models(hub: HubServer) -> HubServer:
    """A base, a fine-tune of it and nothing else."""
    hub.put("o/base", {"base.gguf": pico_gguf("llama").read_bytes(), "README.md": b"read me"})
    hub.put("o/tune", {"tune.gguf": pico_tuned_gguf("llama").read_bytes()}, "v1")
    return hub


def made(models: HubServer, folder: Path) -> Path:
    """The delta of both, put on the Hub as well."""
    path = folder / "made.dq.gguf"
    assert convert.main([str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(path)]) == 0
    models.put("o/delta", {"made.dq.gguf": path.read_bytes()})
    return path


def test_a_conversion(models: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plain, out = made(models, tmp_path), tmp_path / "x.dq.gguf"
    names = ["hf://o/base", "hf://o/tune@v1"]
    assert convert.main([*names, "-o", str(out), "--name", "tune"]) == 0
    assert DeltaReader(out).base.digest == DeltaReader(plain).base.digest
    assert [w.n_bytes for w in DeltaReader(out).weights] == [w.n_bytes for w in DeltaReader(plain).weights]
    assert f"hf://o/tune/tune.gguf@{models.repositories['o/tune'].refs['v1']}: " in capfd.readouterr().err
    assert str(tmp_path / "cache").encode() not in out.read_bytes()


def test_a_checkpoint_gives_the_delta_the_name_of_its_repository(models: HubServer, tmp_path: Path) -> None:
    base = convert_hf(EXAMPLES / "base", tmp_path / "base.gguf")
    tuned = next(p for p in sorted(EXAMPLES.iterdir()) if p.name.startswith("ft-"))
    models.put("o/my-tune", {p.name: p.read_bytes() for p in tuned.iterdir() if p.is_file()})
    out, plain = tmp_path / "x.dq.gguf", tmp_path / "plain.dq.gguf"
    assert convert.main([str(base), "hf://o/my-tune", "-o", str(out)]) == 0
    assert convert.main([str(base), str(tuned), "-o", str(plain), "--name", DeltaReader(out).name]) == 0
    assert out.read_bytes() == plain.read_bytes()


def test_an_output_that_is_there_is_refused_before_a_download(
    models: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.dq.gguf"
    out.write_bytes(b"here")
    for main in (convert.main, merge.main):
        assert main(["hf://o/base", "hf://o/tune@v1", "-o", str(out)]) == 1
        assert "exists. Use --force" in capfd.readouterr().err
    assert models.requests == []


def test_inspection_and_statistics(models: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made(models, tmp_path)
    capfd.readouterr()
    assert inspect.main(["hf://o/delta", "--check", "hf://o/base", "--verify"]) == 0
    assert "same file" in capfd.readouterr().out
    assert inspect.main(["--stats", "hf://o/base", "hf://o/tune@v1"]) == 0


def test_a_merge(models: HubServer, tmp_path: Path) -> None:
    delta = made(models, tmp_path)
    for name, base, of in (("a", "hf://o/base", "hf://o/delta"), ("b", str(pico_gguf("llama")), str(delta))):
        assert merge.main([base, of, "-o", str(tmp_path / f"{name}.gguf")]) == 0
        assert merge.main([base, of, of, "-o", str(tmp_path / f"{name}.dq.gguf"), "--as-delta"]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert (tmp_path / "a.dq.gguf").read_bytes() == (tmp_path / "b.dq.gguf").read_bytes()


@pytest.mark.parametrize(
    ("main", "args"),
    [
        (convert.main, ["hf://o/nothing", "hf://o/tune", "-o", "{}/x.dq.gguf"]),
        (convert.main, ["hf://o/base", "hf://o/tune@v9", "-o", "{}/x.dq.gguf"]),
        (merge.main, ["hf://o/base", "hf://o/base", "-o", "{}/x.gguf"]),
        (inspect.main, ["hf://o/base"]),
        (bench.main, ["-m", "hf://o/nothing"]),
        (bench.main, ["-m", "hf://o/base", "--delta", "x=hf://o/nothing"]),
        (evaluation.main, ["hf://o/base", "--tuned", "hf://o/nothing", "--delta", "hf://o/nothing"]),
    ],
)
def test_an_address_that_cannot_be_had_is_one_line(
    models: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], main: Main, args: list[str]
) -> None:
    del models
    assert main([arg.format(tmp_path) for arg in args]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert "error: hf://o/" in last
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize(
    ("main", "args"),
    [
        (convert.main, ["", "{tuned}", "-o", "x.dq.gguf"]),
        (convert.main, ["{base}", "", "-o", "x.dq.gguf"]),
        (convert.main, ["{base}", "{tuned}", "-o", "x.dq.gguf", "--reference", ""]),
        (convert.main, ["{base}", "{tuned}", "-o", "x.dq.gguf", "--base-config", ""]),
        (convert.main, ["{base}", "{tuned}", "-o", "x.dq.gguf", "--base-mmproj", ""]),
        (convert.main, ["{base}", "{tuned}", "-o", "x.dq.gguf", "--calibrate", ""]),
        (convert.main, ["{base}", "{tuned}", "-o", "x.dq.gguf", "--calibration", ""]),
        (convert.main, ["{base}", "{tuned}", "-o", "x.dq.gguf", "--method", "wanda", "--imatrix", ""]),
        (merge.main, ["", "{tuned}", "-o", "x.gguf"]),
        (merge.main, ["{base}", "", "-o", "x.gguf"]),
        (inspect.main, [""]),
        (inspect.main, ["--stats", "", "{tuned}"]),
        (inspect.main, ["--stats", "{base}", ""]),
        (evaluation.main, ["", "--tuned", "{tuned}", "--delta", "{base}"]),
        (evaluation.main, ["{base}", "--tuned", "", "--delta", "{base}"]),
        (evaluation.main, ["{base}", "--tuned", "{tuned}", "--delta", ""]),
    ],
)
def test_an_empty_name_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], main: Main, args: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gguf").write_bytes(pico_gguf("llama").read_bytes())  # The folder itself could be a base.
    assert main([arg.format(base=pico_gguf("llama"), tuned=pico_tuned_gguf("llama")) for arg in args]) == 1
    assert capfd.readouterr().err.endswith("error: '': is an empty name, expected a path or an address\n")
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


def test_readers(models: HubServer, tmp_path: Path) -> None:
    delta = made(models, tmp_path)
    assert DeltaReader("hf://o/delta").content_hash == DeltaReader(delta).content_hash
    assert base_identity("hf://o/base").digest == base_identity(pico_gguf("llama")).digest
    assert DeltaReader(delta).check_base("hf://o/base").correlation == 1


def test_the_bindings(models: HubServer, tmp_path: Path) -> None:
    plain = made(models, tmp_path)
    with Runtime("hf://o/base", n_threads=1) as runtime:
        with runtime.load_delta("hf://o/delta") as delta, runtime.load_delta(plain) as same:
            assert delta.content_hash == same.content_hash
        with pytest.raises(InputError, match="hf://o/base: has no delta"):
            runtime.load_delta("hf://o/base")


def test_the_launcher_of_the_server_says_what_it_lacks_before_it_starts(models: HubServer) -> None:
    need_program("llama-server")
    code = "import sys; from dqrelo_gguf.cli.server import main; sys.exit(main())"
    args = [sys.executable, "-c", code, "-m", f"{models.url}/nothing.gguf"]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"dqrelo-server: error: {models.url}/nothing.gguf: is not there (404)\n"

"""Conversions on a Ray cluster of three nodes: the bytes of a local run, whatever is lost in the middle.

Slow, because every node is a handful of processes; .ci/run has them run once.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.convert import passes
from dqrelo_gguf.convert.cluster import connect, fleet, lanes
from dqrelo_gguf.convert.cluster.agreement import view_of
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.moments import FORMAT
from dqrelo_gguf.convert.plan import Options, Planned
from dqrelo_gguf.convert.result import ConvertResult
from dqrelo_gguf.convert.sources import Models
from dqrelo_gguf.convert.tasks import Encode
from dqrelo_gguf.convert.work import Calibrate
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.weight_data import Pack
from dqrelo_gguf.model.base import GgufModel
from tests.support.cluster import at_step, kill_workers, node_arguments, three_nodes
from tests.support.models import pico_gguf, pico_tuned, pico_tuned_gguf

pytestmark = pytest.mark.slow
pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with three_nodes() as found:
        yield found


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three nodes and a driver share two processors here."""
    monkeypatch.setattr(fleet, "START_SECONDS", 600)
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 600)


def job_of(kind: str, out: Path, **options: Any) -> Job:
    return Job(pico_gguf(kind), pico_tuned_gguf(kind), out, n_threads=1, **options)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The delta of the dense pair by a local run."""
    out = tmp_path_factory.mktemp("local") / "x.dq.gguf"
    convert(job_of("llama", out))
    return out.read_bytes()


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.1, deadly: str | None = None) -> None:
    """Lets a weight take a while on the workers, so that one is lost at work; one weight kills them."""

    class Slow(Encode):  # A class of a function goes to the workers with its code.
        def run(self, planned: Planned, models: Models, blocks: Blocks) -> Pack:
            time.sleep(seconds)
            if planned.spec.name == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(planned, models, blocks)

    monkeypatch.setattr(passes, "Encode", Slow)


def on(cluster: Any, job: Job, *phases: Any) -> ConvertResult:
    return convert(job, Options(), *phases, open_lanes=lanes.on_ray(cluster.address))


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def worker_folders() -> set[Path]:
    """The temporary files of workers on this machine."""
    return set(Path(tempfile.gettempdir()).glob("dqrelo-worker-*"))


@pytest.mark.parametrize("method", ["best", "paper"])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_the_bytes_are_those_of_a_local_run(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, method: str
) -> None:
    inputs = [str(pico_gguf(kind)), str(pico_tuned(kind)), "--method", method]
    capsys.readouterr()
    files = [tmp_path / "local.dq.gguf", tmp_path / "ray.dq.gguf"]
    assert main([*inputs, "-o", str(files[0]), "-t", "2"]) == 0
    shown = capsys.readouterr()
    before = worker_folders()
    assert main([*inputs, "-o", str(files[1]), "--ray", cluster.address]) == 0
    assert worker_folders() == before
    assert files[0].read_bytes() == files[1].read_bytes()
    out, err = capsys.readouterr()
    titles = [line.split(":")[0] for line in err.splitlines()]
    assert titles == [line.split(":")[0] for line in shown.err.splitlines()]  # Its progress, and nothing of Ray's.
    assert "note" not in out


def test_moments_are_read_by_the_workers(cluster: Any, tmp_path: Path) -> None:
    """From a file, and from what a calibration measures in between, which works with this process's own models."""
    name = "blk.0.ffn_down.weight"
    n = GgufModel(pico_gguf("llama")).shapes[name][0]
    X = torch.randn((3 * n, n), generator=torch.Generator().manual_seed(0)) * 0.9 ** torch.arange(n)
    H = X.T @ X / len(X)
    files = [tmp_path / f"{i}.dq.gguf" for i in range(3)]
    save, calibration = tmp_path / "saved", tmp_path / "m"
    save_file({name: (H + H.T) / 2}, calibration, metadata={"format": FORMAT, "aliases": "{}"})

    def measure(_work: Any, _pairs: Any, _source: str, path: Path) -> None:
        shutil.copyfile(calibration, path)  # Another call of save_file may write the metadata in another order.

    def encode(*_: Any) -> Any:
        raise AssertionError("the file has no text, so workers encode")

    convert(job_of("llama", files[0], calibration=calibration))
    on(cluster, job_of("llama", files[1], calibration=calibration))
    convert(
        job_of("llama", files[2], calibrate="self", save_calibration=save),
        Options(),
        calibrate=Calibrate(measure, encode),
        open_lanes=lanes.on_ray(cluster.address),
    )
    assert files[1].read_bytes() == files[0].read_bytes()
    assert files[2].read_bytes() == files[0].read_bytes()


@pytest.mark.parametrize("n", [1, 3])
def test_killed_workers_lose_nothing(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bytes, n: int
) -> None:
    slowly(monkeypatch)
    out = tmp_path / "x.dq.gguf"
    result = on(cluster, job_of("llama", out), at_step("converting", 5, lambda: kill_workers(n)))
    assert out.read_bytes() == local
    assert any("was computed again, because a worker was lost" in note for note in result.notes)


def test_a_node_that_goes_and_one_that_comes(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bytes
) -> None:
    slowly(monkeypatch, 0.3)
    out = tmp_path / "x.dq.gguf"

    def change() -> None:
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(**node_arguments())

    result = on(cluster, job_of("llama", out), at_step("converting", 5, change))
    assert out.read_bytes() == local
    assert any("was computed again, because a worker was lost" in note for note in result.notes)


def test_a_weight_that_kills_its_workers_is_named(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "blk.1.ffn_up.weight"
    slowly(monkeypatch, 0.0, deadly=name)
    with pytest.raises(InputError) as raised:
        on(cluster, job_of("llama", tmp_path / "x.dq.gguf"))
    assert str(raised.value).startswith(f"{name}: 3 workers were lost while they worked on it, the last one so: node ")
    assert "\n" not in str(raised.value)
    assert left(tmp_path) == []


def test_resume_goes_on_with_what_a_cluster_has_left(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bytes
) -> None:
    out = tmp_path / "x.dq.gguf"

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on(cluster, job_of("llama", out, resume=True), at_step("converting", 9, interrupt))
    assert left(tmp_path) == ["x.dq.gguf.partial", "x.dq.gguf.partial.log"]
    started: list[str] = []

    class Counted(lanes.RayFleet):
        def start(self, worker: Any, task: Any, weight: Any, n_threads: int) -> int:
            if isinstance(task, Encode):
                started.append(task.name(weight))
            return super().start(worker, task, weight, n_threads)

    monkeypatch.setattr(lanes, "RayFleet", Counted)
    on(cluster, job_of("llama", out, resume=True))
    assert out.read_bytes() == local
    assert len(started) == 21 - 9
    assert left(tmp_path) == ["x.dq.gguf"]


def test_a_node_with_another_file_is_named(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All nodes are on this machine, so it is the driver that sees another file here."""
    sources = job_of("llama", tmp_path / "x.dq.gguf").sources()
    view = view_of(sources)
    key = f"fine-tune {pico_tuned_gguf('llama').name}"
    monkeypatch.setattr(lanes, "view_of", lambda _: replace(view, files={**view.files, key: "0" * 16}))
    with pytest.raises(
        InputError, match=rf"^node \S+ \(\S+, \w{{6}}\): sees another {key}\. Every machine must see the"
    ):
        on(cluster, job_of("llama", tmp_path / "x.dq.gguf"))
    monkeypatch.setattr(lanes, "view_of", lambda _: replace(view, programs={**view.programs, "numpy": "1.0"}))
    with pytest.raises(
        InputError, match=r"^node .*: has numpy \S+, this machine 1\.0: deltas could have other bytes\."
    ):
        on(cluster, job_of("llama", tmp_path / "x.dq.gguf"))
    assert left(tmp_path) == []


def test_a_weight_that_cannot_be_converted_is_named_as_by_a_local_run(cluster: Any, tmp_path: Path) -> None:
    tuned = shutil.copytree(pico_tuned("llama"), tmp_path / "tuned")
    from safetensors.torch import load_file

    weights = load_file(tuned / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    said = []
    for options in ({}, {"open_lanes": lanes.on_ray(cluster.address)}):
        with pytest.raises(InputError.__mro__[1]) as raised:
            convert(Job(pico_gguf("llama"), tuned, tmp_path / "x.dq.gguf"), Options(), **options)  # type: ignore[arg-type]
        said.append((type(raised.value), str(raised.value)))
    assert said[0] == said[1]


# Every write takes a moment, so that the interrupt falls into the middle. A shell lets what it starts with & ignore SIGINT.
_SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from dqrelo_gguf.file import journal
_add = journal.Journal.add
def slowly(self, *given):
    time.sleep(0.5)
    _add(self, *given)
journal.Journal.add = slowly
from dqrelo_gguf.cli.convert import main
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_neither_files_nor_a_cluster(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "x.dq.gguf"
    arguments = [str(pico_gguf("llama")), str(pico_tuned("llama")), "-o", str(out), "--ray", "local"]
    before = worker_folders()
    with subprocess.Popen([sys.executable, "-c", _SLOW, *arguments], stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        log = tmp_path / "x.dq.gguf.partial.log"
        while child.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 4):
            time.sleep(0.05)
        processes = psutil.Process(child.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in processes)
        child.send_signal(number)
        err = child.stderr.read()
    assert child.returncode == 1
    assert err.endswith("dqrelo-convert: error: interrupted, no output was left behind\n")
    assert psutil.wait_procs(processes, timeout=20)[1] == []
    assert left(tmp_path) == []
    assert worker_folders() == before

"""convert/device.py: names of devices; and that every step of a conversion stays on the one that was asked for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.compress import codes, feedback
from dqrelo_gguf.convert import encode, job, tasks
from dqrelo_gguf.convert.device import device_of
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.methods import METHODS
from dqrelo_gguf.convert.moments import FORMAT
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.elsewhere import DEVICE, ElsewhereMode
from tests.support.models import convert_hf, pico_gguf, pico_tuned_gguf, read_gguf, save_model
from tests.support.moments import inputs, moments
from tests.support.sparse_tunes import tune_sparsely

RATIO = Fraction(1, 4)


def calibration(path: Path, base: Path) -> Path:
    """Moments of every matrix of a model."""
    found = {name: moments(inputs(w.shape[-1], 300)) for name, w in read_gguf(base).items() if w.ndim > 1}
    save_file(found, path, metadata={"format": FORMAT})
    return path


def tensors(path: Path) -> dict[str, bytes]:
    return {t.name: bytes(t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def convert_by_tensors(given: Job, options: Options) -> None:
    """On the CPU, but without the compiled code that no other device has: its sums may end in another last bit."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (codes, feedback):
            patch.setattr(module, "CPU", torch.device("meta"))
        convert(given, options)


def convert_elsewhere(given: Job, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "device_of", lambda _: DEVICE)
    with ElsewhereMode():
        convert(given, options)
    monkeypatch.undo()


# Every method, and those that can be calibrated once more; 1/12 leaves planes without factors to some weights, or takes the iteration.
CASES: list[tuple[str, dict[str, Any], bool]] = [
    *((name, {"ratio": RATIO} if "--ratio" in METHODS[name].takes else {}, name == "wanda") for name in METHODS),
    ("best", {"ratio": RATIO}, True),
    ("best", {"ratio": Fraction(1, 12)}, False),
    ("paper", {"ratio": RATIO, "svd": "exact", "factor_type": "q8_0"}, False),
    ("paper", {"ratio": RATIO, "vectors": "paper", "factor_type": "bf16"}, False),
]


@pytest.mark.parametrize(("name", "options", "is_calibrated"), CASES)
def test_no_step_of_a_method_leaves_its_device(
    name: str, options: dict[str, Any], is_calibrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that mixes with no tensor of the CPU's and computes as the CPU does, a conversion gives the CPU's tensors."""
    base, tuned = pico_gguf("llama"), pico_tuned_gguf("llama")
    given = {"calibration": calibration(tmp_path / "m", base)} if is_calibrated else {}
    suffix = ".dq.gguf" if METHODS[name].keeps is None else ".gguf"
    here, there = tmp_path / f"here{suffix}", tmp_path / f"there{suffix}"
    convert_by_tensors(Job(base, tuned, here, n_threads=1, **given), Options(method=name, **options))
    given_there = Job(base, tuned, there, n_threads=1, **given)
    convert_elsewhere(given_there, Options(method=name, **options), monkeypatch)
    assert tensors(there) == tensors(here)
    if METHODS[name].keeps is None:
        plain = DeltaReader(here).options
        assert "device" not in plain
        assert DeltaReader(there).options == {**plain, "device": DEVICE.type}


@pytest.mark.parametrize("is_calibrated", [False, True])
def test_entries_stay_on_their_device(is_calibrated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_model(tmp_path / "base")
    base = convert_hf(source, tmp_path / "base.gguf", "MOSTLY_BF16")
    tuned = tune_sparsely(source, tmp_path / "tuned", 0.03, (2, 60))
    given = {"calibration": calibration(tmp_path / "m", base)} if is_calibrated else {}
    here, there = tmp_path / "here.dq.gguf", tmp_path / "there.dq.gguf"
    convert_by_tensors(Job(base, tuned, here, n_threads=1, **given), Options(ratio=RATIO))
    assert any(w.n_entries for w in DeltaReader(here).weights)
    convert_elsewhere(Job(base, tuned, there, n_threads=1, **given), Options(ratio=RATIO), monkeypatch)
    assert tensors(there) == tensors(here)


@pytest.mark.parametrize(
    "leaves", [lambda t: t + torch.ones(4), lambda t: t.numpy(), lambda t: torch.stack([t[0], torch.zeros(4)])]
)
def test_the_device_of_these_tests_refuses_what_a_gpu_refuses(leaves: Any) -> None:
    with ElsewhereMode():
        t = torch.ones(4, 4).to(DEVICE)
        t[1:].mul_(3)
        assert t.device == DEVICE
        assert t.new_zeros(2).device == DEVICE
        assert np.array_equal(t.sum(dim=1).cpu().numpy(), [4, 12, 12, 12])
        with pytest.raises((RuntimeError, TypeError)):
            leaves(t)


def test_the_cpu_by_name_changes_no_byte(tmp_path: Path) -> None:
    files = []
    for given in ([], ["--device", "cpu"], ["--device", "cpu:0"]):
        out = tmp_path / f"{len(files)}.dq.gguf"
        name = ["--name", "t"]
        assert main([str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(out), *name, *given]) == 0
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "CUDA", "cpu:1", "cuda:99999", "", "cuda:0\n"])
def test_a_name_of_no_device(name: str) -> None:
    with pytest.raises(InputError, match=r"no device of this name. Give cpu, cuda or cuda:N$"):
        device_of(name)


def test_torch_without_cuda(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base, tuned, out = pico_gguf("llama"), pico_tuned_gguf("llama"), tmp_path / "d.dq.gguf"
    capsys.readouterr()  # What making the models tells.
    assert main([str(base), str(tuned), "-o", str(out), "--device", "cuda"]) == 1
    assert capsys.readouterr().err == (
        f"dqrelo-convert: error: --device cuda: torch {torch.__version__} has no CUDA device: "
        "install a CUDA build of torch, or leave --device out\n"
    )
    assert not list(tmp_path.iterdir())


def test_the_devices_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("cuda") == torch.device("cuda", 0)
    assert device_of("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match=r"^--device cuda:2: torch has 2 CUDA device\(s\), cuda:0 to cuda:1$"):
        device_of("cuda:2")


@pytest.mark.parametrize(
    "failure", [torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED")]
)
@pytest.mark.parametrize("step", ["measure_weight", "encode_weight"])
def test_a_weight_that_the_devices_memory_does_not_hold(
    step: str, failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, counted = getattr(encode, step), []

    def fails(*args: Any, **options: Any) -> Any:
        counted.append(args[0])
        if len(counted) == 3:
            raise failure
        return real(*args, **options)

    monkeypatch.setattr(tasks, step, fails)
    given = Job(pico_gguf("llama"), pico_tuned_gguf("llama"), tmp_path / "d.dq.gguf", n_threads=1)
    with pytest.raises(InputError) as raised:
        convert_elsewhere(given, Options(), monkeypatch)
    third = getattr(counted[2], "name", None) or counted[2].spec.name
    assert str(raised.value) == f"{third}: the memory of {DEVICE} is too small for it. Use --device cpu"
    assert not list(tmp_path.iterdir())


def test_other_failures_of_a_device_are_no_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(tasks, "encode_weight", fails)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        convert(Job(pico_gguf("llama"), pico_tuned_gguf("llama"), tmp_path / "d.dq.gguf"))

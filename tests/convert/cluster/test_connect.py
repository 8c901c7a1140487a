"""connect.py and what `--ray` says without a cluster: no Ray, bad addresses, inputs that are not for it."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch

from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.convert.cluster import connect
from dqrelo_gguf.convert.cluster.lanes import on_ray
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.convert.sources import Sources, open_models
from dqrelo_gguf.errors import InputError
from tests.support.models import pico_gguf, pico_tuned_gguf


def failure(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a conversion with these arguments says when it fails."""
    out = tmp_path / "out"
    out.mkdir()
    inputs = [str(pico_gguf("llama")), str(pico_tuned_gguf("llama"))]
    capsys.readouterr()  # What making them has said.
    assert main([*inputs, "-o", str(out / "x.dq.gguf"), *arguments]) == 1
    assert not list(out.iterdir())
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    return err


def test_without_ray_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "--ray: needs the package ray" in (err := failure(tmp_path, capsys, "--ray"))
    assert err.endswith("Install it with: pip install 'dqrelo-gguf[ray]'\n")


def test_a_stream_is_not_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--stream, --ray: only one of them goes" in failure(tmp_path, capsys, "--ray", "--stream")


@pytest.mark.parametrize("address", ["nonsense", "base.gguf", "ray://head:10001", "host:", "a b:1", "\x1b[2J:1"])
def test_what_is_no_address_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    pytest.importorskip("ray")
    err = failure(tmp_path, capsys, f"--ray={address}")
    assert ": is no address, expected HOST:PORT, auto or local" in err
    assert "\x1b" not in err


def test_an_address_that_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that takes connections and says nothing, for which Ray itself waits two minutes."""
    pytest.importorskip("ray")
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        err = failure(tmp_path, capsys, "--ray", address)
    assert f"error: --ray {address}: no Ray cluster answers within 3 s" in err


def test_a_stale_address_of_the_environment_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 3)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "--ray auto (RAY_ADDRESS is 127.0.0.1:1): no Ray cluster answers" in failure(tmp_path, capsys, "--ray")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"ok": true}', "auto"),
        ('{"none": true, "reason": "Could not find any running Ray instance."}', "local"),
        ('{"reason": "Version mismatch"}', "--ray auto: Version mismatch"),
        ("", "--ray auto: exit code 3"),
    ],
)
def test_without_an_address_a_running_cluster_comes_first(
    monkeypatch: pytest.MonkeyPatch, said: str, expected: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(connect, "_PROBE", f"print({said!r}); raise SystemExit(3)")
    if expected.startswith("--"):
        with pytest.raises(InputError) as raised:
            connect._reachable("auto")
        assert str(raised.value) == expected
    else:
        assert connect._reachable("auto") == expected


def test_a_device_is_not_for_a_cluster() -> None:
    sources = Sources(pico_gguf("llama"), pico_tuned_gguf("llama"))
    models = open_models(sources, Options())
    lanes = on_ray("local")(sources, models, Options(), Blocks(1, torch.device("meta")))
    with (
        pytest.raises(InputError, match=r"^--ray: workers compress on their processors. Leave out it or --device$"),
        lanes,
    ):
        pass


def test_paths_that_are_not_there_are_fetched_from_their_addresses(tmp_path: Path) -> None:
    """What a worker does that does not see where the driver has kept what it fetched."""
    here = tmp_path / "here.gguf"
    shutil.copyfile(pico_gguf("llama"), here)
    given = Sources(here.as_uri(), pico_tuned_gguf("llama"))
    elsewhere = Sources(tmp_path / "cache-of-another-machine.gguf", pico_tuned_gguf("llama"))
    assert elsewhere.or_fetched(given) == Sources(here, pico_tuned_gguf("llama"))
    assert given.fetched().or_fetched(given) == given.fetched()

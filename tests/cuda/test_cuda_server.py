"""llama-server with its layers and deltas on the emulated ggml-cuda: answers, and the memory of the device."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.delta_server import CONTEXT, idle_row, row, text
from tests.support.server_fixtures import Artefacts, serve

WORDS = {"n_predict": 4}  # A token takes the emulator a while.


@pytest.fixture
def emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The arguments that put all layers on it."""
    programs = os.environ.get("DQRELO_TEST_BIN_DIR", "")
    module = Path(programs).parent / "tests" / "cuda" / "backend" / "libdqrelo-emulated-cuda.so"
    if not programs or not module.is_file():
        pytest.skip(f"{module}: not found; build with -DDQRELO_TEST_CUDA_BACKEND=ON and set DQRELO_TEST_BIN_DIR")
    monkeypatch.setenv("GGML_BACKEND_PATH", str(module))
    return ("-dev", "CUDA0", "-ngl", "99", "-fa", "off", "--no-warmup")


def test_deltas_lie_on_the_device_and_leave_it(
    artefacts: Artefacts,
    delta_folder: Path,
    tmp_path: Path,
    emulated_gpu: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as on_cpu:
        on_cpu.delenv("GGML_BACKEND_PATH")
        with serve(artefacts.base, tmp_path, "--deltas-dir", delta_folder, *CONTEXT) as server:
            expected = {name: text(server, name, **WORDS) for name in ("base", "words", "json")}
    assert len(set(expected.values())) == 3
    with serve(
        artefacts.base, tmp_path, "--deltas-dir", delta_folder, "--delta-admin", *CONTEXT, *emulated_gpu
    ) as server:
        assert {name: text(server, name, **WORDS) for name in expected} == expected
        found = idle_row(server, "words")
        assert set(found["memory"]) == {"CPU", "CUDA0"}
        # All lies there but the embeddings, and what is no weight.
        assert found["memory"]["CUDA0"] > 0.5 * found["bytes"]
        assert found["bytes_resident"] == sum(found["memory"].values())
        before = server.get("/deltas")["bytes_resident"]
        server.ask("/deltas/unload", name="words")
        assert server.get("/deltas")["bytes_resident"] == before - found["bytes_resident"]
        server.ask("/deltas/load", name="words")
        assert text(server, "words", **WORDS) == expected["words"]


def test_the_budget_counts_the_device(
    artefacts: Artefacts, delta_folder: Path, tmp_path: Path, emulated_gpu: tuple[str, ...]
) -> None:
    options = ("--deltas-dir", delta_folder, "--delta-memory", "1", *CONTEXT, *emulated_gpu)
    with serve(artefacts.base, tmp_path, *options) as server:
        for name in ("words", "json", "loud", "again"):
            text(server, name, n_predict=1)
            assert server.get("/deltas")["bytes_resident"] <= 2**20
        assert row(server, "again")["memory"]["CUDA0"] > 0
        assert row(server, "words")["memory"] == {}  # It went to make room.

"""Files of deltas that block, hang, or change while they are served; and the base's file, which may change, too."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.support.delta_server import CONTEXT, PROMPT, error, make_folder, row, states, text
from tests.support.odd_files import link_to_zero, make_directory, make_fifo, make_socket
from tests.support.server_fixtures import Artefacts, Server, serve

SERVER_TIMEOUT = 60  # seconds in which a request that must be answered is


@pytest.mark.parametrize("make", [make_fifo, make_socket, make_directory])
def test_only_regular_files_are_opened(
    artefacts: Artefacts, tmp_path: Path, delta_texts: dict[str, str], make: Callable[[Path], None]
) -> None:
    """Where a model's file has become something else since it was listed."""
    folder = make_folder(artefacts, tmp_path / "dir")
    shutil.copyfile(artefacts.words, folder / "odd.dq.gguf")
    with serve(artefacts.base, tmp_path, "--deltas-dir", folder, "--delta-admin", *CONTEXT) as server:
        (folder / "odd.dq.gguf").unlink()
        make(folder / "odd.dq.gguf")
        body = {"model": "odd", "prompt": PROMPT, "n_predict": 1}
        answer = requests.post(server.url + "/completion", json=body, timeout=SERVER_TIMEOUT)
        assert "is not a regular file" in error(answer, 500)
        assert states(server)["odd"] == "failed"
        assert text(server, "words") == delta_texts["words"]


@pytest.mark.parametrize("make", [make_fifo, link_to_zero])
def test_the_server_does_not_start_with_what_is_no_file(
    artefacts: Artefacts, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "odd.dq.gguf")
    with (
        pytest.raises(pytest.fail.Exception, match="is not a regular file"),
        serve(artefacts.base, tmp_path, "--delta", tmp_path / "odd.dq.gguf"),
    ):
        pass


# files that change


def shorten(path: Path, _: Artefacts) -> None:
    os.truncate(path, 5000)


def copy_over(path: Path, artefacts: Artefacts) -> None:
    shutil.copyfile(artefacts.json, path)  # The inode stays the same, as with cp.


def remove(path: Path, _: Artefacts) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [shorten, copy_over, remove])
def test_what_is_served_does_not_change_with_its_file(
    artefacts: Artefacts,
    delta_server: Server,
    delta_texts: dict[str, str],
    change: Callable[[Path, Artefacts], None],
) -> None:
    assert text(delta_server, "words") == delta_texts["words"]
    change(Path(row(delta_server, "words")["file"]), artefacts)
    assert text(delta_server, "words", cache_prompt=False) == delta_texts["words"]


def mapped_deltas(server: Server) -> set[str]:
    """Names of delta files in the address space of the server."""
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    return {Path(line.split()[-1]).name for line in maps.splitlines() if line.endswith(".dq.gguf")}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
@pytest.mark.parametrize(("mode", "is_mapped"), [("auto", False), ("none", False), ("mmap", True)])
def test_load_mode_reaches_deltas(
    artefacts: Artefacts, tmp_path: Path, delta_texts: dict[str, str], mode: str, is_mapped: bool
) -> None:
    with serve(artefacts.base, tmp_path, "--delta", artefacts.words, "--load-mode", mode, *CONTEXT) as server:
        assert text(server, "words") == delta_texts["words"]
        assert ("words.dq.gguf" in mapped_deltas(server)) == is_mapped


# --- the base's file


@pytest.mark.parametrize("is_replaced", [True, False])
def test_the_base_is_the_one_in_memory(
    artefacts: Artefacts, delta_folder: Path, tmp_path: Path, delta_texts: dict[str, str], is_replaced: bool
) -> None:
    """Another file under the base's path, or none, changes nothing for the deltas of what is in memory."""
    base = tmp_path / "base.gguf"
    shutil.copyfile(artefacts.base, base)
    with serve(base, tmp_path, "--deltas-dir", delta_folder, *CONTEXT) as server:
        if is_replaced:
            shutil.copyfile(artefacts.merged, tmp_path / "new.gguf")
            (tmp_path / "new.gguf").rename(base)
        else:
            base.unlink()
        assert text(server, "words") == delta_texts["words"]

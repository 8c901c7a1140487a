"""A content hash decides whose cache is reused, so a file's own statement of it is checked before the file serves."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.delta_files import Edited
from tests.support.delta_server import error, row, text
from tests.support.server_fixtures import Artefacts, Server, need_program

FORGED = "damaged: dqrelo.content_hash is"


@pytest.fixture(scope="module")
def forged(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bytes of json under the hash of words."""
    file = Edited(artefacts.json)
    file.fields["dqrelo.content_hash"] = Edited(artefacts.words).fields["dqrelo.content_hash"]
    return file.save(tmp_path_factory.mktemp("forged") / "forged.dq.gguf")


def test_no_program_starts_with_a_forged_delta(artefacts: Artefacts, forged: Path) -> None:
    for name, args in {
        "llama-server": ["--port", "0"],
        "llama-completion": ["-p", "a", "-n", "1", "-no-cnv"],
    }.items():
        command = [need_program(name), "-m", artefacts.base, "--delta", forged, *args]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 1, (name, done.stderr)
        assert FORGED in done.stderr + done.stdout, name


def test_a_forged_delta_of_a_folder_is_not_served(delta_server: Server, forged: Path) -> None:
    shutil.copyfile(forged, delta_server.log.parent / "dir" / "forged.dq.gguf")
    message = error(delta_server.post("/deltas/load", {"name": "forged", "file": "forged.dq.gguf"}), 500)
    assert FORGED in message


def test_a_verified_file_is_verified_again_once_it_changed(delta_server: Server, artefacts: Artefacts) -> None:
    path = delta_server.log.parent / "dir" / "words.dq.gguf"
    words = text(delta_server, "words")
    before = path.stat()
    # Another file comes under its name, with its size and times as far as they can be set.
    other = path.with_suffix(".new")
    data = bytearray(artefacts.words.read_bytes())
    data[-3000] ^= 0x01
    other.write_bytes(data)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert "damaged" in error(delta_server.post("/deltas/reload", {"name": "words"}), 500)
    assert row(delta_server, "words")["state"] == "loaded"  # The old one serves on.
    assert text(delta_server, "words") == words

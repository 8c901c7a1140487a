"""llama-completion's session files (--prompt-cache) continue only what computed them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.server_fixtures import Artefacts, need_program

PROMPT = "### Question:\nPut these letters in alphabetical order: d b e a c\n### Answer:\n"


def complete(artefacts: Artefacts, session: Path, delta: Path | None) -> subprocess.CompletedProcess[str]:
    own = ["--delta", delta] if delta else []
    args = ["-p", PROMPT, "-n", "4", "-no-cnv", "--temp", "0", "-t", "1", "-c", "256", "--prompt-cache", session]
    command = [need_program("llama-completion"), "-m", artefacts.base, *own, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL)


def continues(artefacts: Artefacts, session: Path, delta: Path | None) -> bool:
    """Whether a run says that it continues."""
    return "session file has exact match" in complete(artefacts, session, delta).stderr


@pytest.mark.parametrize("owner", ["words", "base"])
@pytest.mark.parametrize("other", ["json", "words", "base"])
def test_a_session_continues_for_its_delta_only(artefacts: Artefacts, tmp_path: Path, owner: str, other: str) -> None:
    deltas = {"words": artefacts.words, "json": artefacts.json, "base": None}
    session = tmp_path / "session.bin"
    first = complete(artefacts, session, deltas[owner])
    assert first.returncode == 0, first.stderr
    stored = session.read_bytes()
    again = complete(artefacts, session, deltas[other])
    if other == owner:
        assert again.returncode == 0, again.stderr
        assert again.stdout == first.stdout
        assert continues(artefacts, session, deltas[other])
    else:
        assert again.returncode == 1
        assert session.read_bytes() == stored


def test_the_same_delta_under_another_name_continues(artefacts: Artefacts, tmp_path: Path) -> None:
    session = tmp_path / "session.bin"
    assert complete(artefacts, session, artefacts.words).returncode == 0
    assert continues(artefacts, session, artefacts.words_again)


@pytest.mark.parametrize("n_bytes", [0, 3, 8, 20, 100])
def test_a_cut_session_file_is_no_crash(artefacts: Artefacts, tmp_path: Path, n_bytes: int) -> None:
    session = tmp_path / "session.bin"
    assert complete(artefacts, session, artefacts.words).returncode == 0
    session.write_bytes(session.read_bytes()[:n_bytes])
    assert complete(artefacts, session, artefacts.words).returncode == (0 if n_bytes == 0 else 1)

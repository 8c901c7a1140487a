"""One process works on a file at a time, and those that wait say so."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from dqrelo_gguf.address import turn as turns
from dqrelo_gguf.address.turn import turn


def test_a_wait_is_told_and_ends_with_the_turn_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(turns, "SILENT_SECONDS", 0.05)
    target, told = tmp_path / "file", threading.Event()
    other = FileLock(tmp_path / "file.lock", thread_local=False)
    # In a thread of its own: newer versions of filelock take two locks of one thread for a deadlock.
    holder = threading.Thread(target=other.acquire)
    holder.start()
    holder.join()

    def tell(*args: Any, **kwargs: Any) -> None:
        print(*args, **kwargs)
        told.set()

    def work() -> None:
        told.wait(60)
        other.release()

    monkeypatch.setattr(turns, "print", tell, raising=False)
    threading.Thread(target=work).start()
    with turn(target, label="hf://owner/repo\x1b[2J"):
        assert told.is_set()
        assert not other.is_locked
    captured = capfd.readouterr()
    assert captured.err.count("another process has it in work; waiting until it is done") == 1
    assert captured.err.startswith("hf://owner/repo")
    assert "\x1b" not in captured.err


def test_a_turn_alone_says_nothing_and_is_over_after_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), turn(tmp_path / "file"):
            raise ZeroDivisionError
    assert capfd.readouterr() == ("", "")

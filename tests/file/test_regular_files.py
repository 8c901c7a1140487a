"""What is no regular file is refused in one line, by whatever opens files, and nothing waits for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dqrelo_gguf.cli import convert, inspect, merge
from dqrelo_gguf.convert.moments import Moments
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.chat import read_bytes
from dqrelo_gguf.file.model_file import ModelFile
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.runtime.arguments import existing_file
from tests.support.odd_files import link_to_zero, make_directory, make_fifo, make_socket


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


MAKERS: list[tuple[Callable[[Path], None], str]] = [
    (make_fifo, "is not a regular file"),
    (make_socket, "is not a regular file"),
    (make_directory, "is (not a regular file|a directory)"),
    (link_to_zero, "is not a regular file"),
    (link_to_nothing, "no such file or directory"),
]


@pytest.mark.parametrize("read", [DeltaReader, ModelFile, Moments, existing_file, read_bytes])
@pytest.mark.parametrize(("make", "message"), MAKERS)
def test_readers_say_what_it_is(
    tmp_path: Path, make: Callable[[Path], None], message: str, read: Callable[[Path], object]
) -> None:
    make(tmp_path / "odd")
    with pytest.raises(InputError, match=f"odd: {message}"):
        read(tmp_path / "odd")


@pytest.mark.parametrize("make_and_message", MAKERS)
def test_commands_say_what_it_is(
    tmp_path: Path,
    small_base: Path,
    small_delta: Path,
    make_and_message: tuple[Callable[[Path], None], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, message = make_and_message
    odd = tmp_path / "odd"
    make(odd)
    out = str(tmp_path / "out.gguf")
    for main, arguments in (
        (inspect.main, [str(odd)]),
        (inspect.main, [str(small_delta), "--check", str(odd)]),
        (merge.main, [str(odd), str(small_delta), "-o", out]),
        (merge.main, [str(small_base), str(odd), "-o", out]),
    ):
        assert main(arguments) == 1
        _, err = capsys.readouterr()
        assert re.search(f"odd: {message}", err)
        assert err.count("\n") == 1


@pytest.mark.parametrize(("make", "message"), MAKERS)
@pytest.mark.parametrize(
    ("option", "method"), [("--calibrate", "best"), ("--calibration", "best"), ("--imatrix", "wanda")]
)
def test_texts_and_moments_are_looked_at_before_the_work(
    tmp_path: Path,
    small_base: Path,
    *,
    make: Callable[[Path], None],
    message: str,
    option: str,
    method: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "odd")
    arguments = [str(small_base), "nowhere", "-o", str(tmp_path / "out.gguf"), option, str(tmp_path / "odd")]
    assert convert.main([*arguments, "--method", method]) == 1
    _, err = capsys.readouterr()
    assert re.search(f"{option} .*odd: {message}", err)
    assert err.count("\n") == 1

"""Outputs: told apart from inputs and from each other, and checked before the work."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dqrelo_gguf.errors import DqreloError, InputError, OutputExistsError
from dqrelo_gguf.output import check_outputs, check_target
from tests.support.odd_files import link_to_zero, make_directory, make_fifo, make_socket


def same_path(target: Path, link: Path) -> Path:
    del link
    return target


def other_spelling(target: Path, link: Path) -> Path:
    link.mkdir()
    return link / ".." / target.name


def symbolic_link(target: Path, link: Path) -> Path:
    link.symlink_to(target)
    return link


def hard_link(target: Path, link: Path) -> Path:
    link.hardlink_to(target)
    return link


def linked_folder(target: Path, link: Path) -> Path:
    link.symlink_to(target.parent)
    return link / target.name


LINKS = [same_path, other_spelling, symbolic_link, hard_link, linked_folder]


@pytest.mark.parametrize("linked", LINKS)
def test_an_input_is_no_output(tmp_path: Path, linked: Callable[[Path, Path], Path]) -> None:
    (tmp_path / "base.gguf").write_bytes(b"x")
    output = linked(tmp_path / "base.gguf", tmp_path / "link")
    with pytest.raises(InputError, match="is read by this command"):
        check_outputs([output], [tmp_path / "none", tmp_path / "base.gguf"], force=True)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("linked", LINKS)
def test_two_outputs_are_two_files(tmp_path: Path, linked: Callable[[Path, Path], Path], exists: bool) -> None:
    output = tmp_path / "out"
    if exists or linked is hard_link:
        output.touch()
    with pytest.raises(InputError, match="is the same file as the output"):
        check_outputs([output, linked(output, tmp_path / "link")], [], force=True)


def test_outputs_beside_the_inputs_are_fine(tmp_path: Path) -> None:
    (tmp_path / "base.gguf").touch()
    (tmp_path / "old").touch()
    check_outputs([tmp_path / "new", tmp_path / "old"], [tmp_path / "base.gguf"], force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.gguf", "old"]


def made(make: Callable[[Path], None]) -> Callable[[Path], Path]:
    def make_and_name(path: Path) -> Path:
        make(path)
        return path

    return make_and_name


def in_a_file(path: Path) -> Path:
    path.touch()
    return path / "out"


BAD_TARGETS: list[tuple[Callable[[Path], Path], str]] = [
    (made(make_fifo), "is not a regular file"),
    (made(make_socket), "is not a regular file"),
    (made(make_directory), "is a directory"),
    (made(link_to_zero), "is not a regular file"),
    (lambda _: Path("/dev/null"), "is not a regular file"),
    (lambda path: path / "none" / "out", "there is no directory"),
    (in_a_file, "there is no directory"),
    (lambda path: path.with_name("x" * 300), "cannot be written: file name too long"),
    (lambda _: Path("/proc/out"), "cannot be written"),
]


@pytest.mark.parametrize(("make", "message"), BAD_TARGETS)
@pytest.mark.parametrize("force", [True, False])
def test_what_cannot_be_written_is_found_before(
    tmp_path: Path, make: Callable[[Path], Path], message: str, force: bool
) -> None:
    with pytest.raises(DqreloError, match=message):
        check_target(make(tmp_path / "odd"), force)


def test_an_existing_file_needs_force(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"x")
    with pytest.raises(OutputExistsError, match="Use --force"):
        check_target(tmp_path / "old", force=False)
    check_target(tmp_path / "old", force=True)
    assert (tmp_path / "old").read_bytes() == b"x"


@pytest.mark.skipif(os.getuid() == 0, reason="the superuser may write everywhere")
def test_permissions_are_asked(tmp_path: Path) -> None:
    (tmp_path / "old").touch(0o444)
    with pytest.raises(InputError, match="is write-protected"):
        check_target(tmp_path / "old", force=True)
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="cannot be written: permission denied"):
        check_target(tmp_path / "new", force=False)

"""cmake/debian_packages.py and cmake/aarch64_root.py: what apt, dpkg and pip are told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import aarch64_root
import debian_packages

APT = """#!/bin/sh
echo "apt-get $*" >> {log}
case "$*" in *broken*) echo "E: no such package" >&2; exit 100;; esac
for last; do :; done
case "$*" in
    *--download-only*) touch {folder}/.apt/cache/archives/$last.deb {folder}/.apt/cache/archives/libc6.deb;;
    *" download "*) touch $last.deb;;
esac
"""
DPKG = """#!/bin/sh
mkdir -p $3/usr/bin
basename $2 >> $3/usr/unpacked
touch $3/usr/bin/python3.11
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packages go; apt-get and dpkg-deb only note what they are told."""
    programs, made = tmp_path / "programs", tmp_path / "root"
    programs.mkdir()
    for name, text in (("apt-get", APT), ("dpkg-deb", DPKG)):
        (programs / name).write_text(text.format(log=tmp_path / "log", folder=made))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return made


def test_packages_of_another_release_leave_the_system_as_it_is(folder: Path, tmp_path: Path) -> None:
    (folder / "usr").mkdir(parents=True)
    (folder / "usr" / "of-before").write_text("")
    debian_packages.unpack(["one", "two"], folder, "trixie")
    update, download = (tmp_path / "log").read_text().splitlines()
    for line in (update, download):
        assert f"-oDir::State::lists={folder}/.apt/lists" in line
        assert "-oDir::Etc::sourceparts=/dev/null" in line
        assert "-oDir::State::status=/dev/null" in line
        assert "Architecture" not in line
    assert update.endswith(" update")
    assert download.endswith(" download one two")
    sources = (folder / ".apt" / "sources.list").read_text()
    assert sources.startswith("deb [signed-by=")
    assert sources.endswith(" trixie main\n")
    assert (folder / "usr" / "unpacked").read_text() == "two.deb\n"
    assert not (folder / "usr" / "of-before").exists()


def test_packages_of_another_architecture_come_with_what_they_need(folder: Path, tmp_path: Path) -> None:
    debian_packages.unpack(["one"], folder, "trixie", "arm64", with_dependencies=True)
    line = (tmp_path / "log").read_text().splitlines()[1]
    assert "-oAPT::Architecture=arm64 -oAPT::Architectures=arm64" in line
    assert line.endswith(" install --yes --download-only --no-install-recommends one")
    assert (folder / "usr" / "unpacked").read_text() == "libc6.deb\none.deb\n"


def test_a_package_that_is_not_there_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        debian_packages.unpack(["broken"], folder, "trixie")
    monkeypatch.setattr(aarch64_root, "PACKAGES", ("broken",))
    assert aarch64_root.main([str(folder)]) == 1
    assert capsys.readouterr().err.startswith("aarch64_root.py: error: ")


def test_a_wheel_is_installed_by_the_pip_that_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(debian_packages, "_run", lambda *_: pytest.fail("the folder is there"))
    aarch64_root.python_of(folder).parent.mkdir(parents=True)
    aarch64_root.python_of(folder).touch()
    monkeypatch.setattr(aarch64_root.subprocess, "run", lambda command, **_: commands.append([*map(str, command)]))
    assert aarch64_root.main([str(folder), "--wheel", "dist/x.whl"]) == 0
    imported, wheel = commands
    for command in commands:
        assert command[command.index("--target") + 1] == str(folder / "site")
        assert {"--only-binary=:all:", "--platform=manylinux_2_35_aarch64"} <= set(command)
    assert "--no-deps" not in imported
    assert not any("torch" in word for word in imported)
    assert wheel[-2:] == ["--no-deps", "dist/x.whl"]

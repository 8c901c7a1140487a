"""cmake/portable_wheel.py: for which Pythons and architecture a wheel is built, and with which tags."""

from __future__ import annotations

import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import portable_wheel

HEADERS = "#define PY_MAJOR_VERSION\t3\n#define PY_MINOR_VERSION\t{minor}\n"


@pytest.fixture
def includes(tmp_path: Path) -> list[Path]:
    """Folders of headers of 3.13 and 3.14."""
    found = [tmp_path / f"python3.{minor}" for minor in (14, 13)]
    for path in found:
        path.mkdir()
        (path / "Python.h").write_text("")
        (path / "patchlevel.h").write_text(HEADERS.format(minor=path.name[-2:]))
    return found


def test_an_interpreter_stands_for_its_headers() -> None:
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").is_file():
        pytest.skip("this Python has no headers")
    assert portable_wheel.include_of(sys.executable) == include
    assert portable_wheel.minor_of(include) == sys.version_info.minor


def test_a_folder_may_be_relative(includes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable_wheel.include_of(includes[0].name) == includes[0]


def test_an_interpreter_may_have_the_name_of_a_folder(
    includes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `python` has in this repository."""
    (tmp_path / "python").mkdir()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "python"
    program.write_text(f"#!/bin/sh\necho {includes[0]}\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    assert portable_wheel.include_of("python") == includes[0]


def test_tags_name_every_python(includes: list[Path]) -> None:
    assert portable_wheel.tags_of(includes, "aarch64") == [
        *("--python-tag", "cp313.cp314", "--abi-tag", "cp313.cp314", "--platform-tag", "linux_aarch64", "--remove"),
    ]


def test_another_architecture_has_its_toolchain(includes: list[Path]) -> None:
    settings = portable_wheel.settings_of(includes, "aarch64")
    assert f"cmake.define.DQRELO_PYTHON_INCLUDES={includes[0]};{includes[1]}" in settings
    assert any(setting.endswith("cmake/aarch64.cmake") for setting in settings) == (platform.machine() != "aarch64")
    assert not any("TOOLCHAIN" in setting for setting in portable_wheel.settings_of(includes, platform.machine()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pythons", "python3.nothing"], "is no interpreter and no folder"),
        (["--pythons", "{empty}"], "no Python.h in"),
        (["--pythons", "{old}"], "expected 3.11 or newer"),
        (["--arch", "riscv64"], "needs --pythons"),
        (["--arch", "riscv64", "--pythons", "{new}"], "there is no cmake/riscv64.cmake"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(
    includes: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    empty, old = tmp_path / "empty", tmp_path / "old"
    for path in (empty, old):
        path.mkdir()
    (old / "Python.h").write_text("")
    (old / "patchlevel.h").write_text(HEADERS.format(minor=10))
    assert portable_wheel.main([word.format(empty=empty, old=old, new=includes[0]) for word in words]) == 1
    text = capsys.readouterr().err
    assert message in text
    assert len(text.splitlines()) == 1


def test_a_module_is_built_for_each_folder_of_headers(includes: list[Path], tmp_path: Path) -> None:
    """CMake alone, without a compiler: what the names of the modules are."""
    script = tmp_path / "names.cmake"
    functions = Path(portable_wheel.__file__).with_name("python.cmake").read_text(encoding="utf-8")
    body = functions[functions.index("function(dqrelo_module_of") :]
    stubs = "".join(
        f"macro({name})\nendmacro()\n"
        for name in ("add_library", "target_link_libraries", "target_include_directories")
    )
    for name in ("set_target_properties", "target_compile_options"):
        stubs += f'macro({name})\nmessage("${{ARGV}}")\nendmacro()\n'
    script.write_text(
        f"{stubs}set(CMAKE_SYSTEM_NAME Linux)\nset(CMAKE_SYSTEM_PROCESSOR aarch64)\n{body}\n"
        + "".join(f"dqrelo_module_of({include} a.cpp)\n" for include in includes)
    )
    done = subprocess.run(["cmake", "-P", script], capture_output=True, text=True, check=True)
    for minor in (13, 14):
        assert f"_core-3.{minor};PROPERTIES;PREFIX;;SUFFIX;.cpython-3{minor}-aarch64-linux-gnu.so" in done.stderr
        # Another C library's headers may lie in that folder.
        assert f"_core-3.{minor};PRIVATE;SHELL:-idirafter {tmp_path}" in done.stderr

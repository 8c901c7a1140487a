"""cmake/mingw.cmake: this project's own C++ sources compile for Windows."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.programs import need_llama_cpp

ROOT = Path(__file__).resolve().parents[2]
COMPILER = "x86_64-w64-mingw32-g++-posix"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[Path, list[str]]]:
    """How the build for Windows compiles each of our sources, as CMake writes it down: in which folder, and the command."""
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed (Debian: apt-get install g++-mingw-w64-x86-64-posix)")
    build = tmp_path_factory.mktemp("mingw")
    options = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "cmake" / "mingw.cmake",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
        "GGML_NATIVE": "OFF",
        "DQRELO_LLAMA_CPP_DIR": need_llama_cpp(),
    }
    words = ["cmake", "-S", ROOT, "-B", build, *(f"-D{name}={value}" for name, value in options.items())]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {}
    for one in json.loads((build / "compile_commands.json").read_text(encoding="utf-8")):
        file = Path(one["file"])
        if any(file.is_relative_to(ROOT / folder) for folder in ("cpp", "ggml_ops")):
            words = [*shlex.split(one["command"]), "-O0", "-o", os.devnull]
            found[file.relative_to(ROOT)] = Path(one["directory"]), words
    return found


@pytest.mark.slow
def test_our_sources_compile_for_windows(commands: dict[Path, tuple[Path, list[str]]]) -> None:
    """Without optimisation, which takes most of the time. None of them warns of what it hands to printf."""
    assert {Path("cpp/file/mapped-file-win32.cpp"), Path("ggml_ops/cpu/forward.cpp")} <= set(commands)
    assert Path("cpp/file/mapped-file.cpp") not in commands
    faults = []
    for file, (folder, words) in commands.items():
        done = subprocess.run([*words, "-Werror=format"], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            faults.append(f"{file}: {done.stderr[:2000]}")
    assert faults == []

"""Programs take the libraries that they were built with, whatever the environment names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import need_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_LIBRARY_PATH is the variable of Linux")

# What a program of the package needs, by the names that another build of llama.cpp has, too.
NAMES = ("llama", "llama-common", "mtmd", "ggml", "ggml-base", "ggml-cpu")


def need_compiler() -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    return compiler


@pytest.fixture(scope="module")
def other_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of libraries with the names of ours, which hold nothing that a program needs."""
    compiler = need_compiler()
    folder = tmp_path_factory.mktemp("other")
    source = folder / "empty.c"
    source.write_text("int dqrelo_test_empty;\n")
    for name in NAMES:
        for file in (f"lib{name}.so", f"lib{name}.so.0"):
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", folder / file, source]
            subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def hostile_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of libraries with the names of ggml's backends, which say so when they are loaded."""
    compiler = need_compiler()
    folder = tmp_path_factory.mktemp("hostile")
    source = folder / "hostile.c"
    source.write_text(
        '#include <stdio.h>\n__attribute__((constructor)) void load(void) { fputs("hostile library\\n", stderr); }\n'
    )
    for name in ("ggml-cpu-best", "ggml-cpu", "ggml-cuda", "ggml-rpc-x"):
        subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / f"lib{name}.so", source], check=True)
    return folder


def run(program: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [program, "--version"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | env)


@pytest.mark.parametrize("name", ["llama-server", "llama-completion", "llama-perplexity"])
def test_no_backend_is_loaded_from_the_working_directory(name: str, hostile_folder: Path) -> None:
    command = [need_program(name).resolve(), "--list-devices"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=hostile_folder)
    assert done.returncode == 0, done.stderr
    assert "hostile library" not in done.stderr


def test_the_native_module_loads_no_backend_from_the_working_directory(hostile_folder: Path) -> None:
    command = [
        sys.executable,
        "-P",
        "-c",
        "from dqrelo_gguf.native import core; print(core.machine()['cpu_info'])",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=hostile_folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "a CPU backend is there"
    assert done.stderr == "", "an import says nothing"


def test_a_backend_that_the_environment_names_is_loaded(hostile_folder: Path) -> None:
    command = [need_program("llama-server"), "--list-devices"]
    env = os.environ | {"GGML_BACKEND_PATH": str(hostile_folder / "libggml-cuda.so")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert "hostile library" in done.stderr, "the libraries of this test say that they are loaded"


@pytest.mark.parametrize("name", ["llama-server", "llama-completion"])
def test_another_llama_cpp_in_the_environment_replaces_nothing(name: str, other_libraries: Path) -> None:
    done = run(need_program(name), LD_LIBRARY_PATH=str(other_libraries))
    assert done.returncode == 0, done.stderr
    assert "version" in done.stdout + done.stderr


def test_a_library_without_the_operator_ends_a_program_at_its_start(other_libraries: Path) -> None:
    done = run(need_program("llama-server"), LD_PRELOAD=str(other_libraries / "libggml-base.so"))
    assert done.returncode != 0
    assert "undefined symbol" in done.stderr


def test_the_native_module_takes_its_own_libraries(other_libraries: Path) -> None:
    command = [sys.executable, "-c", "from dqrelo_gguf.native import core; print(core.__name__)"]
    env = os.environ | {"LD_LIBRARY_PATH": str(other_libraries)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 0, done.stderr

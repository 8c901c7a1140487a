"""The build's own code: the pin, the patch queue, CMake's one-line errors, and what an installed wheel holds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import dqrelo_gguf
import fetch_llama_cpp
import llama_cpp_pin
import patches
import pypi_cuda
import unified_diff
from llama_cpp_pin import Pin, PinError

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(dqrelo_gguf.__file__).parent
PROGRAMS = (
    "llama-server",
    "llama-cli",
    "llama-completion",
    "llama-quantize",
    "llama-imatrix",
    "llama-perplexity",
    "dqrelo-op-check",
)
COMMANDS = (
    "dqrelo",
    "dqrelo-bench",
    "dqrelo-cache",
    "dqrelo-convert",
    "dqrelo-demo",
    "dqrelo-eval",
    "dqrelo-inspect",
    "dqrelo-merge",
    "dqrelo-push",
    "dqrelo-server",
)
# Lines of upstream that all patches may change. A fifth of it bounds what a chat template may take.
MAX_CHANGED_LINES = 550

SOURCE = "one\ntwo\nthree\nfour\nfive\n"
PATCH = """diff --git a/src/a.c b/src/a.c
--- a/src/a.c
+++ b/src/a.c
@@ -1,4 +1,5 @@ context
 one
-two
+TWO
+2
 three
 four
"""
NEW_FILE = "--- /dev/null\n+++ b/src/new.c\n@@ -0,0 +1,2 @@\n+a\n+b\n"
FILES = {"src/a.c": SOURCE, "src/b.c": "b\n", "CMakeLists.txt": "project(x)\n", "docs/page.md": "left out\n"}


def only(text: str) -> unified_diff.FilePatch:
    (patch,) = unified_diff.parse(text)
    return patch


def make_archive(path: Path, files: dict[str, str]) -> Pin:
    """A small archive of the pinned one's form, and its pin."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in {f"vendor/llama.cpp/{name}": text for name, text in files.items()}.items():
            member = tarfile.TarInfo(f"fake_llama-1/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return Pin("fake-llama", "1", "abcdef0", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Pin, Path]:
    """A pin whose archive is at hand, and the folder of its one patch."""
    pin = make_archive(tmp_path / "fake_llama-1.tar.gz", FILES)
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "0001-hooks.patch").write_text(PATCH)
    monkeypatch.setattr(llama_cpp_pin, "PATCHES", folder)
    monkeypatch.setenv(llama_cpp_pin.SDIST_VARIABLE, str(tmp_path / "fake_llama-1.tar.gz"))
    return pin, folder


def need_archive() -> Pin:
    pin = llama_cpp_pin.read_pin()
    if not (llama_cpp_pin.cache_dir() / pin.archive_name).is_file():
        pytest.skip("the pinned archive is not in the cache; a build without DQRELO_LLAMA_CPP_DIR puts it there")
    return pin


def test_patch_replaces_lines_where_all_context_matches() -> None:
    assert only(PATCH).apply(SOURCE) == "one\nTWO\n2\nthree\nfour\nfive\n"


def test_patch_refuses_a_source_that_differs_in_context() -> None:
    with pytest.raises(unified_diff.PatchError, match=r"src/a\.c:3: expected 'three', found 'THREE'"):
        only(PATCH).apply(SOURCE.replace("three", "THREE"))


def test_patch_refuses_a_source_that_is_too_short() -> None:
    with pytest.raises(unified_diff.PatchError, match=r"src/a\.c:2: expected 'two', found 'the end of the file'"):
        only(PATCH).apply("one\n")


def test_patch_refuses_context_at_another_line() -> None:
    with pytest.raises(unified_diff.PatchError, match=r"src/a\.c:1"):
        only(PATCH).apply("zero\n" + SOURCE)


def test_patch_makes_a_new_file() -> None:
    patch = only(NEW_FILE)
    assert patch.is_new
    assert patch.apply("") == "a\nb\n"


def test_patch_applies_several_hunks_at_their_old_line_numbers() -> None:
    text = "--- a/x\n+++ b/x\n@@ -1,2 +1,1 @@\n-one\n two\n@@ -4,2 +3,3 @@\n four\n+4.5\n five\n"
    assert only(text).apply(SOURCE) == "two\nthree\nfour\n4.5\nfive\n"


def test_patch_counts_added_and_removed_lines() -> None:
    patch = only(PATCH)
    assert (patch.n_added, patch.n_removed) == (2, 1)


@pytest.mark.parametrize(
    "text",
    [
        PATCH.replace("b/src/a.c\n@@", "b/../../a.c\n@@"),
        PATCH.replace(" four\n", ""),
        PATCH + "\\ No newline at end of file\n",
        "@@ -1 +1 @@\n-a\n+b\n",
        "rename from a\nrename to b\n",
    ],
)
def test_malformed_and_unsupported_patches_are_refused(text: str) -> None:
    with pytest.raises(unified_diff.PatchError):
        unified_diff.parse(text)


def test_pin_has_every_field() -> None:
    pin = llama_cpp_pin.read_pin()
    assert re.fullmatch(r"[0-9a-f]{64}", pin.sha256)
    assert re.fullmatch(r"[0-9a-f]{7,40}", pin.commit)


def test_lay_writes_the_patched_tree(queue: tuple[Pin, Path], tmp_path: Path) -> None:
    fetch_llama_cpp.lay(queue[0], tmp_path / "tree")
    assert (tmp_path / "tree/src/a.c").read_text() == "one\nTWO\n2\nthree\nfour\nfive\n"
    assert (tmp_path / "tree/CMakeLists.txt").read_text() == "project(x)\n"
    assert not (tmp_path / "tree/docs").exists()


def test_lay_after_a_changed_patch_writes_only_what_differs(queue: tuple[Pin, Path], tmp_path: Path) -> None:
    pin, folder = queue
    tree = tmp_path / "tree"
    fetch_llama_cpp.lay(pin, tree)
    for path in tree.rglob("*.c"):
        os.utime(path, (1, 1))
    (folder / "0001-hooks.patch").write_text(PATCH.replace("+TWO", "+Two") + NEW_FILE)
    fetch_llama_cpp.lay(pin, tree)
    assert "Two" in (tree / "src/a.c").read_text()
    assert (tree / "src/new.c").read_text() == "a\nb\n"
    assert (tree / "src/b.c").stat().st_mtime == 1
    (folder / "0001-hooks.patch").write_text(PATCH)
    fetch_llama_cpp.lay(pin, tree)
    assert not (tree / "src/new.c").exists()


def test_lay_names_the_patch_that_fails(queue: tuple[Pin, Path], tmp_path: Path) -> None:
    (queue[1] / "0001-hooks.patch").write_text(PATCH.replace(" three", " drei"))
    with pytest.raises(
        PinError, match=r"^patches/0001-hooks\.patch: does not apply to llama\.cpp abcdef0: src/a\.c:3: "
    ):
        fetch_llama_cpp.lay(queue[0], tmp_path / "tree")
    assert not (tmp_path / "tree" / ".dqrelo-pin").exists()


def test_archive_with_another_digest_is_refused(queue: tuple[Pin, Path], tmp_path: Path) -> None:
    with (tmp_path / "fake_llama-1.tar.gz").open("ab") as file:
        file.write(b"x")
    with pytest.raises(PinError, match=rf"SHA-256 is [0-9a-f]{{64}}, expected {queue[0].sha256}"):
        fetch_llama_cpp.lay(queue[0], tmp_path / "tree")


def test_archive_without_the_tree_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = make_archive(tmp_path / "empty.tar.gz", {})
    monkeypatch.setenv(llama_cpp_pin.SDIST_VARIABLE, str(tmp_path / "empty.tar.gz"))
    with pytest.raises(PinError, match="has no files under"):
        fetch_llama_cpp.lay(pin, tmp_path / "tree")


def test_download_failure_says_how_to_give_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(PinError, match=r"pip could not fetch .* Give the file with DQRELO_LLAMA_CPP_SDIST") as caught:
        llama_cpp_pin.download("fake-llama", "1", tmp_path / "cache" / "x.tar.gz", sha256="0" * 64)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_patches_apply_to_the_pin() -> None:
    need_archive()
    patches.check()


def test_the_tree_has_the_templates_of_upstreams_server_tests() -> None:
    pin = need_archive()
    tree = {name: content for name, _, content in llama_cpp_pin.read_sources(pin, llama_cpp_pin.archive(pin))}
    tests = b"".join(content for name, content in tree.items() if name.startswith("tools/server/tests/unit/"))
    named = {found.decode() for found in re.findall(rb"models/templates/[\w.-]+\.jinja", tests)}
    assert named
    assert named <= tree.keys()


def test_patches_change_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    patches.count()
    found = re.search(r"(\d+) upstream lines changed", capsys.readouterr().out)
    texts = [path.read_text().splitlines() for path in llama_cpp_pin.patch_files()]
    expected = sum(line[0] in "+-" and line[:4] not in {"+++ ", "--- "} for text in texts for line in text if line)
    assert found
    assert int(found[1]) == expected < MAX_CHANGED_LINES


def test_make_writes_what_checkout_laid(
    queue: tuple[Pin, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin, folder = queue
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    monkeypatch.setattr(llama_cpp_pin, "read_pin", lambda: pin)
    monkeypatch.setattr(patches, "PATCHES", folder)
    tree = tmp_path / "tree"
    patches.checkout(tree)
    (folder / "0001-hooks.patch").unlink()
    patches.make(tree)
    assert [path.name for path in llama_cpp_pin.patch_files()] == ["0002-llama-graph-hooks.patch"]
    fetch_llama_cpp.lay(pin, tmp_path / "laid")
    assert (tmp_path / "laid/src/a.c").read_text() == (tree / "src/a.c").read_text()
    (tree / "CMakeLists.txt").write_text("project(y)\n")
    with pytest.raises(PinError, match=r"outside the patches' folders .*: CMakeLists\.txt"):
        patches.make(tree)


def configure(folder: Path, *options: str, **variables: str) -> str:
    """What CMake prints when it configures this project, which is expected to fail."""
    cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if not cmake:
        pytest.skip("cmake is not installed")
    done = subprocess.run(
        [cmake, "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}", *options],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    return done.stderr


def one_line(output: str, words: str) -> str:
    (line,) = [line for line in output.splitlines() if words in line]
    return line


def test_missing_compiler_is_one_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "no-compiler")
    output = configure(tmp_path / "build", CC=missing, CXX=missing)
    assert "set CC and CXX" in one_line(output, "no working C compiler found")


def test_unpatched_tree_is_one_line_with_the_command(tmp_path: Path) -> None:
    header = tmp_path / "tree" / "ggml" / "include" / "ggml.h"
    header.parent.mkdir(parents=True)
    header.write_text("enum ggml_op {};\n")
    output = configure(tmp_path / "build", f"-DDQRELO_LLAMA_CPP_DIR={tmp_path / 'tree'}")
    assert "| patch -p1 -d" in one_line(output, "lacks the patches of this project")


def test_damaged_archive_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged.tar.gz").write_bytes(b"damaged")
    output = configure(tmp_path / "build", DQRELO_LLAMA_CPP_SDIST=str(tmp_path / "damaged.tar.gz"))
    assert llama_cpp_pin.read_pin().sha256 in one_line(output, "SHA-256 is")


def test_pypi_cuda_links_what_the_packages_lack(tmp_path: Path) -> None:
    toolkit = tmp_path / "nvidia" / "cu13"
    for name in ("bin/nvcc", "lib/libcublas.so.13", "lib/libcublasLt.so.13", "lib/libcudart.so.13"):
        (toolkit / name).parent.mkdir(parents=True, exist_ok=True)
        (toolkit / name).touch()
    assert pypi_cuda.find_toolkit(tmp_path) == toolkit
    for _ in range(2):  # A second run finds its own links.
        pypi_cuda.link_libraries(toolkit)
    assert (toolkit / "lib64" / "libcublas.so").resolve() == toolkit / "lib" / "libcublas.so.13"
    assert f"-DCUDAToolkit_ROOT={toolkit}" in pypi_cuda.options(toolkit)


def test_pypi_cuda_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip install"):
        pypi_cuda.find_toolkit(tmp_path)
    (tmp_path / "lib").mkdir()
    with pytest.raises(FileNotFoundError, match="cublas"):
        pypi_cuda.link_libraries(tmp_path)


def test_version_is_the_one_of_pyproject() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    try:
        assert importlib.metadata.version("dqrelo-gguf") == declared == dqrelo_gguf.__version__
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")


@pytest.fixture
def in_package() -> Callable[[str], Path]:
    if not (PACKAGE / "bin").is_dir():
        pytest.skip("the package runs from its source tree, not from a wheel")
    return lambda name: PACKAGE / name


@pytest.mark.parametrize("name", PROGRAMS)
def test_wheel_programs_load_their_own_libraries(in_package: Callable[[str], Path], name: str) -> None:
    program = in_package(f"bin/{name}")
    environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    subprocess.run(
        [program, "--help"],
        env=environment,
        capture_output=True,
        timeout=60,
        check=name not in {"llama-quantize", "dqrelo-op-check"},
    )
    if sys.platform != "linux":
        return
    needed = subprocess.run(["ldd", program], env=environment, capture_output=True, text=True, check=True).stdout
    ours = [line for line in needed.splitlines() if re.search(r"lib(llama|ggml|mtmd)", line)]
    assert ours
    assert all(str(PACKAGE / "lib") in os.path.realpath(line.split(" => ")[1].split(" (")[0]) for line in ours), needed


def test_wheel_holds_each_library_once(in_package: Callable[[str], Path]) -> None:
    names = sorted(path.name for path in in_package("lib").iterdir())
    assert {"libllama.so", "libggml.so", "libggml-base.so"} <= set(names) or sys.platform != "linux"
    assert any(re.match(r"libggml-cpu(-\w+)?\.", name) for name in names) or sys.platform != "linux"
    assert not [name for name in names if re.search(r"\.so\.\d", name)]


def test_wheel_bundles_upstreams_packages_with_licences(in_package: Callable[[str], Path]) -> None:
    for name in (
        "gguf/__init__.py",
        "gguf/LICENSE",
        "conversion/__init__.py",
        "conversion/LICENSE",
        "convert_hf_to_gguf.py",
        "convert_lora_to_gguf.py",
    ):
        assert in_package(f"_vendor/{name}").is_file()
    assert "MIT License" in in_package("licenses/LICENSE-llama.cpp").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_are_installed(in_package: Callable[[str], Path], name: str) -> None:
    del in_package
    command = Path(sys.executable).parent / name
    done = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()

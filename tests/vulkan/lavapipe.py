"""Run the Vulkan tests without a GPU: on Debian, through lavapipe, Mesa's Vulkan device that is made of CPU threads.

    python tests/vulkan/lavapipe.py --install

Builds the project with GGML_VULKAN=ON in a directory of its own and runs tests/vulkan there, with the Python that runs this and
that has what the package and its tests need.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "cmake"))
import debian_packages  # noqa: E402 - the line above finds it

TESTS = Path(__file__).resolve().parent
TARGETS = ("_core", "llama-quantize")
KEEP_BUFFERS = "libkeep_buffers.so"  # It helps against a fault of Mesa 22.3, which its source describes.

DRIVERS = Path("/usr/share/vulkan/icd.d")
SPIRV = Path("/usr/share/cmake/SPIRV-Headers")
LIBRARIES = Path("/usr/lib")

# With older headers ggml-vulkan does not compile. Debian 12 has older ones; of the next release's package only the
# headers are used.
NEEDED_HEADERS = (1, 4)
HEADERS_PACKAGE = "libvulkan-dev"


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    work = args.work.resolve()
    build = work / "build"
    prepare_packages(install=args.install)
    include = prepare_headers(work / "headers", args.suite)
    configure(build, include, args.llama_cpp)
    run("cmake", "--build", build, "--parallel", args.jobs, "--target", *TARGETS)
    run("cc", "-O2", "-shared", "-fPIC", f"-I{include}", TESTS / "keep_buffers.c", "-o", build / KEEP_BUFFERS, "-ldl")
    if args.build_only:
        return 0
    command = [sys.executable, "-m", "pytest", "-m", "", TESTS, *args.pytest]
    return subprocess.run(command, cwd=ROOT, env=environment(build, args.llama_cpp), check=False).returncode


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="lavapipe.py",
        description="Build for Vulkan and run tests/vulkan without a GPU, on Mesa's lavapipe (Debian).",
    )
    prepare = made.add_argument_group("preparation")
    prepare.add_argument(
        "--install", action="store_true", help="install missing packages with apt-get (default: name them)"
    )
    prepare.add_argument(
        "--suite",
        default="trixie",
        metavar="NAME",
        help=f"the Debian release to take {HEADERS_PACKAGE} from where the system's headers are too old; "
        "it is unpacked, not installed (default: %(default)s)",
    )
    build = made.add_argument_group("build")
    build.add_argument(
        "--work",
        type=Path,
        default=ROOT / "build" / "vulkan",
        metavar="DIR",
        help="directory for headers and the build (default: build/vulkan)",
    )
    build.add_argument(
        "--llama-cpp", type=Path, metavar="DIR", help="a patched llama.cpp tree (default: the pinned one, fetched)"
    )
    build.add_argument(
        "-j", "--jobs", type=int, default=os.cpu_count() or 1, help="parallel jobs (default: %(default)s)"
    )
    build.add_argument("--build-only", action="store_true", help="run no tests (default: off)")
    made.add_argument("pytest", nargs="*", metavar="ARGUMENT", help="behind `--`: arguments for pytest")
    return made


def run(*command: object, folder: Path = ROOT) -> None:
    """Runs a command, and ends the program where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, check=False)
    if done.returncode != 0:
        sys.exit(f"{words[0]}: ended with status {done.returncode}: {' '.join(words)}")


def lavapipe() -> Path | None:
    """The file that tells the Vulkan loader of lavapipe."""
    return next(iter(sorted(DRIVERS.glob("lvp_icd*.json"))), None)


def missing_packages() -> list[str]:
    found = {
        "mesa-vulkan-drivers": lavapipe() is not None,
        "glslc": shutil.which("glslc") is not None,
        "spirv-headers": SPIRV.is_dir(),
        "cmake": shutil.which("cmake") is not None,
    }
    return [package for package, is_there in found.items() if not is_there]


def prepare_packages(*, install: bool) -> None:
    missing = missing_packages()
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not install:
        sys.exit(f"missing: {', '.join(missing)}. Run `{' '.join(command)}` as root, or give --install")
    run("apt-get", "update")
    run(*command)
    if still := missing_packages():
        sys.exit(f"{', '.join(still)}: installed, but not found where Debian 12 and 13 have them")


def headers_version(include: Path) -> tuple[int, int]:
    """Of the Vulkan headers in a directory; (0, 0) where there are none."""
    header = include / "vulkan" / "vulkan_core.h"
    text = header.read_text(encoding="utf-8") if header.is_file() else ""
    found = re.search(r"VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION\(\d+, (\d+), (\d+),", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def prepare_headers(folder: Path, suite: str) -> Path:
    """A directory with headers that are new enough: the system's, or those of another release's package, unpacked in `folder`."""
    system, unpacked = Path("/usr/include"), folder / "usr" / "include"
    for include in (system, unpacked):
        if headers_version(include) >= NEEDED_HEADERS:
            return include
    try:
        debian_packages.unpack([HEADERS_PACKAGE], folder, suite)
    except subprocess.CalledProcessError as e:
        sys.exit(f"{HEADERS_PACKAGE} of {suite}: {e}")
    if headers_version(unpacked) < NEEDED_HEADERS:
        needed, has = (".".join(map(str, version)) for version in (NEEDED_HEADERS, headers_version(unpacked)))
        sys.exit(f"{HEADERS_PACKAGE} of {suite}: has Vulkan {has}, expected {needed} or newer; give a later --suite")
    return unpacked


def configure(build: Path, include: Path, llama_cpp: Path | None) -> None:
    library = next(iter(sorted(LIBRARIES.glob("*/libvulkan.so.1"))), None)
    if library is None:
        sys.exit(
            f"{LIBRARIES}/*/libvulkan.so.1: not found, expected from libvulkan1, on which mesa-vulkan-drivers depends"
        )
    options = {
        "GGML_VULKAN": "ON",
        "DQRELO_BUILD_PYTHON": "ON",
        "Python_EXECUTABLE": sys.executable,
        "Vulkan_INCLUDE_DIR": include,
        "Vulkan_LIBRARY": library,
        "DQRELO_LLAMA_CPP_DIR": llama_cpp.resolve() if llama_cpp else "",
    }
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run("cmake", "-S", ROOT, "-B", build, *generator, *(f"-D{name}={value}" for name, value in options.items()))


def environment(build: Path, llama_cpp: Path | None) -> dict[str, str]:
    """For the tests: the build, and lavapipe as the only device, which ggml does not take unless told to."""
    preload = [str(build / KEEP_BUFFERS), *filter(None, [os.environ.get("LD_PRELOAD")])]
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT / "python"),
        "DQRELO_CORE_DIR": str(build / "python"),
        "DQRELO_BIN_DIR": str(build / "bin"),
        "DQRELO_LLAMA_CPP_DIR": str((llama_cpp or build / "llama.cpp-src").resolve()),
        "VK_DRIVER_FILES": str(lavapipe()),
        "GGML_VK_VISIBLE_DEVICES": "0",
        "LD_PRELOAD": " ".join(preload),
    }


if __name__ == "__main__":
    sys.exit(main())

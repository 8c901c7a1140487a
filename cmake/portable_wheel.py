"""Makes the portable wheel, dist/dqrelo_gguf-*.whl: for one Python or for several, for this machine's architecture or for another one.

portable_wheel.py                                  for the running Python
portable_wheel.py --pythons "python3.11 DIR ..."   one wheel for several: interpreters, or folders with their Python.h
portable_wheel.py --arch aarch64 --pythons ...     cross-compiled (cmake/aarch64.cmake); the folders are those of the other architecture

Only the native module differs between Pythons, so a wheel for several has one module for each and everything else once.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_MIN_MINOR = 11


def include_of(python: str) -> Path:
    """The folder with Python.h of an interpreter, or the folder itself.

    Raises:
        ValueError: there is none, or it is of a Python that is too old.
    """
    folder, program = Path(python), shutil.which(python)
    if not (folder / "Python.h").is_file() and program is not None:
        code = "import sysconfig; print(sysconfig.get_path('include'))"
        folder = Path(subprocess.run([program, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    elif not folder.is_dir():
        raise ValueError(f"{python}: is no interpreter and no folder")
    if not (folder / "Python.h").is_file():
        raise ValueError(f"{python}: no Python.h in {folder} (Debian: apt-get install libpython3-dev)")
    minor_of(folder)
    return folder.absolute()  # CMake takes a relative path for one below its own folder.


def minor_of(include: Path) -> int:
    """The 13 of 3.13."""
    text = (include / "patchlevel.h").read_text(encoding="utf-8")
    found = {part: int(n) for part, n in re.findall(r"#define PY_(MAJOR|MINOR)_VERSION\s+(\d+)", text)}
    if found.get("MAJOR") != 3 or found.get("MINOR", 0) < _MIN_MINOR:
        raise ValueError(f"{include}: has the headers of Python {found}, expected 3.{_MIN_MINOR} or newer")
    return found["MINOR"]


def settings_of(includes: Sequence[Path], arch: str) -> list[str]:
    """What pip is told about the build."""
    names = "-".join(str(minor_of(include)) for include in includes) or "{wheel_tag}"
    settings = [f"build-dir=build/portable-{arch}-{names}", "cmake.define.DQRELO_PORTABLE=ON"]
    if includes:
        settings.append(f"cmake.define.DQRELO_PYTHON_INCLUDES={';'.join(map(str, includes))}")
    if arch != platform.machine():
        settings.append(f"cmake.define.CMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / f'{arch}.cmake'}")
        settings.append(
            "install.strip=false"
        )  # The linker strips: this machine's strip does not know the architecture.
        settings.append("cmake.define.CMAKE_MODULE_LINKER_FLAGS=-s")
        settings.append("cmake.define.CMAKE_SHARED_LINKER_FLAGS=-s")
        settings.append("cmake.define.CMAKE_EXE_LINKER_FLAGS=-s")
    return settings


def tags_of(includes: Sequence[Path], arch: str) -> list[str]:
    """What `wheel tags` is told: a compressed set stands for a tag for each Python."""
    pythons = ".".join(f"cp3{minor}" for minor in sorted(map(minor_of, includes)))
    return ["--python-tag", pythons, "--abi-tag", pythons, "--platform-tag", f"linux_{arch}", "--remove"]


def _check_arch(arch: str, includes: Sequence[Path]) -> None:
    if arch != platform.machine() and not includes:
        raise ValueError(f"--arch {arch}: needs --pythons, folders with the headers of that architecture")
    if arch != platform.machine() and not (ROOT / "cmake" / f"{arch}.cmake").is_file():
        raise ValueError(f"--arch {arch}: there is no cmake/{arch}.cmake")


def make(includes: Sequence[Path], arch: str) -> None:
    """Builds, tags and repairs the wheel."""
    folder = ROOT / "build" / f"wheel-{arch}"
    shutil.rmtree(folder, ignore_errors=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
    ]
    settings = [word for setting in settings_of(includes, arch) for word in ("-C", setting)]
    subprocess.run([*pip, *settings, "--wheel-dir", folder, "."], cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    if includes:
        subprocess.run([sys.executable, "-m", "wheel", "tags", *tags_of(includes, arch), built], check=True)
        (built,) = folder.glob("*.whl")
    environment = dict(os.environ)
    if arch != platform.machine():
        environment["LD_LIBRARY_PATH"] = f"/usr/{arch}-linux-gnu/lib"  # Where auditwheel finds libgomp.
    subprocess.run(
        [sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", ROOT / "dist", built], env=environment, check=True
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", default="", help="interpreters, or folders with Python.h, separated by blanks")
    parser.add_argument("--arch", default="", help="the processor's architecture (default: this machine's)")
    options = parser.parse_args(argv)
    arch = options.arch or platform.machine()
    try:
        includes = [include_of(python) for python in options.pythons.split()]
        _check_arch(arch, includes)
        make(includes, arch)
    except (ValueError, subprocess.CalledProcessError) as e:
        print(f"portable_wheel.py: error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

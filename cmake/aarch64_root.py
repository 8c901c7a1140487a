"""Makes a folder with Debian's Python for 64-bit ARM: its headers to build a wheel with, and all that QEMU needs to run that wheel.

aarch64_root.py FOLDER                        headers, interpreter and libraries: make wheel ARCH=aarch64 PYTHONS=FOLDER/usr/include/python3.11
aarch64_root.py FOLDER --wheel dist/X.whl     and then the wheel, with what it imports, in FOLDER/site

The second leaves PyTorch and transformers out, which only the converter needs. It runs the interpreter of neither: pip takes built wheels of
that architecture.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import debian_packages

PYTHON = "3.11"
# Of this release the C library is old enough for QEMU 7.2, which Debian 12 has.
SUITE = "bookworm"
PACKAGES = (f"python{PYTHON}", f"libpython{PYTHON}-dev", "libgomp1", "libstdc++6")
# What the package imports without a checkpoint to convert.
IMPORTED = ("numpy>=2.2.6", "pyyaml", "requests", "tqdm", "rich", "safetensors", "filelock", "shtab")


def site_of(root: Path) -> Path:
    """Where the wheel is installed."""
    return root / "site"


def python_of(root: Path) -> Path:
    """The interpreter, a program for 64-bit ARM."""
    return root / "usr" / "bin" / f"python{PYTHON}"


def install(root: Path, wheel: Path) -> None:
    """Installs a wheel, and what it imports, for the interpreter in the folder.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--upgrade"]
    platforms = [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in (17, 28, *range(34, 37))]
    target = ["--target", str(site_of(root)), "--only-binary=:all:", "--python-version", PYTHON, *platforms]
    subprocess.run([*pip, *target, *IMPORTED], check=True)
    subprocess.run([*pip, *target, "--no-deps", wheel], check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made anew, unless --wheel finds it there")
    parser.add_argument("--wheel", type=Path, help="a wheel of `make wheel ARCH=aarch64`")
    options = parser.parse_args(argv)
    try:
        if options.wheel is None or not python_of(options.folder).is_file():
            debian_packages.unpack(PACKAGES, options.folder, SUITE, "arm64", with_dependencies=True)
        if options.wheel is not None:
            install(options.folder, options.wheel)
    except (OSError, subprocess.CalledProcessError) as e:
        print(f"aarch64_root.py: error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

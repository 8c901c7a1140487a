"""Unpacks packages of Debian into a folder, of any release and architecture, and leaves the system as it is.

apt checks their signatures, with lists of its own below the folder.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT = ".apt"  # The folder in the folder: lists and archives.


def unpack(
    packages: Sequence[str], folder: Path, suite: str, arch: str | None = None, *, with_dependencies: bool = False
) -> None:
    """Unpacks packages, or these and all that they need. The folder is made anew.

    Args:
        packages: their names.
        folder: becomes the packages' root, with `usr` in it.
        suite: the release, for instance "trixie".
        arch: Debian's name of an architecture, for instance "arm64"; None for this machine's.
        with_dependencies: down to the C library; what is only recommended is left out.

    Raises:
        subprocess.CalledProcessError: apt or dpkg failed; they have said why on stderr.
    """
    shutil.rmtree(folder, ignore_errors=True)
    apt = folder.resolve() / APT
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    options = [f"-o{name}={value}" for name, value in _options(apt, suite, arch).items()]
    _run(["apt-get", *options, "update"], apt)
    if with_dependencies:
        flags = ["--yes", "--download-only", "--no-install-recommends"]
        _run(["apt-get", *options, "install", *flags, *packages], apt)
    else:
        _run(["apt-get", *options, "download", *packages], apt)
    for package in sorted(apt.rglob("*.deb")):
        _run(["dpkg-deb", "--extract", package, apt.parent], apt)


def _options(apt: Path, suite: str, arch: str | None) -> dict[str, str | Path]:
    sources = apt / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n", encoding="utf-8")
    return {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": "/dev/null",  # Nothing is installed in the folder.
        "Dir::Cache": apt / "cache",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "",
        **({"APT::Architecture": arch, "APT::Architectures": arch} if arch else {}),
    }


def _run(command: Sequence[str | Path], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True)

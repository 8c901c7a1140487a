"""The pinned llama.cpp: which one it is (patches/UPSTREAM), its archive, the files in it, the patches on it.

The archive is a source distribution, fetched with pip from whatever index pip is set up for, checked by SHA-256 and
kept in ${XDG_CACHE_HOME:-~/.cache}/dqrelo. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import unified_diff

if TYPE_CHECKING:
    from collections.abc import Iterator

PATCHES = Path(__file__).resolve().parent.parent / "patches"
SDIST_VARIABLE = "DQRELO_LLAMA_CPP_SDIST"
# Nothing in these is compiled, installed or read by upstream's server tests, and most of the bytes are there.
_SKIPPED = (".github/", "docs/", "media/", "models/ggml-vocab-", "benches/")


class PinError(Exception):
    """The pinned tree cannot be had; the text is one line that says why and what to do."""


@dataclass(frozen=True)
class Pin:
    """The fields of patches/UPSTREAM."""

    package: str
    version: str
    commit: str
    sha256: str

    @property
    def archive_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}.tar.gz"

    @property
    def source_root(self) -> str:
        """Where llama.cpp lies in the archive."""
        return f"{self.package.replace('-', '_')}-{self.version}/vendor/llama.cpp/"


def read_pin(path: Path = PATCHES / "UPSTREAM") -> Pin:
    fields = dict(line.split(" = ", 1) for line in path.read_text(encoding="utf-8").splitlines() if " = " in line)
    try:
        return Pin(**fields)
    except TypeError as error:
        raise PinError(f"{path}: expected package, version, commit and sha256, got {', '.join(fields)}") from error


def patch_files() -> list[Path]:
    return sorted(PATCHES.glob("[0-9]*.patch"))


def read_patches() -> dict[Path, list[unified_diff.FilePatch]]:
    """Every patch file with its file patches, in order of application."""
    patches = {}
    for path in patch_files():
        try:
            patches[path] = unified_diff.parse(path.read_bytes().decode("utf-8", "surrogateescape"))
        except unified_diff.PatchError as error:
            raise PinError(f"patches/{path.name}: {error}") from error
    return patches


def apply_patches(pin: Pin, files: dict[str, bytes]) -> dict[str, bytes]:
    """The patched content of every file that the patches change; `files` are their pinned contents by path."""
    patched = dict(files)
    for path, file_patches in read_patches().items():
        for patch in file_patches:
            if not patch.is_new and patch.path not in patched:
                raise _patch_failed(path, pin, f"{patch.path} is not in the pinned tree")
            if patch.is_new and patch.path in patched:
                raise _patch_failed(path, pin, f"{patch.path} exists already")
            source = patched.get(patch.path, b"").decode("utf-8", "surrogateescape")
            try:
                patched[patch.path] = patch.apply(source).encode("utf-8", "surrogateescape")
            except unified_diff.PatchError as error:
                raise _patch_failed(path, pin, str(error)) from error
    return patched


def _patch_failed(path: Path, pin: Pin, why: str) -> PinError:
    return PinError(
        f"patches/{path.name}: does not apply to llama.cpp {pin.commit}: {why}. See docs/building.md, 'Patches'"
    )


def cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dqrelo"


def archive(pin: Pin) -> Path:
    """The verified archive: the file named by DQRELO_LLAMA_CPP_SDIST, or the cached one, or a new download."""
    given = os.environ.get(SDIST_VARIABLE)
    if given:
        path = Path(given)
        if not path.is_file():
            raise PinError(f"{SDIST_VARIABLE}={given}: no such file")
        _verify(path, pin)
        return path
    path = cache_dir() / pin.archive_name
    if not path.is_file():
        download(pin.package, pin.version, path, sha256=pin.sha256)
    _verify(path, pin)
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, pin: Pin) -> None:
    found = sha256_of(path)
    if found != pin.sha256:
        raise PinError(
            f"{path}: SHA-256 is {found}, expected {pin.sha256} (patches/UPSTREAM). The file is damaged or another one: delete it and build again"
        )


def download(package: str, version: str, target: Path, *, sha256: str | None) -> None:
    """Fetches the source distribution with pip. With a digest, pip checks it before it runs anything from the archive.

    The file appears under its name only when whole, so builds that run at the same time do not disturb each other.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="download-") as folder:
        wanted = Path(folder) / "wanted.txt"
        digest = f" --hash=sha256:{sha256}" if sha256 else ""
        wanted.write_text(f"{package}=={version}{digest}\n", encoding="utf-8")
        # fmt: off
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", package, "--progress-bar", "off",
                   "--disable-pip-version-check", "--dest", folder, "--requirement", str(wanted)]
        # fmt: on
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise _download_failed(package, version, done.stdout + done.stderr)
        (found,) = Path(folder).glob("*.tar.gz")
        found.replace(target)


def _download_failed(package: str, version: str, output: str) -> PinError:
    lines = [line.strip() for line in output.splitlines()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        digests = {
            word: line.split()[-1] for line in lines for word in ("Expected sha256", "Got") if line.startswith(word)
        }
        return PinError(
            f"{package}=={version}: SHA-256 of the download is {digests.get('Got', 'another one')}, "
            f"expected {digests.get('Expected sha256', 'the pinned one')} (patches/UPSTREAM). Nothing was used"
        )
    errors = (
        [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:] or ["no output"]
    )
    no_pip = any("No module named pip" in line for line in lines)
    why = f"{sys.executable} has no pip" if no_pip else errors[0]
    return PinError(
        f"{package}=={version}: pip could not fetch the source distribution: {why}. Give the file with {SDIST_VARIABLE}=/path/to/it"
    )


def read_sources(pin: Pin, path: Path) -> Iterator[tuple[str, int, bytes]]:
    """(path relative to llama.cpp, permission bits, content) of every file that a build can need."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                name = member.name.removeprefix(pin.source_root)
                outside = name == member.name or ".." in name.split("/")
                if outside or not member.isfile() or name == ".git" or name.startswith(_SKIPPED):
                    continue
                content = tar.extractfile(member)
                yield name, member.mode & 0o777, content.read() if content else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise PinError(f"{path}: cannot be read as a tar.gz archive: {error}") from error

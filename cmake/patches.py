"""Keeps the patches on the pinned llama.cpp.

patches.py count          how many upstream lines the patches change
patches.py check          that they apply to the pin
patches.py checkout DIR   a git tree of the pin with the patches as uncommitted changes, to work in
patches.py make DIR       writes patches/*.patch from the uncommitted changes of such a tree
patches.py bump VERSION   pins another release: fetches it, writes patches/UPSTREAM, checks the patches
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import llama_cpp_pin
import unified_diff
from llama_cpp_pin import PATCHES, Pin, PinError

# Each patch takes the changes under one folder of llama.cpp.
_GROUPS = {
    "0001-ggml-op": "ggml",
    "0002-llama-graph-hooks": "src",
    "0003-common-args": "common",
    "0004-server": "tools",
    "0005-http-threads": "vendor",
}
_UPSTREAM_COMMENT = 2  # lines at the top of patches/UPSTREAM that a bump keeps


def count() -> None:
    """Prints added and removed lines per file and in all."""
    total_added = total_removed = 0
    for path, file_patches in llama_cpp_pin.read_patches().items():
        print(path.name)
        for patch in file_patches:
            print(f"  {patch.n_added:5} added {patch.n_removed:5} removed  {patch.path}")
            total_added += patch.n_added
            total_removed += patch.n_removed
    print(f"total: {total_added} added, {total_removed} removed, {total_added + total_removed} upstream lines changed")


def check() -> None:
    """Applies the patches to the pinned files in memory."""
    pin = llama_cpp_pin.read_pin()
    names = {patch.path for patches in llama_cpp_pin.read_patches().values() for patch in patches}
    sources = llama_cpp_pin.read_sources(pin, llama_cpp_pin.archive(pin))
    llama_cpp_pin.apply_patches(pin, {name: content for name, _, content in sources if name in names})
    print(f"{len(llama_cpp_pin.patch_files())} patches apply to llama.cpp {pin.commit}")


def git(tree: Path, *arguments: str) -> str:
    # Renames off and a fixed hash length: the same changes give the same patch on every machine.
    # fmt: off
    command = ["git", "-C", str(tree), "-c", "user.name=dqrelo", "-c", "user.email=dqrelo@localhost", "-c", "core.autocrlf=false",
               *arguments]
    # fmt: on
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise PinError("git is not installed; only checkout and make need it") from error
    if done.returncode != 0:
        raise PinError(f"git {arguments[0]} in {tree}: {done.stderr.decode(errors='replace').strip().splitlines()[-1]}")
    return done.stdout.decode("utf-8", "surrogateescape")


def checkout(tree: Path) -> None:
    """Lays the pin as the tree's one commit, then the patches; a patch that fails leaves .rej files to resolve."""
    if tree.exists() and any(tree.iterdir()):
        raise PinError(f"{tree}: is not empty. Give a new folder")
    pin = llama_cpp_pin.read_pin()
    for name, mode, content in llama_cpp_pin.read_sources(pin, llama_cpp_pin.archive(pin)):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    git(tree, "init", "--quiet")
    git(tree, "add", "--all", "--force")
    git(tree, "commit", "--quiet", "--message", f"llama.cpp {pin.commit}")
    failed = []
    for path in llama_cpp_pin.patch_files():
        try:
            git(tree, "apply", "--reject", str(path))
        except PinError:
            failed.append(path.name)
    if failed:
        raise PinError(
            f"{', '.join(failed)}: not everything applies. Resolve the *.rej files in {tree}, delete them, then: patches.py make {tree}"
        )
    print(f"{tree}: llama.cpp {pin.commit} with the patches as uncommitted changes")


def make(tree: Path) -> None:
    """Writes one patch a group; a change outside all groups is an error, so that none is lost."""
    git(tree, "add", "--all", "--intent-to-add")
    changed = git(tree, "diff", "--name-only", "--no-renames", "HEAD").splitlines()
    stray = [name for name in changed if name.split("/")[0] not in _GROUPS.values() or name.endswith((".rej", ".orig"))]
    if stray:
        raise PinError(
            f"{tree}: changes outside the patches' folders ({', '.join(_GROUPS.values())}): {', '.join(stray)}"
        )
    texts = {
        name: git(tree, "diff", "--no-renames", "--no-color", "--no-ext-diff", "--abbrev=10", "HEAD", "--", folder)
        for name, folder in _GROUPS.items()
    }
    for name, text in texts.items():
        path = PATCHES / f"{name}.patch"
        if text:
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
        else:
            path.unlink(missing_ok=True)
    count()
    check()


def bump(version: str) -> None:
    """Pins another version: downloads it, reads its llama.cpp commit from its changelog."""
    old = llama_cpp_pin.read_pin()
    new = dataclasses.replace(old, version=version, commit="", sha256="")
    path = llama_cpp_pin.cache_dir() / new.archive_name
    if not path.is_file():
        llama_cpp_pin.download(new.package, version, path, sha256=None)
    new = dataclasses.replace(new, sha256=llama_cpp_pin.sha256_of(path), commit=commit_of(new, path))
    upstream = PATCHES / "UPSTREAM"
    comment = upstream.read_text(encoding="utf-8").splitlines()[:_UPSTREAM_COMMENT]
    fields = [f"{name} = {value}" for name, value in dataclasses.asdict(new).items()]
    upstream.write_text("\n".join(comment + fields) + "\n", encoding="utf-8")
    print(f"patches/UPSTREAM: {old.version} ({old.commit}) -> {new.version} ({new.commit})")
    check()


def commit_of(pin: Pin, path: Path) -> str:
    """The llama.cpp commit that the archive's changelog names for its version."""
    with tarfile.open(path, "r:gz") as tar:
        member = tar.extractfile(pin.source_root.split("/", maxsplit=1)[0] + "/CHANGELOG.md")
        text = member.read().decode() if member else ""
    section = text.partition(f"## [{pin.version}]")[2].partition("\n## ")[0]
    match = re.search(r"llama\.cpp@([0-9a-f]{7,40})", section)
    if not match:
        raise PinError(f"{path.name}: its changelog names no llama.cpp commit for {pin.version}")
    return match[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("count")
    commands.add_parser("check")
    for name in ("checkout", "make"):
        commands.add_parser(name).add_argument("tree", type=Path, metavar="DIR")
    commands.add_parser("bump").add_argument("version", metavar="VERSION")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "count":
                count()
            case "check":
                check()
            case "checkout":
                checkout(arguments.tree)
            case "make":
                make(arguments.tree.resolve())
            case "bump":
                bump(arguments.version)
    except (PinError, unified_diff.PatchError) as error:
        print(f"patches.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

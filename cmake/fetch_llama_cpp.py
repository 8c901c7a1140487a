"""Lays the pinned, patched llama.cpp into a folder: fetch_llama_cpp.py DIR.

Called by cmake/llama-cpp.cmake. A folder that is already right is left alone; after a change of the patches only the
files whose content differs are written, so that a rebuild compiles those alone.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import llama_cpp_pin
from llama_cpp_pin import Pin, PinError

# Holds the state that the folder was laid in; absent while it is being changed.
_STAMP = ".dqrelo-pin"


def state(pin: Pin) -> str:
    """What the folder's content depends on: the pin, the patches, and the code that lays it."""
    digest = hashlib.sha256(repr(pin).encode())
    here = Path(__file__).resolve().parent
    for path in [
        *llama_cpp_pin.patch_files(),
        *(here / f"{name}.py" for name in ("fetch_llama_cpp", "llama_cpp_pin", "unified_diff")),
    ]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def write_if_changed(path: Path, content: bytes, mode: int) -> None:
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def lay(pin: Pin, folder: Path) -> None:
    """Makes `folder` hold exactly the patched tree."""
    touched = {patch.path for patches in llama_cpp_pin.read_patches().values() for patch in patches}
    originals: dict[str, bytes] = {}
    modes: dict[str, int] = {}
    stamp = folder / _STAMP
    stamp.unlink(missing_ok=True)
    for name, mode, content in llama_cpp_pin.read_sources(pin, llama_cpp_pin.archive(pin)):
        modes[name] = mode
        if name in touched:
            originals[name] = content
        else:
            write_if_changed(folder / name, content, mode)
    if not modes:
        raise PinError(f"{pin.archive_name}: has no files under {pin.source_root}")
    for name, content in llama_cpp_pin.apply_patches(pin, originals).items():
        write_if_changed(folder / name, content, modes.setdefault(name, 0o644))
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in modes:
            path.unlink()
    stamp.write_text(state(pin), encoding="utf-8")


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: fetch_llama_cpp.py DIR", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    try:
        pin = llama_cpp_pin.read_pin()
        stamp = folder / _STAMP
        if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == state(pin)):
            lay(pin, folder)
    except PinError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How much memory a process may still take."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that can be had without swapping; file pages that can be dropped count as free. None where nobody says.

    Args:
        meminfo: Linux's account of the machine.
        cgroup: that of the container, whose bound may be smaller.
    """
    found = [n for n in (_of_machine(meminfo), _of_container(cgroup)) if n is not None]
    return min(found, default=None)


def _of_machine(meminfo: Path) -> int | None:
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_container(cgroup: Path) -> int | None:
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        kept = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # There is no such container, or it has no bound ("max").
        return None
    return max(limit - used + int(kept.get("inactive_file", 0)), 0)

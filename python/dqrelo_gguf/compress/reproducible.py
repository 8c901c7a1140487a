"""Asks the BLAS for sums that do not depend on where an array lies in memory.

MKL, PyTorch's BLAS on x86, takes other instructions for the beginning of an array that is not aligned, and so adds up in another order. Where
an array lies depends on which thread made it: on Intel's processors the same input then gave other last bits with other numbers of
threads, and the converter other files. MKL has a mode against this (conditional numerical reproducibility, strict), which costs nothing
for wide products and up to a third for those of 20 columns (Intel Xeon, AVX-512). On AMD's processors the bits were the same without it.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

_VARIABLE = "MKL_CBWR"
_INTEL = "GenuineIntel"
_CPU_INFO = Path("/proc/cpuinfo")


def ask_for_reproducible_sums(cpu_info: Path = _CPU_INFO) -> None:
    """Sets the mode for this process, unless the environment has one. MKL reads it at its first product, so it must come before that.

    Args:
        cpu_info: what Linux says of the processors.
    """
    if _is_intel(cpu_info):
        os.environ.setdefault(_VARIABLE, "AUTO,STRICT")


def _is_intel(cpu_info: Path) -> bool:
    try:
        return _INTEL in cpu_info.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _INTEL in platform.processor()

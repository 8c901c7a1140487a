"""errors.py: which class stands for a failed system call."""

from __future__ import annotations

import errno

import pytest

from dqrelo_gguf.errors import DiskFullError, raise_os_error


def test_system_errors_get_their_class() -> None:
    with pytest.raises(DiskFullError, match="x: the disk is full"):
        raise_os_error(OSError(errno.EDQUOT, "Quota exceeded"), "x")

"""What may lie under a path where a file is meant."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.relpath(path))  # A socket's path has 100 bytes.


def make_directory(path: Path) -> None:
    path.mkdir()


def link_to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")

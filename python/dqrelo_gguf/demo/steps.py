"""Runs this package's commands, and says in one line which failed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from dqrelo_gguf.errors import CommandError


def command(name: str) -> list[str]:
    """How a command of this package is started: of the running interpreter, and with nothing imported from the working directory."""
    return [sys.executable, "-P", "-m", f"dqrelo_gguf.cli.{name}"]


def last_line(log: Path) -> str:
    """What a command said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def run_step(log: Path, *words: str | Path) -> float:
    """Runs a command with its output in `log`.

    Returns:
        The seconds it took.

    Raises:
        CommandError: it failed.
    """
    start = time.perf_counter()
    with log.open("wb") as file:
        done = subprocess.run([str(word) for word in words], stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise CommandError(
            f"{log.stem}: failed with exit code {done.returncode}: {last_line(log)} (--work DIR keeps {log.name})"
        )
    return time.perf_counter() - start

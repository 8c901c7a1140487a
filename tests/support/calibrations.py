"""Conversions of tiny fine-tunes by the command line, for the tests of calibrations."""

from __future__ import annotations

from pathlib import Path

from dqrelo_gguf.cli.convert import main
from tests.support.models import pico_gguf, pico_tuned_gguf

TEXT = "A small animal that feeds on fish, and now and then on birds or their eggs. " * 40


def run(kind: str, out: Path, *options: str | Path) -> int:
    """The exit code of dqrelo-convert."""
    arguments = [pico_gguf(kind), pico_tuned_gguf(kind), "-o", out, "--force", *options]
    return main([str(a) for a in arguments])

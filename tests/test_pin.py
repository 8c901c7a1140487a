"""_pin.py: which gguf is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dqrelo_gguf._pin import gguf


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env}, check=True
    )


def test_the_pinned_gguf_wins_over_an_installed_one(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "__init__.py").write_text("raise SystemExit('the wrong gguf')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run_python("from dqrelo_gguf._pin import gguf; print(gguf.__file__)", PYTHONPATH=path)
    assert done.stdout.strip() == gguf.__file__


def test_a_gguf_imported_before_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "__init__.py").write_text("")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code = (
        "import gguf\n"
        "from dqrelo_gguf.errors import PinError\n"
        "try: import dqrelo_gguf._pin\n"
        "except PinError as e: print(e)"
    )
    done = run_python(code, PYTHONPATH=path)
    assert done.stdout.startswith(f"gguf: already imported from {tmp_path / 'gguf'}, expected the pinned copy")

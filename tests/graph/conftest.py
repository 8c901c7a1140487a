"""The models of the graph pass's tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.programs import need_test_program


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Upstream's tiny models by name."""
    directory = tmp_path_factory.mktemp("archs")
    command = [need_test_program("test-llama-archs"), "-o", directory, "-v", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return {path.stem: path for path in sorted(directory.glob("*.gguf"))}

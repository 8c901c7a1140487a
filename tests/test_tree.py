"""Files that are run, tests and programs of bench/, share helpers and not each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it: `a.b` and `a.b.c` for `from a.b import c`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_test_module_or_conftest_is_imported() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for name in imported(path):
            last = name.rpartition(".")[2]
            is_test = name.startswith("tests.") and (last == "conftest" or last.startswith("test_"))
            assert not is_test, f"{path.relative_to(ROOT)} imports {name}: move what they share to tests/support"


def test_no_program_of_bench_is_imported() -> None:
    programs = {path.stem for path in (ROOT / "bench").glob("*.py")}
    for path in (ROOT / "bench").rglob("*.py"):
        used = programs.intersection(imported(path))
        assert not used, f"{path.relative_to(ROOT)} imports {used}: move what they share to bench/support"

"""Every program of bench/ explains itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PROGRAMS = sorted(path.stem for path in (Path(__file__).parents[2] / "bench").glob("*.py"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_says_what_it_is_for(bench_module, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    program = bench_module(name)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: {name}.py")
    assert program.__doc__.splitlines()[0][:40] in out

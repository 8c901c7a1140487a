"""Lines of progress: what is counted has its unit."""

from __future__ import annotations

import re

import pytest

from dqrelo_gguf.progress import Lines, phases_for_stderr


@pytest.mark.parametrize(
    ("n", "unit", "rate"), [(10**9, "params", r"[\d.]+ M params/s"), (1, "tokens", r"[\d.]+ (M )?tokens/s")]
)
def test_a_line_at_the_end(n: int, unit: str, rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Lines("reading", n, unit=unit) as progress:
        progress.step(n, "all")
    assert re.fullmatch(rf"reading: 100 %, {rate}, 0 s gone, 0 s left \(all\)\n", capsys.readouterr().err)


def test_phases_take_a_unit(capsys: pytest.CaptureFixture[str]) -> None:
    """Of all phases, or of one that counts something else."""
    phases = phases_for_stderr("answers")
    for more, unit in (({}, "answers"), ({"unit": "tokens"}, "tokens")):
        with phases("answering", 2, **more) as progress:
            progress.step(2, "base")
        assert f" {unit}/s" in capsys.readouterr().err

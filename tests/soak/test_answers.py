"""The judge of a soak's answers."""

from __future__ import annotations

import pytest

from tests.soak.answers import NOISE, Expected, Verdict

ALONE = Expected((7, 8, 9), ({7: 0.0, 3: 0.5}, {8: 0.0, 3: NOISE / 2, 4: 2 * NOISE}, {9: 0.0, 3: 1.0}))


@pytest.mark.parametrize(
    ("tokens", "verdict"),
    [
        ((7, 8, 9), Verdict.RIGHT),
        ((7, 3, 1), Verdict.NEAR_TIE),  # What follows a near tie is another text.
        ((7, 4, 9), Verdict.WRONG),
        ((7, 5, 9), Verdict.WRONG),  # The token is not among the likely ones.
        ((3, 8, 9), Verdict.WRONG),
        ((7, 8), Verdict.WRONG),
        ((7, 8, 9, 9), Verdict.WRONG),
        ((), Verdict.WRONG),
    ],
)
def test_whole_answer(tokens: tuple[int, ...], verdict: Verdict) -> None:
    assert ALONE.judge(tokens) is verdict


@pytest.mark.parametrize(("tokens", "verdict"), [((), Verdict.RIGHT), ((7, 8), Verdict.RIGHT), ((7, 4), Verdict.WRONG)])
def test_beginning_of_an_answer(tokens: tuple[int, ...], verdict: Verdict) -> None:
    assert ALONE.judge(tokens, is_whole=False) is verdict

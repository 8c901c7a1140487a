"""The tables of a page."""

from __future__ import annotations

import pytest

from dqrelo_gguf.evaluate.page.tables import _plus_minus, escaped, figures_table, table


def test_every_cell_is_escaped() -> None:
    bad = "<b>&\"'\u202e"
    found = table([bad], [[bad, bad]], bad)
    assert "<b>" not in found
    assert "\u202e" not in found
    assert found.count("&lt;b&gt;&amp;&quot;&#x27;⟨U+202E⟩") == 5
    assert escaped("<") == "&lt;"


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0512345, 0.00312, "0.0512 ± 0.0031"),
        (17.17, 0.92, "17.17 ± 0.92"),
        (95.8, 31.0, "96 ± 31"),
        (0.5, 0.0, "0.5000 ± 0"),
        (1.2e-9, 3e-10, "1.200e-09 ± 3.0e-10"),
    ],
)
def test_a_value_has_the_digits_of_its_error(value: float, error: float, text: str) -> None:
    assert _plus_minus(value, error) == text


def test_every_figure_has_a_row() -> None:
    found = figures_table({"a": {"b": [1, {"c": None}]}, "right": [True, False], "x": 0.125})
    rows = ("a.b[0]", "1"), ("a.b[1].c", "none"), ("right", "10"), ("x", "0.125")
    for name, value in rows:
        assert f'<th scope="row">{name}</th><td>{value}</td>' in found
    assert found.count("<tr>") == 1 + len(rows)

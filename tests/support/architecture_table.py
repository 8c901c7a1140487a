"""The table of docs/architectures.md, from the outcomes of a test run."""

from __future__ import annotations

from pathlib import Path

from tests.support.architecture_runs import BASE_TYPES, Outcome
from tests.support.tiny_architectures import ARCHITECTURES

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

_COLUMNS = [
    "architecture",
    "particular about it",
    "weights carried",
    *(f"{base_type}: {what}" for base_type in BASE_TYPES for what in ("fine-tune", "1/8", "mixed")),
    "Q8_0's own",
    "notes",
]


def row(outcome: Outcome) -> list[str]:
    """The cells of one architecture."""
    arch = ARCHITECTURES[outcome.name]
    cells = [arch.title, arch.shows, str(outcome.n_carried) if outcome.figures else "-"]
    for base_type in BASE_TYPES:
        f = outcome.figures.get(base_type)
        cells += ["-"] * 3 if f is None else [f"{x:.0e}" for x in (f.tuned, f.merged, f.mixed)]
    cells.append(f"{outcome.figures['Q8_0'].rounding:.0e}" if outcome.figures else "-")
    return [*cells, "; ".join(notes(outcome))]


def notes(outcome: Outcome) -> list[str]:
    """What there is to say beside the figures."""
    arch = ARCHITECTURES[outcome.name]
    found = [f"refused: `{name}` {reason}" for name, reason in sorted(outcome.refused.items())]
    if outcome.inert:
        found.append("no graph reads " + ", ".join(f"`{name}`" for name in sorted(outcome.inert)))
    if arch.fault is not None:
        found.append(f"llama.cpp's conversion {arch.fault.why}; dqrelo-convert says so")
    return found


def write(outcomes: list[Outcome]) -> None:
    """Puts the table between its marks.

    Raises:
        ValueError: an architecture was not run.
    """
    by_name = {outcome.name: outcome for outcome in outcomes}
    if set(by_name) != set(ARCHITECTURES):
        missing = ", ".join(sorted(set(ARCHITECTURES) - set(by_name)))
        raise ValueError(f"{PAGE.name}: no outcome of {missing}; run all architectures, with -m ''")
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *(row(by_name[name]) for name in ARCHITECTURES)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text = PAGE.read_text()
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}")


def titles() -> list[str]:
    """The first column of the table as it is."""
    table = PAGE.read_text().split(BEGIN)[1].split(END)[0].strip().splitlines()
    return [line.split("|")[1].strip() for line in table[2:]]

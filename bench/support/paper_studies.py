"""The paper's studies (arXiv:2604.16940): which conversions each compares, and what the paper found, where it gives numbers."""

from __future__ import annotations

from dataclasses import dataclass

EIGHTH = ("--ratio", "1/8")
VECTORS = ("--vectors", "paper")  # Norms are compressed too, as in the paper.
QUARTERS = ("0-25%", "25-50%", "50-75%", "75-100%")
MODULES = ("embed", "norm", "attn", "mlp")


@dataclass(frozen=True)
class Entry:
    """A conversion.

    Args:
        label: a row's name.
        options: of dqrelo-convert.
        is_calibrated: by text that the models write.
        paper: what the paper has of it: its mean drop over models and tasks, or its score, as the study says; None where it has no number.
    """

    label: str
    options: tuple[str, ...]
    paper: float | None = None
    is_calibrated: bool = False

    @property
    def key(self) -> str:
        """A name for files: equal options are made once."""
        name = "_".join((*self.options, "calibrated")[: len(self.options) + self.is_calibrated])
        return "".join(c if c.isalnum() else "-" for c in name.replace("--", "")).strip("-")

    @property
    def method(self) -> str:
        """The converter's."""
        return self.options[self.options.index("--method") + 1]


@dataclass(frozen=True)
class Study:
    """A table.

    Args:
        title: with the place in the paper.
        entries: its rows.
        paper: what the column of the paper's figures holds; "" where it has none.
    """

    title: str
    entries: tuple[Entry, ...]
    paper: str = ""


def _entry(label: str, method: str, *options: str, paper: float | None = None) -> Entry:
    return Entry(label, ("--method", method, *options), paper)


def _ratio(n: int) -> tuple[str, str]:
    """n/32; the one that other studies have too under its own name, so that it is made once."""
    return EIGHTH if n == 4 else ("--ratio", f"{n}/32")


DROP = "paper: drop %"
PUBLISHED = _entry("paper", "paper", *EIGHTH, paper=6.17)
LOW_RANK = _entry("svd", "svd", *EIGHTH, paper=35.62)
ONE_BIT = _entry("bitdelta (1/16)", "bitdelta", paper=56.13)
EXTRACTED = _entry("lora, extracted", "lora", *EIGHTH)

STUDIES = {
    "methods": Study(
        "Methods at 1/8 (the paper's Table 2)",
        (
            _entry("random", "random", *EIGHTH, paper=86.12),
            _entry("magnitude", "magnitude", *EIGHTH, paper=53.25),
            Entry("wanda", ("--method", "wanda", *EIGHTH), 51.79, is_calibrated=True),
            LOW_RANK,
            ONE_BIT,
            _entry("delta-come", "delta-come", *EIGHTH, paper=14.00),
            PUBLISHED,
            _entry("best", "best", *EIGHTH),
            Entry("best, calibrated", ("--method", "best", *EIGHTH), is_calibrated=True),
        ),
        DROP,
    ),
    "order": Study(
        "Order of the two stages (Table 3)",
        (
            Entry("svd, then svd", LOW_RANK.options, 35.62),
            _entry("svd, then one bit", "svd-sign", *EIGHTH, paper=9.01),
            Entry("one bit", ONE_BIT.options, 56.13),
            _entry("one bit, then one bit", "sign-sign"),
            Entry("one bit, then svd", PUBLISHED.options, 6.17),
        ),
        DROP,
    ),
    "ratios": Study(
        "Ratios (Figure 3: one bit is 2/32, the rest is low rank)",
        (
            Entry("one bit, 2/32", ONE_BIT.options),
            *(_entry(f"paper, {n}/32", "paper", *_ratio(n)) for n in range(3, 9)),
            *(_entry(f"best, {n}/32", "best", *_ratio(n)) for n in (*range(1, 7), 8)),
        ),
    ),
    "lora": Study(
        "Against a LoRA of the same size (6.3: the paper trains one; here it is extracted)",
        (
            Entry("lora", EXTRACTED.options, 62.09),
            Entry("svd", LOW_RANK.options, 51.81),
            Entry("paper", PUBLISHED.options, 71.12),
        ),
        "paper: score (fine-tune 75.07)",
    ),
    "layers": Study(
        "A quarter of the layers compressed, the rest exact (6.4)",
        tuple(_entry(f"layers {part}", "paper", *EIGHTH, *VECTORS, "--layers", part) for part in QUARTERS),
    ),
    "modules": Study(
        "One kind of module compressed, the rest exact (6.5)",
        tuple(_entry(part, "paper", *EIGHTH, *VECTORS, "--modules", part) for part in MODULES),
    ),
}

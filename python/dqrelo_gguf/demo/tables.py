"""What the demo shows: sizes, and the answers side by side."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dqrelo_gguf.demo.pair import Model
from dqrelo_gguf.demo.server import ask

QUESTIONS = (
    "Say each letter twice: l x h q",
    "Put these letters in alphabetical order: w s j",
    "based in Quito, working as a baker, My name is Amy, always dressed in pink, 35 years old. Give JSON with name, job.",
)


def show_sizes(models: list[Model], console: Console) -> None:
    table = Table(title="Files", caption="A delta's file holds metadata beside its tensors")
    for heading in ("model", "file"):
        table.add_column(heading)
    for heading in ("bytes", "of its checkpoint", "conversion"):
        table.add_column(heading, justify="right")
    for model in models:
        share = model.n_bytes / model.checkpoint_bytes
        table.add_row(
            model.name, model.path.name, f"{model.n_bytes:,}", f"{share:.1%}", f"{model.convert_seconds:.1f} s"
        )
    console.print(table)


def show_answers(models: list[Model], url: str, console: Console) -> None:
    """Asks every model every question."""
    table = Table(title="Answers of one server, chosen by the request's model name", show_lines=True)
    table.add_column("question")
    for model in models:
        table.add_column(model.name, overflow="fold")
    totals = dict.fromkeys((model.name for model in models), 0.0)
    for question in QUESTIONS:
        answers = []
        for model in models:
            answer, seconds = ask(url, model.name, question)
            answers.append(Text(answer))
            totals[model.name] += seconds
        table.add_row(question, *answers)
    table.add_row("time of these answers", *(f"{seconds:.2f} s" for seconds in totals.values()))
    console.print(table)

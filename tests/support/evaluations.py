"""Evaluations of the trio and a whole model for tests of the page: as they are, and with hostile texts wherever a file can put one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from dqrelo_gguf.evaluate.job import Job, evaluate
from dqrelo_gguf.evaluate.report import Evaluation
from dqrelo_gguf.progress import Silent
from tests.support.trio import Trio

# Each would leave its place in HTML, in a script element or in the texts of the plots' library.
HOSTILE = (
    "<img src=x onerror=\"document.title='pwned'\">",
    "</script><script>document.title='pwned'</script><!--<script>",
    '<a href="https://e.io">%{x}</a>',
    "{{data}} \u202egnp\u2066\x1b[2J\u2028",
    "--></style></textarea><svg onload=\"document.title='pwned'\">",
)


def evaluated(trio: Trio, text: Path | None, problems: Path | None) -> Evaluation:
    """An evaluation of the deltas, and of the base once more as a whole model, with details."""
    job = Job(
        trio.base,
        trio.tuned,
        trio.deltas,
        text=None if text is None else str(text),
        problems=() if problems is None else (problems,),
        n_ctx=32,
        max_tokens=4,
        n_threads=1,
        models=(trio.base,),
        with_details=True,
    )
    return evaluate(job, "dqrelo-eval base.gguf", lambda _: Silent, lambda _: None)


def with_hostile_texts(evaluation: Evaluation) -> Evaluation:
    """A copy in which names, paths, the command and tokens are hostile."""
    e = copy.deepcopy(evaluation)
    assert e.text is not None
    assert e.details is not None
    e.names[1:] = HOSTILE[2], HOSTILE[0], HOSTILE[1]
    e.text = replace(e.text, name=HOSTILE[1])
    e.facts["command"] = HOSTILE[1]
    e.facts["machine"]["cpu_info"] = HOSTILE[4]
    for i, delta in enumerate(e.facts["files"]["deltas"]):
        delta["name"], delta["path"] = e.names[1 + i], f"/{HOSTILE[2 + i]}\udcff"
    e.facts["files"]["rivals"][0]["made"] = HOSTILE[4]
    e.facts["files"]["tuned"][0]["path"] = HOSTILE[0]
    e.tasks[0].task = replace(e.tasks[0].task, file=replace(e.tasks[0].task.file, name=HOSTILE[1]))
    for i, token in enumerate(e.details.pieces):
        e.details.pieces[token] = HOSTILE[i % len(HOSTILE)].encode() + b"\xff"
    e.details.weights = [[replace(w, name=f"{w.name}{HOSTILE[2]}") for w in own] for own in e.details.weights]
    e.details.spectra = [replace(s, name=HOSTILE[i % 5]) for i, s in enumerate(e.details.spectra)]
    e.details.kinds_left_out = list(HOSTILE)
    return e

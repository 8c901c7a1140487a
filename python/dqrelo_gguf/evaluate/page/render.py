"""The page: tables, data and scripts in the template, with a policy that lets no other script run and nothing be loaded."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from dqrelo_gguf.convert.report import by_kind, total
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.page import tables
from dqrelo_gguf.evaluate.page.document import document
from dqrelo_gguf.evaluate.page.tables import Markup, escaped
from dqrelo_gguf.evaluate.report import Evaluation
from dqrelo_gguf.output import new_file

_SCRIPTS = ("theme.js", "plots.js", "tokens.js", "page.js")
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def require_plotly() -> None:
    """Checks before the work that a page can be made.

    Raises:
        InputError: plotly, which brings the library of the plots, is not installed.
    """
    if importlib.util.find_spec("plotly") is None:
        raise InputError(
            "--html: needs the package plotly, which is not installed. Use: pip install 'dqrelo-gguf[html]'"
        )


def write_page(evaluation: Evaluation, path: Path) -> None:
    """Writes the page of an evaluation to a file, which has its name once it is whole.

    Args:
        evaluation: with details.
        path: the file, checked before the work; what is there is replaced.
    """
    content = page(evaluation).encode()
    with new_file(path, force=True) as file:
        file.write(content)


def page(evaluation: Evaluation) -> str:
    """An evaluation as HTML.

    Args:
        evaluation: with details.
    """
    from plotly.offline import get_plotlyjs

    report = evaluation.as_json()
    scripts = {
        "plotly": _inline(get_plotlyjs()),
        "script": _inline("\n".join(_resource(name) for name in _SCRIPTS)),
    }
    slots: dict[str, str] = {
        "policy": _policy(list(scripts.values())),
        "style": _resource("page.css"),
        "title": escaped(_title(evaluation)),
        "subtitle": escaped(_subtitle(report)),
        "notice": _notice(evaluation),
        "summary": tables.summary_table(report, evaluation.names[1:]),
        "text": tables.text_table(report) or "",
        "problems": tables.problems_table(report) or "",
        "kinds": _kinds(evaluation),
        "provenance": tables.provenance_tables(report),
        "figures": tables.figures_table(report),
        "data": json_for_html(document(evaluation, report)),
        "report": json_for_html(report),
        **scripts,
    }
    # One pass: what is filled in is not looked at again.
    return _SLOT.sub(lambda slot: slots[slot[1]], _resource("page.html"))


def json_for_html(value: Any) -> str:
    """JSON for a script element: ASCII without `<`, `>` and `&`, so nothing in it ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _inline(script: str) -> str:
    """A script that can stand in a script element, with the line ends that the parser will see."""
    text = script.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"</(script)", r"<\\/\1", text, flags=re.IGNORECASE).replace("<!--", "<\\!--")


def _policy(scripts: list[str]) -> str:
    """Content-Security-Policy: these scripts and no others, styles of the page, images that scripts draw, no network."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _resource(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _title(evaluation: Evaluation) -> str:
    names = evaluation.names[1 : 1 + len(evaluation.facts["files"]["deltas"])]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"What {shown} keep{'s' if len(names) == 1 else ''} of the fine-tune"


def _subtitle(report: dict[str, Any]) -> str:
    base, tuned = (_model_name(report["files"][side]) for side in ("base", "tuned"))
    return f"Base {base}, fine-tune {tuned}. Measured by {report['program']}."


def _model_name(read: list[dict[str, Any]]) -> str:
    """The name of a model's file; of several files that of their folder."""
    path = Path(read[0]["path"])
    return path.name if len(read) == 1 else path.parent.name


def _notice(evaluation: Evaluation) -> Markup:
    if not evaluation.is_interrupted:
        return Markup()
    return Markup('<p class="notice" role="alert">Interrupted: what is below was measured until then.</p>')


def _kinds(evaluation: Evaluation) -> str:
    weights = evaluation.details.weights if evaluation.details is not None else []
    names = evaluation.names[1 : 1 + len(weights)]
    return "".join(
        tables.kinds_table([*by_kind(own), total(own)], name) for own, name in zip(weights, names, strict=True)
    )

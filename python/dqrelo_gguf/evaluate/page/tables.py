"""The tables of a page as HTML. `Markup` is the only text that is not escaped, and only this module makes it."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from dqrelo_gguf.evaluate.page.document import compared_files, short_kind
from dqrelo_gguf.evaluate.page.visible import visible
from dqrelo_gguf.sizes import bytes_text

Json = dict[str, Any]
Rows = Sequence[Sequence[str]]


class Markup(str):
    """HTML that is whole and escaped."""

    __slots__ = ()


def escaped(text: str) -> Markup:
    """A text of whatever origin, visible and inert."""
    return Markup(html.escape(visible(text)))


def table(head: Sequence[str], rows: Rows, caption: str) -> Markup:
    """A table whose first column names the rows.

    Args:
        head: of the columns.
        rows: texts of the cells.
        caption: stands above it.
    """
    top = "".join(f'<th scope="col">{escaped(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{escaped(name)}</th>{"".join(f"<td>{escaped(text)}</td>" for text in cells)}</tr>'
        for name, *cells in rows
    )
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(caption)}"><table>'
        f"<caption>{escaped(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def summary_table(report: Json, names: Sequence[str]) -> Markup:
    """A row a delta or whole model with its name: what it costs and what it keeps."""
    text, problems = report["text"], report["problems"]
    head = ["model", "size", "of 16 bits", "KL to the fine-tune, nats", "recovered", "same top token", "retention"]
    rows = []
    for i, file in enumerate(compared_files(report)):
        ratio = file.get("ratio")
        model = text["models"][1 + i] if text else None
        kept = problems["deltas"][i]["retention"] if problems else None
        rows.append(
            [
                names[i],
                bytes_text(file["n_bytes"]),
                "whole model" if ratio is None else _fraction(ratio),
                _plus_minus(model["kl"]["value"], model["kl_window_error"]) if model else "-",
                _percent(model["recovered"]) if model else "-",
                _percent(model["same_top"]["value"]) if model else "-",
                _kept(kept, problems),
            ]
        )
    return table(head, rows, "What each model costs and keeps; ± is one standard error, brackets hold 95 %")


def text_table(report: Json) -> Markup | None:
    """The figures on text, a column a model; None without text."""
    text = report["text"]
    if text is None:
        return None
    models = text["models"]

    def mean(key: str, scale: float = 1.0, unit: str = "") -> list[str]:
        return [_plus_minus(scale * m[key]["value"], scale * m[key]["error"]) + unit for m in models]

    rows = [
        ["mean KL, nats", *mean("kl")],
        *(
            [f"KL, {p} % percentile", *(f"{m['kl_percentiles'][p]:#.4g}" for m in models)]
            for p in ("90", "95", "99", "99.9")
        ),
        ["median KL", *(f"{m['kl_median']:#.4g}" for m in models)],
        ["largest KL", *(f"{m['kl_max']:#.4g}" for m in models)],
        ["recovered", *(_percent(m["recovered"]) for m in models)],
        ["same top token", *mean("same_top", 100, " %")],
        ["mean Δp", *mean("dp_mean", 100, " %")],
        ["RMS Δp", *mean("dp_rms", 100, " %")],
        ["perplexity", *mean("ppl")],
        ["ln perplexity ratio", *mean("log_ppl_ratio")],
    ]
    tuned = _plus_minus(text["ppl_tuned"]["value"], text["ppl_tuned"]["error"])
    caption = (
        f"On {text['n_tokens']:,} tokens of {text['name']}, against the fine-tune (perplexity {tuned}); ± is one standard error "
        "over tokens"
    )
    return table(["", *(m["name"] for m in models)], rows, caption)


def problems_table(report: Json) -> Markup | None:
    """Right answers of each model on each task; None without problems."""
    problems = report["problems"]
    if problems is None:
        return None
    tasks = problems["tasks"]
    kept = ["", "", *(_kept(d["retention"], problems) for d in problems["deltas"])]
    rows = [
        [score["name"], *(_interval(t["scores"][k]["score"]) for t in tasks), kept[k]]
        for k, score in enumerate(tasks[0]["scores"])
    ]
    head = ["", *(f"{t['name']} ({t['n_problems']} problems)" for t in tasks), "retention"]
    return table(head, rows, "Right answers, with 95 % of a bootstrap")


def kinds_table(groups: Sequence[Any], name: str) -> Markup:
    """A row a kind of weight (convert/report.py's groups) of the delta with this name."""
    rows = [
        [
            short_kind(g.label),
            str(g.n_weights),
            bytes_text(g.n_bytes),
            f"{g.ratio:.4f}",
            f"{g.error_delta:.4f}",
            f"{g.error_weight:.4f}",
        ]
        for g in groups
    ]
    head = ["kind", "weights", "size", "of 16 bits", "error of the delta", "error of the weight"]
    return table(head, rows, f"{name}: relative errors by kind of weight")


def provenance_tables(report: Json) -> Markup:
    """With what, on what and on which machine it was measured."""
    files = report["files"]
    machine = report["machine"]
    about = [
        ["program", report["program"]],
        ["commit", report["commit"] or "installed package"],
        ["llama.cpp", f"{report['llama_cpp_commit']} (build {report['llama_cpp_build']})"],
        ["numpy, torch", f"{report['numpy']}, {report['torch']}"],
        ["CPU", str(machine["cpu_info"])],
        ["GPU", str(machine["gpu_info"] or "none")],
        ["instructions", str(machine["isa"])],
        ["threads", str(report["threads"])],
        ["seed", str(report["seed"])],
        ["command", report["command"]],
    ]
    read = [[side, f["path"], str(f["n_bytes"]), f["sha256"]] for side in ("base", "tuned") for f in files[side]]
    read += [["delta", d["path"], str(d["n_bytes"]), d["content_hash"]] for d in files["deltas"]]
    read += [
        ["rival", r["made"] or f["path"], str(f["n_bytes"]), f["sha256"]] for r in files["rivals"] for f in r["files"]
    ]
    if report["text"]:
        read.append(["text", report["text"]["name"], "-", report["text"]["sha256"]])
    read += [["problems", t["name"], "-", t["sha256"]] for t in (report["problems"] or {"tasks": []})["tasks"]]
    caption = "Files; of a delta the bytes of its tensors and its content hash"
    return Markup(
        table(["", ""], about, "Software and machine") + table(["", "file", "bytes", "SHA-256"], read, caption)
    )


def figures_table(report: Json) -> Markup:
    """Every figure of the JSON, by its path."""
    rows = [[path, value] for path, value in _leaves(report, "")]
    return table(["figure", "value"], rows, "Every figure of the report")


def _leaves(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list) and node and all(isinstance(x, bool) for x in node):
        yield path, "".join("1" if x else "0" for x in node)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{path}[{i}]")
    else:
        yield path, "none" if node is None else repr(node) if isinstance(node, float) else str(node)


def _plus_minus(value: float, error: float) -> str:
    """A value with as many digits as its error has two of: `0.0512 ± 0.0031`."""
    if error <= 0:
        return f"{value:#.4g} ± 0"
    places = max(0, 1 - int(_exponent(error)))
    return f"{value:.{places}f} ± {error:.{places}f}" if places <= 7 else f"{value:.3e} ± {error:.1e}"


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _fraction(ratio: float) -> str:
    return f"1/{1 / ratio:.2f}" if ratio > 0 else "0"


def _kept(retention: Json | None, problems: Json | None) -> str:
    if problems is None:
        return "-"
    return "no gain" if retention is None else _interval(retention)


def _interval(interval: Json) -> str:
    value, low, high = (100 * interval[k] for k in ("value", "low", "high"))
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"

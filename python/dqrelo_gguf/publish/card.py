"""The model card of a delta: what its file says, as the Hub reads it and as people do."""

from __future__ import annotations

import re
from typing import Any

import yaml

from dqrelo_gguf.errors import shown
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.reader import DeltaReader

_BASE_URL = "general.base_model.0.repo_url"
_HUB_REPO = re.compile(r"https://huggingface\.co/([A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)/?")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")  # as the Hub's list of licences has them
# A figure of the quality record, its name on the Hub, and in words.
_ON_TEXT = {
    "kl": "KL divergence from the fine-tune, nats a token",
    "kl_base": "the same of the base alone",
    "top_p": "share of tokens with the fine-tune's most likely one",
}
_ON_PROBLEMS = {"retention": "share of the fine-tune's gain over the base that is kept"}


def model_card(reader: DeltaReader, repo: str, base_model: str | None = None) -> str:
    """The README.md of a repository that holds a delta.

    Args:
        reader: the delta.
        repo: owner/name, where it will lie.
        base_model: owner/name of the base; None for what the file says of its fine-tune.
    """
    front = yaml.safe_dump(_front(reader, base_model), sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n{_body(reader, repo)}"


def _front(reader: DeltaReader, base_model: str | None) -> dict[str, Any]:
    """What the Hub reads."""
    front: dict[str, Any] = {"library_name": "dqrelo-gguf", "tags": ["gguf", "dqrelo", "delta", "llama.cpp"]}
    base = base_model or _base_of(reader)
    if base is not None:
        front |= {"base_model": base, "base_model_relation": "adapter"}
    licence = str(reader.meta(fmt.KEY_LICENSE) or "").lower()
    if _LICENSE.fullmatch(licence):
        front["license"] = licence
    results = _results(reader.quality or {})
    if results:
        front["model-index"] = [{"name": shown(reader.name), "results": results}]
    return front


def _base_of(reader: DeltaReader) -> str | None:
    found = _HUB_REPO.fullmatch(str(reader.meta(_BASE_URL) or ""))
    return None if found is None else found[1]


def _results(quality: dict[str, Any]) -> list[dict[str, Any]]:
    """The quality record as results of an evaluation."""
    results = []
    for dataset, names in (("text", _ON_TEXT), ("problems", _ON_PROBLEMS)):
        metrics = [{"type": n, "name": text, "value": float(quality[n])} for n, text in names.items() if n in quality]
        if metrics and dataset in quality:
            about = {"name": shown(str(quality[dataset])), "type": dataset}
            results.append({"task": {"type": "text-generation"}, "dataset": about, "metrics": metrics})
    return results


def _plain(text: str) -> str:
    """A text of the file in Markdown, where it marks nothing up."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|&~-])", r"\\\1", shown(text))


def _body(reader: DeltaReader, repo: str) -> str:
    """What people read."""
    name, file = _plain(reader.name), reader.path.name
    quality = reader.quality or {}
    measured = [f"| {text} | {quality[n]:.4g} |" for n, text in (_ON_TEXT | _ON_PROBLEMS).items() if n in quality]
    table = ["", "| measured by dqrelo-eval | |", "|---|---|", *measured] if measured else []
    lines = [
        f"# {name}",
        "",
        (
            f"What a fine-tune changed over {_plain(reader.base_name)}, as a D-QReLO delta: 1/{1 / reader.ratio:.1f} of its 16-bit weights. "
            "It runs on the base's GGUF in llama.cpp, beside other deltas of the same base."
        ),
        "",
        "```",
        "pip install 'dqrelo-gguf[remote]'",
        f"dqrelo-server -m BASE.gguf --delta hf://{repo}/{file}",
        f"dqrelo-merge BASE.gguf hf://{repo}/{file} -o merged.gguf",
        "```",
        "",
        (
            f"Method: {_plain(str(reader.meta(fmt.KEY_METHOD)))}. Content hash: `{reader.content_hash}`. "
            f"`dqrelo-inspect hf://{repo}/{file} --check BASE.gguf` says whether a base fits."
        ),
        *table,
    ]
    return "\n".join(lines) + "\n"

"""dqrelo-inspect: what a delta file is, for which base, what it costs and what it loses; and how much a fine-tune changed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dqrelo_gguf.cli import ADDRESSES, run

if TYPE_CHECKING:
    from dqrelo_gguf.file.fingerprint import Comparison
    from dqrelo_gguf.file.reader import DeltaReader

PROG = "dqrelo-inspect"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.file is None) == (args.stats is None):
        parser.error("give a delta FILE, or --stats BASE FINE_TUNE")
    if args.stats is not None and (args.check is not None or args.verify):
        parser.error("--check, --verify: belong to a delta FILE, and cannot go with --stats")
    return run(lambda: _statistics(args) if args.file is None else _inspect(args), PROG)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROG,
        description="Show what a delta file is, for which base, what it costs and what it loses; or how much a fine-tune changed its base."
        + ADDRESSES,
        epilog=f"example: {PROG} math.dq.gguf --check base-q4_k_m.gguf --verify",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="the delta file, *.dq.gguf")
    parser.add_argument(
        "--stats",
        nargs=2,
        metavar=("BASE", "FINE_TUNE"),
        help="instead of a delta file: what the fine-tune (a Hugging Face directory or a GGUF) changed over the base GGUF, by kind of "
        "weight and in all: mean magnitude, mean singular value, entropy, effective rank and norm. Takes minutes for large models",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object with every weight (default: tables)")
    checks = parser.add_argument_group("checks")
    checks.add_argument(
        "--check",
        metavar="BASE",
        help="compare with this base GGUF; exit code 1 if it is another model (default: none)",
    )
    checks.add_argument("--verify", action="store_true", help="check the SHA-256 of every tensor (default: off)")
    return parser


def _inspect(args: argparse.Namespace) -> None:
    from dqrelo_gguf.file.reader import DeltaReader  # It is imported late, because numpy and gguf take a while.

    reader = DeltaReader(args.file)
    if args.verify:
        reader.verify()
    found = reader.check_base(args.check) if args.check is not None else None
    if args.json:
        _print_json(reader, found, args.verify)
    else:
        _print_text(reader, found, args)


def _statistics(args: argparse.Namespace) -> None:
    from dqrelo_gguf.quiet import quiet_libraries

    quiet_libraries(verbose=False)  # This must come before torch and transformers are imported.
    from rich.console import Console
    from rich.text import Text

    from dqrelo_gguf.cli import write_json
    from dqrelo_gguf.convert.statistics import LEGEND, measure, table
    from dqrelo_gguf.errors import printable
    from dqrelo_gguf.progress import phases_for_stderr

    base, tuned = args.stats
    found = measure(base, tuned, phases_for_stderr())
    if args.json:
        write_json(found.as_json(), "-", force=False)
        return
    console = Console(highlight=False)
    for label, text in (("base", found.base), ("fine-tune", found.tuned), *(("note", n) for n in found.notes)):
        console.print(Text(f"{label:<10} {printable(text)}"), soft_wrap=True)
    console.print()
    console.print(table([*found.kinds(), found.total()]))
    console.print(Text(LEGEND), soft_wrap=True)


def _print_json(reader: DeltaReader, found: Comparison | None, verified: bool) -> None:
    import json

    json.dump(_as_json(reader, found, verified), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()


def _as_json(reader: DeltaReader, found: Comparison | None, verified: bool) -> dict[str, Any]:
    from dqrelo_gguf.convert.report import by_kind, by_layer
    from dqrelo_gguf.file import format as fmt
    from dqrelo_gguf.file.layout import type_name

    document: dict[str, Any] = {
        "file": str(reader.path),
        "version": reader.meta(fmt.KEY_VERSION),
        "name": reader.name,
        "license": reader.meta(fmt.KEY_LICENSE),
        "architecture": reader.architecture,
        "method": reader.meta(fmt.KEY_METHOD),
        "converter": reader.meta(fmt.KEY_CONVERTER),
        "options": reader.options,
        "reference": reader.meta(fmt.KEY_REFERENCE),
        "ratio": reader.ratio,
        "n_bytes": reader.n_bytes,
        "n_file_bytes": reader.n_file_bytes,
        "content_hash": reader.content_hash,
        "base": {"name": reader.base_name, "digest": reader.base.digest},
        "quality": reader.quality,
        "chat_template": reader.meta(fmt.KEY_CHAT_TEMPLATE),
        "token_ids": {key: reader.meta(key) for key in fmt.TOKEN_ID_KEYS if reader.meta(key) is not None},
        "kinds": [asdict(g) for g in by_kind(reader.weights)],
        "layers": [asdict(g) for g in by_layer(reader.weights)],
        "weights": [],
    }
    for w in reader.weights:
        types = {k: None if t is None else type_name(t) for k, t in vars(w).items() if k.endswith("_type")}
        document["weights"].append({**vars(w), **types})
    if found is not None:
        document["check"] = {"match": found.match.value, "correlation": found.correlation}
    if verified:
        document["verified"] = True
    return document


def _print_text(reader: DeltaReader, found: Comparison | None, args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.text import Text

    from dqrelo_gguf.convert.report import LEGEND, by_kind, by_layer, table, total

    console = Console(highlight=False)
    for label, text in _facts(reader):
        console.print(Text(f"{label:<10} {text}"), soft_wrap=True)
    if args.verify:
        console.print(
            Text(f"{'verify':<10} all {len(reader.tensors)} tensors have their declared SHA-256"), soft_wrap=True
        )
    if found is not None:
        note = f"{found.match.value} (correlation {found.correlation:.4f})"
        console.print(Text(f"{'check':<10} {args.check}: {note}"), soft_wrap=True)
    console.print()
    console.print(table([*by_kind(reader.weights), total(reader.weights)], "kind"))
    console.print(table(by_layer(reader.weights), "layer"))
    console.print(LEGEND)


def _facts(reader: DeltaReader) -> list[tuple[str, str]]:
    """(label, text) of each line above the tables."""
    from dqrelo_gguf.errors import printable
    from dqrelo_gguf.file import format as fmt
    from dqrelo_gguf.sizes import bytes_text

    size, version = bytes_text(reader.n_file_bytes), reader.meta(fmt.KEY_VERSION)
    n_dense = sum(w.dense_type is not None for w in reader.weights)
    vectors = [w.n_vectors for w in reader.weights if w.dense_type is None and w.n_entries == 0]
    ranks = f"rank {min(vectors, default=0)} to {max(vectors, default=0)}"
    tokens = [f"{key.split('.')[-1]} {reader.meta(key)}" for key in fmt.TOKEN_ID_KEYS if reader.meta(key) is not None]
    has_template = reader.meta(fmt.KEY_CHAT_TEMPLATE) is not None
    options = ", ".join(f"{key}={value}" for key, value in reader.options.items())
    facts = [
        (
            "file",
            f"{reader.path}: a D-QReLO delta, version {version}, {size}",
        ),
        ("name", reader.name),
        ("license", str(reader.meta(fmt.KEY_LICENSE) or "not given")),
        ("base", f"{reader.base_name} ({reader.architecture}), digest {reader.base.digest}"),
        (
            "reference",
            "the base file" if reader.meta(fmt.KEY_REFERENCE) == fmt.REFERENCE_BASE else reader.meta(fmt.KEY_REFERENCE),
        ),
        ("method", f"{reader.meta(fmt.KEY_METHOD)}, by {reader.meta(fmt.KEY_CONVERTER)}"),
        *_adapter_facts(reader),
        ("options", options or "none"),
        ("ratio", f"{reader.ratio:.5f} of 16-bit weights (1/{1 / reader.ratio:.2f})" if reader.ratio > 0 else "0"),
        (
            "weights",
            f"{len(vectors)} compressed, {n_dense} dense, {ranks}{_sparse_text(reader)}",
        ),
        ("template", "its own" if has_template else "the base's"),
        ("tokens", ", ".join(tokens) or "the base's"),
        ("content", reader.content_hash),
        *_quality_facts(reader.quality),
    ]
    return [(label, printable(text)) for label, text in facts]


def _sparse_text(reader: DeltaReader) -> str:
    """What of it are single entries."""
    sparse = [w for w in reader.weights if w.n_entries > 0]
    if not sparse:
        return ""
    share = sum(w.n_entries for w in sparse) / sum(w.n_elements for w in sparse)
    return f"; {len(sparse)} sparse, {100 * share:.1f} % of their elements"


def _adapter_facts(reader: DeltaReader) -> list[tuple[str, str]]:
    """What an adapter's own factors are; a dense weight of it has none."""
    from dqrelo_gguf.convert.methods import ADAPTER
    from dqrelo_gguf.convert.report import adapter_text
    from dqrelo_gguf.file import format as fmt

    ranks = sorted(w.rank for w in reader.weights if w.rank > 0)
    is_adapter = reader.meta(fmt.KEY_METHOD) == ADAPTER and ranks
    return [("adapter", adapter_text(ranks, len(ranks)))] if is_adapter else []


def _quality_facts(quality: dict[str, Any] | None) -> list[tuple[str, str]]:
    """What dqrelo-eval measured, a line for text and one for problems."""
    if quality is None:
        return [("quality", "not measured (dqrelo-eval --stamp)")]
    facts = []
    if "kl" in quality:
        q = quality
        facts.append(
            f"KL(fine-tune || delta) {q['kl']:.3g} ± {q['kl_error']:.1g}, base {q['kl_base']:.3g}, same top p "
            f"{100 * q['top_p']:.2f} %, on {q['n_tokens']} tokens of {q['text']} (SHA-256 {q['text_sha256'][:12]})"
        )
    if "retention" in quality:
        q = quality
        facts.append(
            f"retention {100 * q['retention']:.1f} % ({100 * q['retention_low']:.1f} to {100 * q['retention_high']:.1f}), "
            f"on {q['n_problems']} problems of {q['problems']} (SHA-256 {q['problems_sha256'][:12]})"
        )
    return [("quality", fact) for fact in facts]


if __name__ == "__main__":
    sys.exit(main())

"""One table of delta files, valid and not, with one verdict each that everything that reads deltas must come to.

A file is read with all checks: its digests, and the base that it is for. `server_only` refusals are those of a chat template, which is a program
that the server alone runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dqrelo_gguf.file.container import ValueType
from tests.support.delta_files import Edited
from tests.support.malformed import (
    GOOD_OPTIONS,
    MALFORMED,
    MALFORMED_2,
    Edit,
    changed_tokens,
    set_data,
    set_field,
    set_item,
)
from tests.support.malformed_sparse import MALFORMED_SPARSE

STRING, U32, I32, F32, ARRAY = (
    ValueType.STRING,
    ValueType.UINT32,
    ValueType.INT32,
    ValueType.FLOAT32,
    ValueType.ARRAY,
)


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a file: part of the error line as a regular expression, None where it is taken."""

    refused: str | None = None
    server_only: bool = False

    def by(self, reader: str) -> str | None:
        return None if self.server_only and reader != "server" else self.refused


TAKEN = Verdict()
N_TOKENS = 640  # of the base of examples/tiny


def valid(*edits: Edit) -> tuple[Callable[[Edited], None], Verdict]:
    return lambda e: [edit(e) for edit in edits] and None, TAKEN


def refused(message: str, edit: Edit, server_only: bool = False) -> tuple[Edit, Verdict]:
    return edit, Verdict(message, server_only)


def template(source: str) -> Edit:
    return set_field("tokenizer.chat_template", source, STRING)


# Edits of a delta of examples/tiny: of version 1, of version 2, or with sparse weights.
OF_A_DELTA: dict[str, tuple[Edit, Verdict]] = {
    "as it is": valid(),
    "unknown keys": valid(
        set_field("other.numbers", [1, 2], ARRAY, ValueType.INT16), set_field("x", True, ValueType.BOOL)
    ),
    "an unknown key under dqrelo": valid(set_field("dqrelo.other", 1, U32)),
    "an empty list": valid(set_field("general.tags", [], ARRAY, STRING)),
    "a list of BOOLs": valid(set_field("other.flags", [True, False], ARRAY, ValueType.BOOL)),
    "an empty name": valid(set_field("general.name", "", STRING)),
    "a name that is no ASCII": valid(set_field("general.name", "\u202eé日\U0001f600", STRING)),
    "a license that is a number": valid(set_field("general.license", 7, U32)),
    **{f"options: {name}": valid(set_field("dqrelo.options", text, STRING)) for name, text in GOOD_OPTIONS.items()},
    "sampling at its bounds": valid(
        set_field("general.sampling.temp", -1.0, F32),
        set_field("general.sampling.top_k", 10**9, I32),
        set_field("general.sampling.sequence", ";".join(["top_k"] * 32), STRING),
        set_field("general.sampling.unknown", "x", STRING),
    ),
    "the last token as BOS": valid(set_field("tokenizer.ggml.bos_token_id", N_TOKENS - 1, U32)),
    "the last token with another text": valid(changed_tokens(N_TOKENS - 1)),
    "no license": valid(lambda e: e.fields.pop("general.license", None)),
    "no template": valid(lambda e: e.fields.pop("tokenizer.chat_template", None)),
    "keys in another order": valid(lambda e: setattr(e, "fields", dict(reversed(e.fields.items())))),
    # --- what only the digests tell
    "a damaged tensor": refused("damaged: the data of '", set_data(0, 0xA5)),
    "another content hash": refused("damaged: dqrelo.content_hash", set_field("dqrelo.content_hash", "0" * 64, STRING)),
    "another digest": refused("does not have its declared SHA-256", set_item("dqrelo.tensor.sha256", 0, "0" * 64)),
    # --- what only the base tells
    **{
        f"{role} outside of the vocabulary": refused(
            f"'tokenizer.ggml.{role}_token_id' has token {N_TOKENS}, but the base has {N_TOKENS} tokens",
            set_field(f"tokenizer.ggml.{role}_token_id", N_TOKENS, U32),
        )
        for role in ("bos", "eos", "eot", "eom", "padding")
    },
    "a changed token outside of the vocabulary": refused(
        f"'dqrelo.token.ids' has token {N_TOKENS}, but the base has", changed_tokens(3, N_TOKENS)
    ),
    "another architecture": refused("another architecture", set_field("general.architecture", "qwen2", STRING)),
    "another base": refused(
        "another model",
        lambda e: (
            e.fields["dqrelo.base.samples"].value.__setitem__(
                slice(None), [0.0] * len(e.fields["dqrelo.base.samples"].value)
            ),
            set_field("dqrelo.base.digest", "0" * 64, STRING)(e),
        ),
    ),
    "another base without samples": refused(
        "another model",
        lambda e: (
            e.fields["dqrelo.base.samples"].value.clear(),
            e.fields["dqrelo.base.sample_tensors"].value.clear(),
            set_field("dqrelo.base.digest", "0" * 64, STRING)(e),
        ),
    ),
    # --- what only a template's run tells
    "a template that is none": refused("chat template", template("{% for %}"), server_only=True),
    "a template that raises": refused(
        "chat template", template("{{ raise_exception('no\u202e\n\x1b[2J') }}"), server_only=True
    ),
}

# --- files of a folder: those that showed faults before, over the base of examples/tiny in F16

FAULTS = Path(os.environ.get("DQRELO_FAULTS_DIR", "/nonexistent"))
FAULT_FILES = sorted(FAULTS.glob("*.dq.gguf"))

# What is said, by the start of the file's name; others are taken.
_NO_OPTIONS = Verdict("dqrelo.options is not a JSON object")
_OF_FAULTS = {
    "01": Verdict("too deeply", server_only=True),
    "02-template-endless": Verdict("too many values", server_only=True),
    "02-template-doubling": Verdict("too much text", server_only=True),
    "04": _NO_OPTIONS,
    "05": _NO_OPTIONS,
    "06": _NO_OPTIONS,
    "07": Verdict("is not UTF-8"),
    "08": Verdict(r"expected a token id under 2\^31"),
    "09": Verdict(r"expected token ids under 2\^31"),
    "10": Verdict("has token 640, but the base has 640 tokens"),
    "11": Verdict("'dqrelo.weight.error_delta' has 1 numbers that are NaN or infinite"),
    "14-template-raises": Verdict("chat template", server_only=True),
    "14-template-syntax": Verdict("chat template", server_only=True),
    "15": Verdict("'blk.0.attn_k.weight.dq_u' has 1 numbers that are NaN or infinite"),
    "16": Verdict("has 64 bytes behind its last tensor"),
    "17": Verdict("has 64 bytes behind its last tensor"),
    "18": Verdict("has a BOOL of 255"),
    "19": Verdict("'llama.block_count' is a model's"),
    "21": Verdict(r"is not a delta file, its adapter.type is '\?abc'"),
}


def verdict_of_fault(name: str) -> Verdict:
    return next((verdict for start, verdict in _OF_FAULTS.items() if name.startswith(start)), TAKEN)


# --- all of them

# Edits of small deltas, and what is said of them.
_MALFORMED = {"malformed": MALFORMED, "malformed 2": MALFORMED_2, "malformed sparse": MALFORMED_SPARSE}


def names() -> list[str]:
    return [
        *(f"{version}: {name}" for version in ("json", "words", "sparse") for name in OF_A_DELTA),
        *(f"{kind}: {name}" for kind, edits in _MALFORMED.items() for name in edits),
        *(f"fault: {path.name}" for path in FAULT_FILES),
    ]


def make_file(name: str, sound: dict[str, Path], target: Path) -> Verdict:
    """Writes the file of a row of the table.

    Args:
        name: one of names().
        sound: the files that are edited, by the first word of the name.
        target: what to write.

    Returns:
        Its verdict.
    """
    kind, _, row = name.partition(": ")
    if kind == "fault":
        target.write_bytes((FAULTS / row).read_bytes())
        return verdict_of_fault(row)
    if kind in _MALFORMED:
        edit, message = _MALFORMED[kind][row]
        verdict = Verdict(message)
    else:
        edit, verdict = OF_A_DELTA[row]
    file = Edited(sound[kind])
    edit(file)
    file.save(target)
    return verdict

"""A cache of llama.cpp, as if filled from the hub, with small models of this repository under the names that upstream's tests ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dqrelo_gguf._pin import gguf
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.model.pairing import Selection
from tests.support.models import EXAMPLES, convert_hf, rewrite_gguf, tuned_gguf
from tests.upstream.bert import write_bert

COMMIT = "0" * 40  # llama.cpp finds a cached file under the commit that refs/main names.
DRAFT_URL = "https://huggingface.co/ggml-org/tiny-llamas/resolve/main/stories15M-q4_0.gguf"
# The chat models of the tests; all are the example's base here. The file's name ends in the tag that router tests ask for.
LLAMAS = {
    "ggml-org/test-model-stories260K": "stories260K-F32.gguf",
    "ggml-org/stories15M_MOE": "stories15M_MOE-F16.gguf",
    "ggml-org/tinygemma3-GGUF": "tinygemma3-Q8_0.gguf",
}
INFILL = ("ggml-org/test-model-stories260K-infill", "stories260K-infill-F32.gguf")
MANY = "ggml-org/models"  # One repository has several models, each asked for by its file.
EMBEDDING, RERANKER = "bert-bge-small/ggml-model-f16.gguf", "jina-reranker-v1-tiny-en/ggml-model-f16.gguf"
END_TOKEN, UNKNOWN_TOKEN = 2, 0  # They belong to the example's tokenizer.
NOT_SERVED = r"token_types\.weight"  # A view reads it, a form that the operator does not support.
# llama.cpp knows them by these texts.
FILL_IN_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


@dataclass(frozen=True)
class Hub:
    """Where the models lie, and what stands in for downloads."""

    cache: Path
    downloads: dict[str, str]  # by address
    # By repository, or by repository and file where the tests name the file.
    deltas: dict[str, str]


def _place(cache: Path, repo: str, file: str) -> Path:
    """Where a file of a repository lies in the cache."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    path = folder / "snapshots" / COMMIT / file
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _chat_model(source: Path, target: Path, last_tokens: tuple[str, ...] = ()) -> Path:
    """The example's model without an end token, so that it generates as much as a test asks for.

    Args:
        source: the GGUF with its end token.
        target: the GGUF to write.
        last_tokens: new texts of the last tokens.
    """
    tokens = gguf.GGUFReader(source).fields["tokenizer.ggml.tokens"].contents()
    tokens[END_TOKEN] = "<end>"  # llama.cpp takes the usual text for an end token, whatever the file says.
    tokens[len(tokens) - len(last_tokens) :] = last_tokens
    return rewrite_gguf(
        source, target, fields={"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": UNKNOWN_TOKEN}
    )


def _bert_delta(model: Path, folder: Path) -> Path:
    """The delta of a fine-tune of `model`."""
    delta = folder / "tuned.dq.gguf"
    tuned = tuned_gguf(model, folder / "tuned.gguf")
    convert(Job(model, tuned, delta), Options(selection=Selection.of(None, NOT_SERVED)))
    return delta


def make_hub(folder: Path) -> Hub:
    """Makes all models and a delta of each; the folder is made."""
    cache, made = folder / "cache", folder / "made"
    made.mkdir(parents=True)
    base = convert_hf(EXAMPLES / "base", made / "base.gguf")
    # It proposes what the base often refuses.
    draft = _chat_model(convert_hf(EXAMPLES / "ft-words", made / "words.gguf"), made / "draft.gguf")
    delta = made / "words.dq.gguf"
    convert(Job(base, EXAMPLES / "ft-words", delta))
    deltas = {}
    for repo, file in LLAMAS.items():
        _chat_model(base, _place(cache, repo, file))
        deltas |= {repo: str(delta), f"{repo}/{file}": str(delta)}
    _chat_model(base, _place(cache, *INFILL), FILL_IN_TOKENS)
    deltas[INFILL[0]] = str(delta)  # The weights are the same.
    for file in (EMBEDDING, RERANKER):
        model = write_bert(_place(cache, MANY, file), is_reranker=file == RERANKER)
        own = made / Path(file).parent
        own.mkdir()
        deltas[f"{MANY}/{file}"] = str(_bert_delta(model, own))
    return Hub(cache, {DRAFT_URL: str(draft)}, deltas)

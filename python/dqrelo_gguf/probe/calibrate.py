"""Calibration: the second moments of what each weight of the fine-tune multiplies, while it reads text.

The text is a file of the user's, or nobody's: the base writes some, the fine-tune goes on from the middle of it, and writes
some from the beginning. The moments of all weights may be larger than the memory, so a group of weights is measured at a time, and the
text is read once for each group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dqrelo_gguf.compress.blocks import Blocks
from dqrelo_gguf.convert.moments import ANSWERS, FORMAT, NO_TOKEN, SELF, TOKENS, Text, in_parts
from dqrelo_gguf.convert.work import Work
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.chat import Conversation, read_bytes, read_conversations, rendered
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.model.pairing import Pair
from dqrelo_gguf.output import new_file
from dqrelo_gguf.probe.tuned_model import Tokens, drawn_texts, open_plain, plain_tuned, start_of_text
from dqrelo_gguf.runtime.session import Runtime

F32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

# Tokens that base and fine-tune write each, and of a text at most.
N_SELF_TOKENS, N_TEXT_TOKENS = 4096, 256
N_SEQ = 16
ASSISTANT = "assistant"  # the role whose messages end a conversation
SEED = 1
# Tokens that are read of a file at most, and at least.
MAX_FILE_TOKENS, MIN_FILE_TOKENS = 1 << 15, 256
# Bytes of the sums that are held at once, unless those of one weight are more.
GROUP_BYTES = 1 << 30
# Tokens whose rows are held at once; a text more at most. They are fewer bytes than the sums of all but narrow models.
PART_TOKENS = 1024
# Tokens that an expert's own moments need to count as much as those of all experts.
EXPERT_TOKENS = 64


def measure_moments(work: Work, pairs: Sequence[Pair], source: str, path: Path) -> None:
    """Writes a file of moments (convert/moments.py).

    Args:
        work: the conversion's inputs.
        pairs: the weights.
        source: SELF, or a file: conversations (*.jsonl), or text.
        path: of the file; there is none yet.

    Raises:
        InputError: the text is unreadable or too short, the models write none, or there is no room.
    """
    n_mat = {p.name: int(np.prod(p.ne[2:], dtype=np.int64)) for p in pairs}
    sums = {p.name: n_mat[p.name] * p.ne[0] ** 2 for p in pairs}
    largest = max(GROUP_BYTES, 8 * max(sums.values()))
    with plain_tuned(work, "the calibration", 4 * sum(sums.values()) + largest) as tuned:
        texts = _self_texts(work, tuned) if source == SELF else _file_texts(work, tuned, Path(source))
        n_tokens = sum(len(t.tokens) for t in texts)
        with open_plain(tuned, 1, N_TEXT_TOKENS + 1, work.blocks.n_threads, watch=True) as rt:
            leaders, aliases = _grouped(rt, texts[0].tokens, [p.name for p in pairs])
            groups = list(_in_groups({name: sums[name] for name in leaders}))
            with work.phases("calibrating", n_tokens * len(groups)) as progress, new_file(path, force=True) as out:
                out.write(_begin({p.name: p.ne for p in pairs}, leaders, aliases, source, texts))
                for group in groups:
                    moments = Sums(work.blocks, {p.name: (n_mat[p.name], p.ne[0]) for p in pairs if p.name in group})
                    for part in in_parts(texts, PART_TOKENS):
                        rt.visit_inputs([text.tokens for text in part], group, moments.show)
                        moments.add(part)
                        progress.step(sum(len(text.tokens) for text in part), "text")
                    for name in group:
                        out.write(moments.mean(name).tobytes())


def _file_texts(work: Work, tuned: Path, path: Path) -> list[Text]:
    """The tokens of a file, each text after the token that begins one: conversations, or running text in pieces; the first of a long file."""
    raw = read_bytes(path)
    with open_plain(tuned, N_SEQ, N_TEXT_TOKENS + 1, work.blocks.n_threads) as rt:
        start = start_of_text(rt)
        if path.suffix == ".jsonl":
            texts = _conversations(work, rt, path, raw, start)
        else:
            tokens = rt.tokenize(_decoded(path, raw), add_special=False)
            pieces = [tokens[i : i + N_TEXT_TOKENS] for i in range(0, len(tokens), N_TEXT_TOKENS)]
            texts = [Text(np.concatenate([start, piece])) for piece in pieces]
    n_before = np.cumsum([0, *(len(t.tokens) for t in texts)])
    if n_before[-1] < MIN_FILE_TOKENS:
        raise InputError(f"--calibrate {path}: has {n_before[-1]} tokens, expected {MIN_FILE_TOKENS} at least")
    return [text for text, n in zip(texts, n_before, strict=False) if n < MAX_FILE_TOKENS]


def _decoded(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"--calibrate {path}: is no readable UTF-8 text: {e}") from e


def _conversations(work: Work, rt: Runtime, path: Path, raw: bytes, start: Tokens) -> list[Text]:
    """A text for each conversation, by the fine-tune's chat template; what ends with a question the fine-tune answers itself.

    Texts that are too long are cut.
    """
    conversations = read_conversations(path, raw)
    template, end_field = (
        work.tuned.field(key) or work.base.field(key) for key in (fmt.KEY_CHAT_TEMPLATE, fmt.EOS_ID_KEY)
    )
    end = None if end_field is None else int(end_field.value)
    if template is None:
        raise InputError(
            f"--calibrate {path}: the fine-tune has no chat template, but 'messages' need one. Give plain text"
        )
    form = str(template.value)

    def tokens_of(conversations: list[Conversation], for_answer: bool) -> list[Tokens]:
        texts = rendered(rt, conversations, end, for_answer=for_answer, template=form) if conversations else []
        tokens = [rt.tokenize(text, add_special=False) for text in texts]
        whole = [t if np.array_equal(t[:1], start) else np.concatenate([start, t]) for t in tokens]
        return [t[: N_TEXT_TOKENS + 1] for t in whole]

    answered = [c for c in conversations if c[-1]["role"] == ASSISTANT and len(c) > 1]
    questions = [c for c in conversations if c[-1]["role"] != ASSISTANT]
    begun = tokens_of([c[:-1] for c in answered], for_answer=True) + tokens_of(questions, for_answer=True)
    texts = [*tokens_of(answered, for_answer=False), *_answered(rt, begun[len(answered) :], end)]
    return [Text(text, len(question)) for text, question in zip(texts, begun, strict=True)]


def _answered(rt: Runtime, texts: Sequence[Tokens], end: int | None) -> Iterator[Tokens]:
    """The texts with what the model writes after each, drawn with fixed seeds, and the end token where it ended."""
    for i in range(0, len(texts), N_SEQ):
        some = texts[i : i + N_SEQ]
        n_left = [N_TEXT_TOKENS + 1 - len(text) for text in some]
        drawn = rt.generate_tokens(some, max_tokens=max(1, *n_left), temperature=1.0, seed=SEED + i)
        for text, more in zip(some, drawn, strict=True):
            ending = [end] if end is not None and len(more) < max(n_left) else []
            yield np.concatenate([text, more, np.array(ending, np.int32)])[: N_TEXT_TOKENS + 1]


def _self_texts(work: Work, tuned: Path) -> list[Text]:
    """Text of the base that the fine-tune goes on from, and text of the fine-tune alone."""
    n_threads = work.blocks.n_threads
    with open_plain(Path(work.base.path), N_SEQ, N_TEXT_TOKENS + 1, n_threads) as rt:
        begun = list(_drawn(rt, N_SELF_TOKENS))
    rng = np.random.default_rng(SEED)
    begun = [t[: int(rng.integers(len(t) // 2, len(t) + 1))] for t in begun if len(t) >= 2]
    with open_plain(tuned, N_SEQ, 2 * N_TEXT_TOKENS + 1, n_threads) as rt:
        texts = [*_drawn(rt, N_SELF_TOKENS)]
        for i in range(0, len(begun), N_SEQ):
            some = begun[i : i + N_SEQ]
            longest = max(len(t) for t in some)
            drawn = rt.generate_tokens(
                some, max_tokens=N_TEXT_TOKENS + 1 - longest // 2, temperature=1.0, seed=SEED + i
            )
            texts += [np.concatenate([t, more])[: N_TEXT_TOKENS + 1] for t, more in zip(some, drawn, strict=True)]
    if sum(len(t) for t in texts) < MIN_FILE_TOKENS:
        raise InputError("--calibrate self: the models write no text of their own. Give a text file instead")
    return [Text(t) for t in texts]


def _drawn(rt: Runtime, n_tokens: int) -> Iterator[Tokens]:
    """Texts of so many tokens together, if so many come at all."""
    found, seed = 0, SEED
    while found < n_tokens and seed < SEED + n_tokens:  # a model may end each text at once
        for text in drawn_texts(rt, N_SEQ, N_TEXT_TOKENS, seed):
            found += len(text)
            yield text
        seed += N_SEQ


def _grouped(rt: Runtime, text: Tokens, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The weights whose rows are shown, in the sequence of the graph, and those that read the same rows as one of them."""
    leaders: dict[str, None] = {}

    def note(name: str, *_: object) -> None:
        leaders[name] = None

    aliases = rt.visit_inputs([text], names, note)
    return list(leaders), aliases


def _in_groups(sums: dict[str, int]) -> Iterator[list[str]]:
    """Names whose sums (numbers of 8 bytes) are held at once, in sequence."""
    group: list[str] = []
    n_bytes = 0
    for name, n in sums.items():
        if group and n_bytes + 8 * n > GROUP_BYTES:
            yield group
            group, n_bytes = [], 0
        group.append(name)
        n_bytes += 8 * n
    if group:
        yield group


class Sums:
    """X^T X of some weights.

    Args:
        blocks: the threads to work with.
        shapes: matrices and row length of each weight.
    """

    def __init__(self, blocks: Blocks, shapes: dict[str, tuple[int, int]]) -> None:
        self._blocks = blocks
        self._sums = {n: torch.zeros((n_mat, n_in, n_in), dtype=torch.float64) for n, (n_mat, n_in) in shapes.items()}
        self._counts = {n: np.zeros(n_mat) for n, (n_mat, _) in shapes.items()}
        self._shown: dict[str, list[tuple[F32, Ints | None]]] = {}

    def show(self, name: str, rows: F32, experts: Ints | None) -> None:
        """Keeps the rows of a text's tokens, of each as many as it goes to experts; for `Runtime.visit_inputs`."""
        self._shown.setdefault(name, []).append((rows, experts))

    def add(self, texts: Sequence[Text]) -> None:
        """Adds the rows that were shown; they are those of these texts, one after the other."""
        token_weights = np.concatenate([text.weights for text in texts])
        for name, shown in self._shown.items():
            rows = np.concatenate([rows for rows, _ in shown])
            chosen = np.concatenate([np.zeros(len(r), np.int32) if e is None else e for r, e in shown])
            weights = np.repeat(token_weights, len(rows) // len(token_weights))
            rows *= np.sqrt(weights)[:, None]
            for e in np.unique(chosen):
                own = chosen == e
                self._sums[name][e] += self._blocks.gram(torch.from_numpy(rows[own]))
                self._counts[name][e] += float(weights[own].sum())
        self._shown = {}

    def mean(self, name: str) -> npt.NDArray[np.float32]:
        """The mean of x x^T, ([n_expert,] n_in, n_in); frees the sums. Experts with few rows lean on the mean of all."""
        total, counts = self._sums.pop(name), self._counts.pop(name)
        if len(counts) == 1:
            return _symmetric(total[0] / counts[0]) if counts[0] else _symmetric(total[0])
        pooled = total.sum(dim=0) / (counts.sum() or 1) * EXPERT_TOKENS
        return np.stack(
            [_symmetric((own + pooled) / (n + EXPERT_TOKENS)) for own, n in zip(total, counts, strict=True)]
        )


def _symmetric(H: torch.Tensor) -> npt.NDArray[np.float32]:
    out: npt.NDArray[np.float32] = ((H + H.T) / 2).float().numpy()
    return out


def _in_rows(texts: Sequence[Text]) -> Tokens:
    """A text a row, filled up: (n_texts, n_tokens) int32."""
    rows = np.full((len(texts), max(len(t.tokens) for t in texts)), NO_TOKEN, "<i4")
    for row, text in zip(rows, texts, strict=True):
        row[: len(text.tokens)] = text.tokens
    return rows


def _begin(
    shapes: dict[str, tuple[int, ...]],
    names: Sequence[str],
    aliases: dict[str, str],
    source: str,
    texts: Sequence[Text],
) -> bytes:
    """A safetensors file up to the moments, which follow in this sequence: its header and the text."""
    tokens, n_questions = _in_rows(texts), np.array([t.n_question for t in texts], "<i4")
    table: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "aliases": json.dumps(aliases, sort_keys=True),
            "text": SELF if source == SELF else "file",
            "n_tokens": str(sum(len(t.tokens) for t in texts)),
            "sequence": json.dumps(list(names)),
        }
    }
    begin = tokens.nbytes + n_questions.nbytes
    table[TOKENS] = {"dtype": "I32", "shape": list(tokens.shape), "data_offsets": [0, tokens.nbytes]}
    table[ANSWERS] = {"dtype": "I32", "shape": [len(texts)], "data_offsets": [tokens.nbytes, begin]}
    for name in names:
        n_in, _, *experts = shapes[name]
        shape = [*experts[::-1], n_in, n_in] if np.prod(experts) > 1 else [n_in, n_in]
        end = begin + 4 * int(np.prod(shape, dtype=np.int64))
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + tokens.tobytes() + n_questions.tobytes()

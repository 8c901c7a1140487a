"""The text that a calibration reads: a file of the user's, or what the two models write themselves.

--calibrate questions.jsonl   each question, and the fine-tune's answer
--calibrate text.txt          pieces of it
--calibrate self              both write what a user says by the fine-tune's chat template, the fine-tune answers
                              the base writes, the fine-tune goes on from the middle
                              the fine-tune writes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from dqrelo_gguf.convert.moments import SELF, Text
from dqrelo_gguf.convert.work import Work
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.evaluate.chat import Conversation, read_bytes, read_conversations, rendered
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.probe.tuned_model import Tokens, drawn_texts, open_plain, start_of_text
from dqrelo_gguf.progress import Progress
from dqrelo_gguf.runtime.session import Runtime

# Tokens of a text at most.
N_TEXT_TOKENS = 256
# Tokens that base and fine-tune write each: from the beginning, and in the place of a user's words.
N_SELF_TOKENS, N_QUESTIONS_TOKENS = 4096, 1536
# Tokens of a question at most, and of all with their answers.
N_QUESTION_TOKENS, N_CHAT_TOKENS = 128, 6144
# Questions that a model begins at most: many may be empty.
MAX_QUESTIONS = 96
N_SEQ = 16
USER, ASSISTANT = "user", "assistant"  # the roles of a conversation
SEED = 1
# Tokens that are read of a file at most, and at least.
MAX_FILE_TOKENS, MIN_FILE_TOKENS = 1 << 15, 256
# What a template is given in place of a question, to find where one stands.
_MARK = "0question0"


def texts_of(work: Work, tuned: Path, source: str) -> list[Text]:
    """The text of a calibration.

    Args:
        work: the conversion's inputs.
        tuned: the fine-tune as a plain GGUF.
        source: SELF, or a file: conversations (*.jsonl), or text.

    Raises:
        InputError: the text is unreadable or too short, or the models write none.
    """
    return _self_texts(work, tuned) if source == SELF else _file_texts(work, tuned, Path(source))


def _file_texts(work: Work, tuned: Path, path: Path) -> list[Text]:
    """Conversations, or running text in pieces; the first of a long file."""
    raw = read_bytes(path)
    with open_plain(tuned, N_SEQ, N_TEXT_TOKENS + 1, work.blocks.n_threads) as rt:
        if path.suffix == ".jsonl":
            texts = _conversations(work, rt, path, raw)
        else:
            tokens, start = rt.tokenize(_decoded(path, raw), add_special=False), start_of_text(rt)
            pieces = [tokens[i : i + N_TEXT_TOKENS] for i in range(0, len(tokens), N_TEXT_TOKENS)]
            texts = [Text(np.concatenate([start, piece])) for piece in pieces]
    n_tokens = sum(len(t.tokens) for t in texts)
    if n_tokens < MIN_FILE_TOKENS:
        raise InputError(f"--calibrate {path}: has {n_tokens} tokens, expected {MIN_FILE_TOKENS} at least")
    return list(_up_to(texts, MAX_FILE_TOKENS))


def _decoded(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"--calibrate {path}: is no readable UTF-8 text: {e}") from e


def _conversations(work: Work, rt: Runtime, path: Path, raw: bytes) -> list[Text]:
    """A text for each conversation, by the fine-tune's chat template; what ends with a question the fine-tune answers itself.

    Texts that are too long are cut.
    """
    conversations = read_conversations(path, raw)
    template = _Template(work)
    if template.form is None:
        raise InputError(
            f"--calibrate {path}: the fine-tune has no chat template, but 'messages' need one. Give plain text"
        )
    answered = [c for c in conversations if c[-1]["role"] == ASSISTANT and len(c) > 1]
    questions = [c for c in conversations if c[-1]["role"] != ASSISTANT]
    begun = template.tokens_of(rt, [c[:-1] for c in answered], for_answer=True)
    whole = template.tokens_of(rt, answered, for_answer=False)
    texts = [Text(text, len(question)) for text, question in zip(whole, begun, strict=True)]
    return [*texts, *_answered(rt, template.tokens_of(rt, questions, for_answer=True), template.end)]


class _Template:
    """The chat template of a fine-tune.

    Args:
        work: the conversion's inputs.

    Attributes:
        form: Jinja; None where there is none.
        end: the token that ends an answer, if the fine-tune has one.
    """

    def __init__(self, work: Work) -> None:
        form, end = (work.tuned.field(key) or work.base.field(key) for key in (fmt.KEY_CHAT_TEMPLATE, fmt.EOS_ID_KEY))
        self.form = None if form is None else str(form.value)
        self.end = None if end is None else int(end.value)

    def tokens_of(self, rt: Runtime, conversations: list[Conversation], *, for_answer: bool) -> list[Tokens]:
        """The tokens of each conversation, after the token that begins a text; those that are too many are cut."""
        if not conversations:
            return []
        texts = rendered(rt, conversations, self.end, for_answer=for_answer, template=self.form)
        return [_after_start(rt, text)[: N_TEXT_TOKENS + 1] for text in texts]

    def around_a_question(self, rt: Runtime) -> tuple[str, str] | None:
        """The text before a question and behind it; None without a template, or with one that takes no single question."""
        if self.form is None:
            return None
        asked: list[Conversation] = [[{"role": USER, "content": _MARK}]]
        try:
            [text] = rendered(rt, asked, self.end, for_answer=True, template=self.form)
        except InputError:
            return None
        before, *behind = text.split(_MARK)
        return (before, behind[0]) if len(behind) == 1 else None


def _answered(rt: Runtime, questions: Sequence[Tokens], end: int | None) -> Iterator[Text]:
    """Questions with what the model answers, drawn with fixed seeds, and the end token where it ended."""
    for i in range(0, len(questions), N_SEQ):
        some = questions[i : i + N_SEQ]
        n_left = [N_TEXT_TOKENS + 1 - len(text) for text in some]
        drawn = rt.generate_tokens(some, max_tokens=max(1, *n_left), temperature=1.0, seed=SEED + i)
        for text, more in zip(some, drawn, strict=True):
            ending = [end] if end is not None and len(more) < max(n_left) else []
            whole = np.concatenate([text, more, np.array(ending, np.int32)])[: N_TEXT_TOKENS + 1]
            yield Text(whole, len(text))


def _self_texts(work: Work, tuned: Path) -> list[Text]:
    """Answers of the fine-tune, text of the base that the fine-tune goes on from, and text of the fine-tune alone."""
    n_threads = work.blocks.n_threads
    template = _Template(work)
    with open_plain(tuned, 1, N_TEXT_TOKENS + 1, n_threads) as rt:
        around = template.around_a_question(rt)
    n_all = 3 * N_SELF_TOKENS
    if around is not None:
        n_all = n_all // 4 + 2 * N_QUESTIONS_TOKENS + N_CHAT_TOKENS
    with work.phases("writing", n_all) as progress:
        with open_plain(Path(work.base.path), N_SEQ, N_TEXT_TOKENS + 1, n_threads) as rt:
            questions = list(_questions(rt, around, progress))
            # What is more like what the fine-tune is for leaves less to be learned from other text.
            n_tokens = N_SELF_TOKENS // 4 if questions else N_SELF_TOKENS
            begun = list(_told(_drawn(rt, n_tokens), progress))
        with open_plain(tuned, N_SEQ, 2 * N_TEXT_TOKENS + 1, n_threads) as rt:
            own = _questions(rt, around, progress)
            questions = [q for both in zip_longest(questions, own) for q in both if q is not None]
            asked: list[Conversation] = [[{"role": USER, "content": question}] for question in questions]
            answered = _answered(rt, template.tokens_of(rt, asked, for_answer=True), template.end)
            found = list(_up_to(_told(answered, progress), N_CHAT_TOKENS))
            found += _told(_continued(rt, begun), progress)
            found += _told(_drawn(rt, n_tokens), progress)
    if sum(len(text.tokens) for text in found) < MIN_FILE_TOKENS:
        raise InputError("--calibrate self: the models write no text of their own. Give a text file instead")
    return found


def _told(texts: Iterable[Text], progress: Progress) -> Iterator[Text]:
    """The texts; each is counted as it comes."""
    for text in texts:
        progress.step(len(text.tokens), "text")
        yield text


def _questions(rt: Runtime, around: tuple[str, str] | None, progress: Progress) -> Iterator[str]:
    """What a model writes in the place of a user's words, up to the line that follows them by the template."""
    if around is None:
        return
    before, behind = around
    prompt = _after_start(rt, before)
    stop = behind.strip().split("\n")[0]
    n_found = 0
    for i in range(0, MAX_QUESTIONS, N_SEQ):
        if n_found >= N_QUESTIONS_TOKENS:
            return
        texts = rt.generate(
            [prompt] * N_SEQ, max_tokens=N_QUESTION_TOKENS, temperature=1.0, seed=SEED + i, stop=stop or None
        )
        for text in filter(None, map(str.strip, texts)):
            n_tokens = len(rt.tokenize(text, add_special=False))
            n_found += n_tokens
            progress.step(n_tokens, "questions")
            yield text


def _continued(rt: Runtime, texts: Sequence[Text]) -> Iterator[Text]:
    """Texts that the model goes on with from somewhere in their second halves."""
    rng = np.random.default_rng(SEED)
    tokens = [t.tokens for t in texts if len(t.tokens) >= 2]
    begun = [t[: int(rng.integers(len(t) // 2, len(t) + 1))] for t in tokens]
    for i in range(0, len(begun), N_SEQ):
        some = begun[i : i + N_SEQ]
        longest = max(len(t) for t in some)
        drawn = rt.generate_tokens(some, max_tokens=N_TEXT_TOKENS + 1 - longest // 2, temperature=1.0, seed=SEED + i)
        for text, more in zip(some, drawn, strict=True):
            yield Text(np.concatenate([text, more])[: N_TEXT_TOKENS + 1])


def _drawn(rt: Runtime, n_tokens: int) -> Iterator[Text]:
    """Texts of so many tokens together, if so many come at all."""
    found, seed = 0, SEED
    while found < n_tokens and seed < SEED + n_tokens:  # a model may end each text at once
        n_seq = min(N_SEQ, -(-(n_tokens - found) // N_TEXT_TOKENS))
        for text in drawn_texts(rt, n_seq, N_TEXT_TOKENS, seed):
            found += len(text)
            yield Text(text)
        seed += N_SEQ


def _after_start(rt: Runtime, text: str) -> Tokens:
    """The tokens of a text, after the token that begins one."""
    tokens, start = rt.tokenize(text, add_special=False), start_of_text(rt)
    return tokens if np.array_equal(tokens[:1], start) else np.concatenate([start, tokens])


def _up_to(texts: Iterable[Text], n_tokens: int) -> Iterator[Text]:
    """The first texts, up to the one that reaches so many tokens."""
    n_found = 0
    for text in texts:
        yield text
        n_found += len(text.tokens)
        if n_found >= n_tokens:
            return

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
# Texts that are written together.
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
    with open_plain(tuned, N_SEQ, 2 * N_TEXT_TOKENS + 1, work.blocks.n_threads) as rt:
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
    if questions:
        asked = template.tokens_of(rt, questions, for_answer=True)
        n_most = min(MAX_FILE_TOKENS, len(asked) * (N_TEXT_TOKENS + 1))
        with work.phases("writing", n_most, unit="tokens") as progress:
            texts += _answered(rt, asked, template.end, MAX_FILE_TOKENS, progress)
    return texts


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


def _answered(
    rt: Runtime, questions: Sequence[Tokens], end: int | None, n_tokens: int, progress: Progress
) -> Iterator[Text]:
    """The first questions with what the model answers, about so many tokens together, and the end token where it ended."""
    lengths = [len(question) for question in questions]
    written = Written(lengths, n_tokens, progress)
    n_most = N_TEXT_TOKENS + 1 - min(lengths, default=0)
    drawn = rt.generate_tokens(questions, max_tokens=max(1, n_most), temperature=1.0, seed=SEED, ended=written.ended)
    for i, (question, more) in enumerate(zip(questions, drawn, strict=True)):
        if i not in written.whole and not len(more):  # It was not asked any more.
            continue
        ending = [end] if end is not None and i in written.whole and len(more) < n_most else []
        whole = np.concatenate([question, more, np.array(ending, np.int32)])[: N_TEXT_TOKENS + 1]
        yield Text(whole, len(question))


class Written:
    """What has been written of some texts: counts it, and says when it is enough.

    Args:
        lengths: tokens of what each of the texts begins with, which count where the text has ended.
        n_tokens: that are wanted together.
        progress: is told of each text.

    Attributes:
        whole: the texts that have ended; others were ended when it was enough.
    """

    def __init__(self, lengths: Sequence[int], n_tokens: int, progress: Progress) -> None:
        self.whole: set[int] = set()
        self._lengths, self._n_left, self._progress = lengths, n_tokens, progress

    def ended(self, i: int, n_generated: int) -> bool:
        """For `Runtime.generate_tokens`."""
        n = min(self._lengths[i] + n_generated, N_TEXT_TOKENS + 1)  # What is more will be cut.
        self.whole.add(i)
        self._n_left -= n
        self._progress.step(n, "text")
        return self._n_left > 0


def _self_texts(work: Work, tuned: Path) -> list[Text]:
    """Answers of the fine-tune, text of the base that the fine-tune goes on from, and text of the fine-tune alone."""
    n_threads = work.blocks.n_threads
    template = _Template(work)
    with open_plain(tuned, 1, N_TEXT_TOKENS + 1, n_threads) as rt:
        around = template.around_a_question(rt)
    n_all = 3 * N_SELF_TOKENS
    if around is not None:
        n_all = n_all // 4 + 2 * N_QUESTIONS_TOKENS + N_CHAT_TOKENS
    with work.phases("writing", n_all, unit="tokens") as progress:
        with open_plain(Path(work.base.path), N_SEQ, N_TEXT_TOKENS + 1, n_threads) as rt:
            questions = _questions(rt, around, progress)
            # What is more like what the fine-tune is for leaves less to be learned from other text.
            n_tokens = N_SELF_TOKENS // 4 if questions else N_SELF_TOKENS
            begun = _drawn(rt, n_tokens, progress)
        with open_plain(tuned, N_SEQ, 2 * N_TEXT_TOKENS + 1, n_threads) as rt:
            own = _questions(rt, around, progress)
            questions = [q for both in zip_longest(questions, own) for q in both if q is not None]
            asked: list[Conversation] = [[{"role": USER, "content": question}] for question in questions]
            prompts = template.tokens_of(rt, asked, for_answer=True)
            found = [*_up_to(_answered(rt, prompts, template.end, N_CHAT_TOKENS, progress), N_CHAT_TOKENS)]
            found += [*_continued(rt, begun, progress), *_drawn(rt, n_tokens, progress)]
    if sum(len(text.tokens) for text in found) < MIN_FILE_TOKENS:
        raise InputError("--calibrate self: the models write no text of their own. Give a text file instead")
    return found


def _questions(rt: Runtime, around: tuple[str, str] | None, progress: Progress) -> list[str]:
    """What a model writes in the place of a user's words, up to the line that follows them by the template."""
    if around is None:
        return []
    before, behind = around
    stop = behind.strip().split("\n")[0]
    written = Written([0] * MAX_QUESTIONS, N_QUESTIONS_TOKENS, progress)
    drawn = rt.generate_tokens(
        [_after_start(rt, before)] * MAX_QUESTIONS,
        max_tokens=N_QUESTION_TOKENS,
        temperature=1.0,
        seed=SEED,
        stop=stop or None,
        ended=written.ended,
    )
    texts = (rt.detokenize(drawn[i]) for i in sorted(written.whole))
    return [*filter(None, ((text.split(stop)[0] if stop else text).strip() for text in texts))]


def _continued(rt: Runtime, texts: Sequence[Text], progress: Progress) -> list[Text]:
    """Texts that the model goes on with from somewhere in their second halves."""
    rng = np.random.default_rng(SEED)
    tokens = [t.tokens for t in texts if len(t.tokens) >= 2]
    begun = [t[: int(rng.integers(len(t) // 2, len(t) + 1))] for t in tokens]
    lengths = [len(t) for t in begun]
    n_most = N_TEXT_TOKENS + 1 - max(lengths, default=0) // 2
    ended = Written(lengths, len(begun) * (N_TEXT_TOKENS + 1), progress).ended
    drawn = rt.generate_tokens(begun, max_tokens=n_most, temperature=1.0, seed=SEED, ended=ended)
    return [Text(np.concatenate([t, more])[: N_TEXT_TOKENS + 1]) for t, more in zip(begun, drawn, strict=True)]


def _drawn(rt: Runtime, n_tokens: int, progress: Progress) -> list[Text]:
    """Texts of so many tokens together, if so many come at all."""
    texts: list[Text] = []
    found, seed = 0, SEED
    while found < n_tokens and seed < SEED + n_tokens:  # A model may end each text at once.
        n_seq = min(N_SEQ, -(-(n_tokens - found) // N_TEXT_TOKENS))
        for text in drawn_texts(rt, n_seq, N_TEXT_TOKENS, seed):
            found += len(text)
            progress.step(len(text), "text")
            texts.append(Text(text))
        seed += N_SEQ
    return texts


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

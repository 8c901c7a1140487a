"""What a calibration reads: conversations and running text of files, and what the models write themselves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf import progress
from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.convert.moments import Moments, Text
from dqrelo_gguf.probe import calibration_text
from dqrelo_gguf.runtime.session import Runtime
from tests.support.calibrations import run
from tests.support.models import pico_gguf, pico_tuned_gguf, rewrite_gguf

TEMPLATE = "{% for m in messages %}{{ 'Q: ' if m.role == 'user' else ' ' }}{{ m.content }}{{ '\n' }}{{ 'A:' if m.role == 'user' }}{% endfor %}"


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"N_SELF_TOKENS": 4096, "N_TEXT_TOKENS": 32, "N_QUESTIONS_TOKENS": 200, "N_QUESTION_TOKENS": 12}
    for name, n in {**sizes, "N_CHAT_TOKENS": 600}.items():
        monkeypatch.setattr(calibration_text, name, n)


def with_template(tmp_path: Path, kind: str, template: str = TEMPLATE) -> tuple[Path, Path]:
    """Base and fine-tune with a chat template each, of which the fine-tune's counts."""
    paths = []
    for i, source in enumerate((pico_gguf(kind), pico_tuned_gguf(kind))):
        path = tmp_path / f"{i}.gguf"
        rewrite_gguf(source, path, added_template="Base" if i == 0 else template)
        paths.append(path)
    return paths[0], paths[1]


def test_conversations_are_texts_of_their_own(out: Path, tmp_path: Path) -> None:
    """By the fine-tune's template; questions are answered by the fine-tune, and questions count less than answers."""
    base, tuned = with_template(tmp_path, "llama")
    answered = [{"role": "user", "content": "What eats fish?"}, {"role": "assistant", "content": "A small animal."}]
    path, kept = tmp_path / "talk.jsonl", tmp_path / "m.safetensors"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in [answered, answered[:1]] * 8))
    arguments = [base, tuned, "-o", out, "--calibrate", path, "--save-calibration", kept]
    assert main([str(a) for a in arguments]) == 0
    texts = Moments(kept).texts
    assert len(texts) == 16
    with Runtime(pico_tuned_gguf("llama"), n_threads=1) as rt:
        question, whole = (
            rt.tokenize(text) for text in ("Q: What eats fish?\nA:", "Q: What eats fish?\nA: A small animal.\n")
        )
        wanted = rt.generate_tokens([question], max_tokens=8, temperature=1.0, seed=calibration_text.SEED)[0]
    for text in texts[:8]:
        assert text.tokens.tolist() == whole.tolist()
    for text in texts[8:]:
        assert text.tokens[: len(question)].tolist() == question.tolist()
        assert len(text.tokens) > len(question)
    assert texts[8].tokens[len(question) :][: len(wanted)].tolist() == wanted.tolist()
    assert {t.n_question for t in texts} == {len(question)}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"messages": []}', "'messages' must be a list"),
        ("no json", "line 1 is no JSON"),
        ('{"messages": [{"role": "user", "content": "Hi"}]}', "the fine-tune has no chat template"),
    ],
)
def test_bad_conversations(
    out: Path, tmp_path: Path, content: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text(content)
    assert run("llama", out, "--calibrate", path) == 1
    assert reason in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"short", "expected 256 at least"),
        (b"\xff\xfe\x00", "is no readable UTF-8 text"),
        (None, "no such file"),
    ],
)
def test_bad_texts(
    out: Path, text: Path, content: bytes | None, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text.unlink()
    if content is not None:
        text.write_bytes(content)
    assert run("llama", out, "--calibrate", text) == 1
    err = capsys.readouterr().err
    assert reason in err
    assert "Traceback" not in err
    assert not out.exists()


def own_text(tmp_path: Path, template: str) -> list[Text]:
    base, tuned = with_template(tmp_path, "llama", template)
    kept = tmp_path / "m.safetensors"
    arguments = [base, tuned, "-o", tmp_path / "out.dq.gguf", "--calibrate", "self", "--save-calibration", kept]
    assert main([str(a) for a in arguments]) == 0
    return Moments(kept).texts


def n_tokens(texts: list[Text]) -> int:
    return sum(len(text.tokens) for text in texts)


def test_both_models_write_questions_that_the_fine_tune_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: Counter[str] = Counter()

    class Told(progress.Silent):
        def __init__(self, title: str, n_all: int, *, unit: str = "params") -> None:
            del n_all
            self.title = f"{title} {unit}"

        def step(self, n: int, name: str) -> None:
            del name
            told[self.title] += n

    monkeypatch.setattr(progress, "Lines", Told)
    texts = own_text(tmp_path, TEMPLATE)
    # What is told is every text, questions without one, and what the base begins and the fine-tune goes on with.
    n_more = told["writing tokens"] - n_tokens(texts)
    assert 400 + 1024 - 400 <= n_more < 2 * (400 + 1024)
    talks, others = ([t for t in texts if bool(t.n_question) == is_talk] for is_talk in (True, False))
    assert 600 <= n_tokens(talks) < 600 + calibration_text.N_TEXT_TOKENS + 1
    # A quarter of the text that a fine-tune without a template has: from the beginning, and begun by the base.
    assert 1024 <= n_tokens(others) < 4096
    with Runtime(tmp_path / "1.gguf", n_threads=1) as rt:
        opening, closing = rt.tokenize("Q: ", add_special=True), "\nA:"
        for talk in talks:
            question = rt.detokenize(talk.tokens[1 : talk.n_question])
            assert question.startswith("Q: ")
            assert len(talk.tokens) > calibration_text.N_TEXT_TOKENS or question.endswith(closing)
            assert question.count(closing) <= 1
    # The first question is the base's, the second one the fine-tune's.
    for i in (0, 1):
        with Runtime(tmp_path / f"{i}.gguf", n_threads=1) as rt:
            wanted = rt.generate(
                [opening] * calibration_text.N_SEQ,
                max_tokens=calibration_text.N_QUESTION_TOKENS,
                temperature=1.0,
                seed=calibration_text.SEED,
                stop="A:",
            )[0]
            assert rt.detokenize(talks[i].tokens[1 : talks[i].n_question]).startswith("Q: " + wanted.strip()[:20])


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no') }}", "no place for a question", "{{ messages[0].content }} {{ messages[0].content }}"],
)
def test_a_template_that_takes_no_question(tmp_path: Path, template: str) -> None:
    """The models write what they write without one."""
    texts = own_text(tmp_path, template)
    assert not any(text.n_question for text in texts)
    assert n_tokens(texts) >= 6000


class Writer:
    """A model that writes the same text whenever it is asked, one token a character; where it has to end early, it has begun one more."""

    start_token = 1

    def __init__(self, text: str) -> None:
        self.text, self.n_asked = text, 0

    def tokenize(self, text: str, *, add_special: bool) -> np.ndarray:
        assert not add_special
        return np.full(len(text), 5, np.int32)

    def detokenize(self, tokens: np.ndarray) -> str:
        return self.text[: len(tokens)]

    def generate_tokens(
        self, prompts: list[np.ndarray], *, ended: Callable[[int, int], bool], **_: object
    ) -> list[np.ndarray]:
        found = [np.zeros(0, np.int32)] * len(prompts)
        for i in range(len(prompts)):
            self.n_asked += 1
            found[i] = np.zeros(len(self.text), np.int32)
            if not ended(i, len(self.text)):
                found[i + 1 : i + 2] = [np.zeros(len(self.text) // 2, np.int32)]
                break
        return found


class Counts(progress.Silent):
    """What a phase was told."""

    def __init__(self) -> None:
        self.n_done = 0

    def step(self, n: int, name: str) -> None:
        assert name == "text"
        self.n_done += n


@pytest.mark.parametrize(
    ("text", "n_asked"), [(" \n", calibration_text.MAX_QUESTIONS), (" why? \n", 29), ("?" * 20, 10)]
)
def test_questions_are_asked_for_until_there_are_enough(text: str, n_asked: int) -> None:
    """200 tokens; one that was not ended is none."""
    writer, counts = Writer(text), Counts()
    found = calibration_text._questions(writer, ("Q: ", "\nA:"), counts)  # type: ignore[arg-type]
    assert found == [text.strip()] * n_asked * bool(text.strip())
    assert writer.n_asked == n_asked
    assert counts.n_done == len(text) * n_asked


def test_questions_end_before_what_follows_them() -> None:
    writer = Writer("Why? \nA: Since.")
    found = calibration_text._questions(writer, ("Q: ", "\nA:"), Counts())  # type: ignore[arg-type]
    assert set(found) == {"Why?"}


@pytest.mark.parametrize(("length", "n_asked"), [(256, [4]), (100, [4, 3, 2, 1, 1]), (0, [4] * 64)])
def test_no_more_texts_are_drawn_than_are_wanted(
    length: int, n_asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1024 tokens in texts of 256 at most; a model that ends each at once is not asked for ever."""
    monkeypatch.setattr(calibration_text, "N_TEXT_TOKENS", 256)
    asked: list[int] = []
    counts = Counts()

    def draw(_rt: object, n_seq: int, _n_tokens: int, _seed: int) -> list[np.ndarray]:
        asked.append(n_seq)
        return [np.zeros(length, np.int32)] * n_seq if length else []

    monkeypatch.setattr(calibration_text, "drawn_texts", draw)
    found = calibration_text._drawn(None, 1024, counts)  # type: ignore[arg-type]
    assert asked == n_asked
    assert sum(len(t.tokens) for t in found) == counts.n_done == length * sum(asked)


def test_questions_that_were_not_asked_are_no_texts() -> None:
    """Those that have an answer end with the end token, if the answer has ended."""
    writer, counts, question = Writer("answer"), Counts(), np.arange(4, dtype=np.int32)
    asked = [question] * 10
    found = list(calibration_text._answered(writer, asked, 2, 25, counts))  # type: ignore[arg-type]
    assert writer.n_asked == 3  # of 10 tokens each
    assert counts.n_done == 30
    assert [len(text.tokens) for text in found] == [4 + 6 + 1] * 3 + [4 + 3]
    assert [text.tokens[-1] == 2 for text in found] == [True] * 3 + [False]
    assert {text.n_question for text in found} == {4}

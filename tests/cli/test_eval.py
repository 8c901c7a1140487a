"""dqrelo-eval: figures against independent ones, reports that can be repeated, and its one line for everything that cannot be."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.cli.eval import main
from dqrelo_gguf.evaluate import answers, job, measure, room, sides
from dqrelo_gguf.evaluate.divergence import divergence
from dqrelo_gguf.evaluate.text import running_windows
from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.runtime.session import Runtime
from tests.support.delta_files import Edited
from tests.support.tiny_llama import BOS, NARROW, Shape, Type, base_weights, write_model
from tests.support.trio import Trio

Evaluate = Callable[..., dict[str, Any]]
N_CTX = 32


@pytest.fixture
def problem_file(tmp_path: Path, trio: Trio) -> Path:
    """Problems whose answers are the fine-tune's own, but for one."""
    prompts = ["the dog sees", "two and three makes", "3 + 4 =", "a cat", "five"]
    with Runtime(trio.tuned, n_threads=1, flash_attn="off") as rt:
        answers = rt.generate(prompts, max_tokens=4)
    answers[-1] = "something else"
    path = tmp_path / "words.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": p, "answer": a or "none"}) + "\n" for p, a in zip(prompts, answers, strict=True))
    )
    return path


@pytest.fixture
def evaluate(trio: Trio, tmp_path: Path) -> Evaluate:
    """Runs the command on the trio; its report."""

    def run(*options: str | Path, code: int = 0) -> dict[str, Any]:
        out = tmp_path / "report.json"
        deltas = [x for path in trio.deltas for x in ("--delta", path)]
        argv = [trio.base, "--tuned", trio.tuned, *deltas, "--ctx", N_CTX, "-t", "1", "--json", out, *options]
        assert main([str(x) for x in argv]) == code
        document: dict[str, Any] = json.loads(out.read_text())
        return document

    return run


def refused(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one line that a failing run prints last."""
    assert main([str(x) for x in argv]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("dqrelo-eval: error: ")
    assert "Traceback" not in err
    return last


def with_token(model: Path, target: Path, token: int, text: str) -> Path:
    """A model in which a token has another text."""
    edited = Edited(model)
    edited.fields["tokenizer.ggml.tokens"].value[token] = text
    return edited.save(target)


# --- figures ---


def test_figures_are_those_of_the_models_apart(evaluate: Evaluate, trio: Trio, text_file: Path) -> None:
    report = evaluate("--text", text_file)["text"]
    with Runtime(trio.tuned, n_threads=1, flash_attn="off") as rt:
        windows = running_windows(rt.tokenize(text_file.read_text(), parse_special=False), N_CTX, BOS)
        expected = [rt.logits(w.tokens[:-1])[w.first :] for w in windows]
    assert report["n_windows"] == len(windows)
    assert report["n_tokens"] == len(windows) * (N_CTX // 2 - 1)
    with Runtime(trio.base, n_threads=1, flash_attn="off") as rt:
        for model, path in zip(report["models"], (None, *trio.deltas), strict=True):
            delta = None if path is None else rt.load_delta(path)
            rows = [rt.logits(w.tokens[:-1], delta)[w.first :] for w in windows]
            kl = np.concatenate([divergence(p, q) for p, q in zip(expected, rows, strict=True)])
            same = np.concatenate([p.argmax(1) == q.argmax(1) for p, q in zip(expected, rows, strict=True)])
            assert model["kl"]["value"] == pytest.approx(kl.mean(), rel=1e-3)
            assert model["kl_max"] == pytest.approx(kl.max(), rel=1e-2)
            assert model["same_top"]["value"] == pytest.approx(same.mean(), abs=0.02)
    base, fine, coarse = report["models"]
    assert base["recovered"] == 0
    assert fine["recovered"] > coarse["recovered"] > 0


def test_a_fine_tune_against_itself_loses_nothing(trio: Trio, tmp_path: Path, text_file: Path) -> None:
    out = tmp_path / "report.json"
    argv = [trio.base, "--tuned", trio.base, "--delta", trio.deltas[0], "--ctx", "32", "-t", "1"]
    assert main([str(x) for x in [*argv, "--text", text_file, "--json", out]]) == 0
    base = json.loads(out.read_text())["text"]["models"][0]
    assert base["kl"]["value"] < 1e-6
    assert base["same_top"]["value"] == 1
    assert abs(base["dp_mean"]["value"]) < 1e-6


@pytest.mark.parametrize("options", [("--sequential",), ()], ids=["sequential", "one by one"])
def test_how_much_is_held_at_once_changes_nothing(
    evaluate: Evaluate, text_file: Path, problem_file: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--text", text_file, "--problems", problem_file, "--max-tokens", "4")
    expected = evaluate(*asked)
    monkeypatch.setattr(sides, "SEQUENTIAL_FILE_BYTES", 1)  # a round at a time
    plan = room.Rounds.plan
    monkeypatch.setattr(
        room.Rounds,
        "plan",
        lambda *args: room.Rounds(1, 4, 1, plan(*args).work_bytes),  # a window and a model at a time
    )
    found = evaluate(*asked, *options)
    for ours, theirs in zip(found["text"]["models"], expected["text"]["models"], strict=True):
        assert ours["kl"]["value"] == pytest.approx(theirs["kl"]["value"], rel=1e-3)
        assert ours["ppl"]["value"] == pytest.approx(theirs["ppl"]["value"], rel=1e-4)
    assert found["problems"] == expected["problems"]


def test_scores_and_retention(evaluate: Evaluate, trio: Trio, problem_file: Path) -> None:
    report = evaluate("--problems", problem_file, "--max-tokens", "4")
    assert report["text"] is None
    (task,) = report["problems"]["tasks"]
    scores = {s["name"]: s for s in task["scores"]}
    assert scores["fine-tune"]["n_right"] == scores["fine-tune"]["n_same"] - 1 == 4
    problems = [json.loads(line) for line in problem_file.read_text().splitlines()]
    with Runtime(trio.base, n_threads=1, flash_attn="off") as rt:
        for name, delta in (("base", None), *((p.name.split(".")[0], rt.load_delta(p)) for p in trio.deltas)):
            texts = rt.generate([p["prompt"] for p in problems], delta, max_tokens=4)
            right = [text.strip() == p["answer"].strip() for text, p in zip(texts, problems, strict=True)]
            assert scores[name]["right"] == right
    assert scores["fine"]["right"] != scores["coarse"]["right"]
    base, fine = (scores[name]["score"]["value"] for name in ("base", "fine"))
    (kept, _) = report["problems"]["deltas"]
    assert kept["name"] == "fine"
    assert kept["retention"]["value"] == pytest.approx((fine - base) / (0.8 - base))
    assert kept["drop"]["value"] == pytest.approx((0.8 - fine) / (0.8 - base))
    assert kept["retention"]["low"] <= kept["retention"]["value"] <= kept["retention"]["high"]


def test_without_text_and_problems_the_fine_tune_writes(evaluate: Evaluate) -> None:
    report = evaluate("--tokens", "200")
    assert report["text"]["name"] == "self"
    assert report["text"]["n_tokens"] >= 150


def test_a_directory_is_converted_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dqrelo_gguf.cli import convert

    monkeypatch.setattr(job.tempfile, "tempdir", str(tmp_path))

    examples = Path(__file__).parents[2] / "examples" / "tiny"
    base, delta, out = tmp_path / "base.gguf", tmp_path / "words.dq.gguf", tmp_path / "report.json"
    from tests.support.models import convert_hf

    convert_hf(examples / "base", base)
    assert convert.main([str(base), str(examples / "ft-words"), "-o", str(delta), "-t", "1"]) == 0
    chat = tmp_path / "chat.jsonl"
    question = {"role": "user", "content": "Say each letter twice: a b"}
    chat.write_text(json.dumps({"messages": [question, {"role": "assistant", "content": "a a b b"}]}) + "\n")
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"messages": [question], "answer": "a a b b"}) + "\n")
    files = ["--text", chat, "--problems", asked, "--max-tokens", "12", "--json", out]
    argv = [base, "--tuned", examples / "ft-words", "--delta", delta, "-t", "1", *files]
    assert main([str(x) for x in argv]) == 0
    report = json.loads(out.read_text())
    assert report["text"]["models"][1]["kl"]["value"] < report["text"]["models"][0]["kl"]["value"]
    assert "converting" in capsys.readouterr().err
    assert not list(tmp_path.glob(".dqrelo-eval-*"))
    assert {Path(f["path"]).name for f in report["files"]["tuned"]} >= {"model.safetensors", "config.json"}


# --- reports ---


def test_a_run_can_be_repeated_bit_for_bit(evaluate: Evaluate, problem_file: Path) -> None:
    asked = ("--text", "self", "--tokens", "100", "--problems", problem_file, "--max-tokens", "4", "--seed", "7")
    first, again = evaluate(*asked), evaluate(*asked)
    assert first == again
    assert evaluate(*asked[:-1], "8")["text"]["sha256"] != first["text"]["sha256"]


def test_a_report_names_what_it_was_made_of(evaluate: Evaluate, trio: Trio, text_file: Path) -> None:
    report = evaluate("--text", text_file)
    assert report["program"].startswith("dqrelo-eval ")
    assert report["llama_cpp_commit"]
    assert report["command"].startswith("dqrelo-eval ")
    assert [d["content_hash"] for d in report["files"]["deltas"]] == [DeltaReader(p).content_hash for p in trio.deltas]
    assert report["files"]["base"][0]["sha256"] == hashlib.sha256(trio.base.read_bytes()).hexdigest()
    assert report["tuned_sha256"] == report["files"]["tuned"][0]["sha256"]


def test_tables_name_figures_as_llama_perplexity_does(
    trio: Trio, text_file: Path, problem_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[0], "--ctx", "32", "-t", "1", "--text", text_file]
    assert main([str(x) for x in [*argv, "--problems", problem_file, "--max-tokens", "4"]]) == 0
    out = capsys.readouterr().out
    for name in ("Mean    KLD", "Maximum KLD", "99.9%   KLD", "Median  KLD", "Same top p", "Mean    Δp", "RMS Δp"):
        assert f" {name} " in out
    assert "retention" in out
    assert "…" not in out


def test_deltas_of_a_name_that_is_taken_go_by_their_file(
    trio: Trio, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delta = Edited(trio.deltas[0])
    delta.fields["general.name"] = GGUFValue("base", ValueType.STRING)
    path = delta.save(tmp_path / "mine.dq.gguf")
    options = ["--delta", path, "--text", text_file, "--ctx", "32", "-t", "1", "--json", "-"]
    assert main([str(x) for x in [trio.base, "--tuned", trio.tuned, *options]]) == 0
    assert [m["name"] for m in json.loads(capsys.readouterr().out)["text"]["models"]] == ["base", "mine.dq.gguf"]


def test_an_interrupt_among_problems_leaves_those_that_all_have_answered(
    evaluate: Evaluate, problem_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "N_TOGETHER", 2)
    generate, calls = Runtime.generate, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # The base and its deltas are asked the second time.
            raise KeyboardInterrupt
        return generate(*args, **options)

    monkeypatch.setattr(Runtime, "generate", interrupted)
    report = evaluate("--problems", problem_file, "--max-tokens", "4", code=1)
    (task,) = report["problems"]["tasks"]
    assert (task["n_problems"], task["n_problems_all"]) == (2, 5)
    assert all(len(score["right"]) == 2 for score in task["scores"])


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT interrupts: a shell's background jobs ignore it, and their children with them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_leaves_what_was_measured(
    evaluate: Evaluate, trio: Trio, text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room.Rounds, "plan", lambda *_: room.Rounds(1, 4, 3, 0))
    add, calls = measure._Round.add_to, []

    def add_two(*args: Any) -> None:
        add(*args)
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(measure._Round, "add_to", add_two)
    report = evaluate("--text", text_file, "--stamp", code=1)
    assert report["interrupted"]
    assert report["text"]["n_windows"] == 2 < report["text"]["n_windows_all"]
    assert "interrupted: what is above was measured until then" in capsys.readouterr().err
    assert DeltaReader(trio.deltas[0]).quality is None


# --- stamps ---


def test_stamp_writes_what_was_measured(
    trio: Trio, tmp_path: Path, text_file: Path, problem_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dqrelo_gguf.cli import inspect

    delta, out = Path(shutil.copy(trio.deltas[0], tmp_path / "a.dq.gguf")), tmp_path / "report.json"
    argv = [
        trio.base,
        "--tuned",
        trio.tuned,
        "--delta",
        delta,
        "--ctx",
        "32",
        "-t",
        "1",
        "--text",
        text_file,
        "--stamp",
    ]
    assert main([str(x) for x in [*argv, "--problems", problem_file, "--max-tokens", "4", "--json", out]]) == 0
    report, reader = json.loads(out.read_text()), DeltaReader(delta)
    reader.verify()
    quality = reader.quality
    assert quality is not None
    assert quality["kl"] == report["text"]["models"][1]["kl"]["value"]
    assert quality["kl_base"] == report["text"]["models"][0]["kl"]["value"]
    assert quality["text_sha256"] == report["text"]["sha256"]
    assert quality["retention"] == report["problems"]["deltas"][0]["retention"]["value"]
    assert quality["problems_sha256"] == report["problems"]["tasks"][0]["sha256"]
    assert quality["tuned_sha256"] == report["files"]["tuned"][0]["sha256"]
    assert quality["base_digest"] == reader.base.digest
    capsys.readouterr()
    assert inspect.main([str(delta)]) == 0
    assert "retention" in capsys.readouterr().out
    with Runtime(trio.base, n_threads=1) as rt:
        assert rt.load_delta(delta).content_hash == DeltaReader(trio.deltas[0]).content_hash


def test_without_a_gain_nothing_is_stamped_and_the_report_stays(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = tmp_path / "p.jsonl"
    problems.write_text('{"prompt": "the dog", "answer": "nobody says this"}\n')
    asked = ["--problems", problems, "--max-tokens", "4", "--stamp", "-t", "1"]
    assert main([str(x) for x in [trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[0], *asked]]) == 1
    out, err = capsys.readouterr()
    assert "no gain" in out
    assert err.splitlines()[-1].endswith("not stamped: the fine-tune has no gain on the problems, and no text was read")
    assert DeltaReader(trio.deltas[0]).quality is None


def test_a_delta_that_cannot_be_replaced_is_found_out_first(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = shutil.copy(trio.deltas[0], tmp_path / "a.dq.gguf")
    monkeypatch.setattr(job.os, "access", lambda *_: False)
    assert "is write-protected" in refused(capsys, trio.base, "--tuned", trio.tuned, "--delta", delta, "--stamp")


# --- the page ---


def test_a_page_is_written_beside_the_report(evaluate: Evaluate, text_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("an older one")
    report = evaluate("--text", text_file, "--html", page)
    text = page.read_text()
    assert report["files"]["deltas"][0]["content_hash"] in text
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert [p["value"] for p in data["kl"]] == [m["kl"]["value"] for m in report["text"]["models"]]
    assert data["spectra"]["weights"]
    assert data["tokens"]["windows"]
    assert not list(tmp_path.glob(".*partial"))
    assert evaluate("--text", text_file)["text"] == report["text"]  # The page changes no figure.


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_leaves_a_page_of_what_was_measured(
    evaluate: Evaluate, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.Rounds, "plan", lambda *_: room.Rounds(1, 4, 3, 0))
    add = measure._Round.add_to

    def add_one(*args: Any) -> None:
        add(*args)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(measure._Round, "add_to", add_one)
    evaluate("--text", text_file, "--html", tmp_path / "page.html", code=1)
    text = (tmp_path / "page.html").read_text()
    assert "Interrupted: what is below" in text
    assert json.loads(text.partition('id="data">')[2].partition("</script>")[0])["kl"]


def test_a_page_that_cannot_be_is_found_out_first(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        pytest.fail("the measurement began")

    monkeypatch.setattr(job, "evaluate", measured)
    asked = (trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[0])
    page = tmp_path / "x"
    assert "is read by this command" in refused(capsys, *asked, "--html", trio.tuned)
    assert "is the same file as the output" in refused(capsys, *asked, "--html", page, "--json", page)
    assert "there is no directory" in refused(capsys, *asked, "--html", tmp_path / "none" / "x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "--html: needs the package plotly" in refused(capsys, *asked, "--html", page)


# --- errors ---


def test_a_text_shorter_than_the_context(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("the dog")
    line = refused(
        capsys, trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[0], "--text", tmp_path / "short.txt", "-t", "1"
    )
    assert "short.txt: has 3 tokens, expected at least 1024" in line


def test_problems_without_answers(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "x"}\n')
    line = refused(capsys, trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[0], "--problems", path)
    assert "line 1 has no 'answer'" in line


def test_a_fine_tune_of_another_vocabulary(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = with_token(trio.tuned, tmp_path / "other.gguf", 300, "zzz")
    line = refused(capsys, trio.base, "--tuned", other, "--delta", trio.deltas[0])
    assert (
        f"other.gguf: is a fine-tune of another vocabulary than base {trio.base}: token 300 is 'zzz', expected" in line
    )


def test_a_delta_of_another_base(trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_model(tmp_path / "other.gguf", NARROW, base_weights(NARROW, 9), Type.F16)
    line = refused(capsys, other, "--tuned", trio.tuned, "--delta", trio.deltas[0])
    assert "another model" in line


def test_not_enough_memory_says_what_is_needed(
    trio: Trio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "available_bytes", lambda: 1 << 30)
    asked = (trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[0])
    line = refused(capsys, *asked)
    assert "GiB of memory (base " in line
    assert "1.0 GiB are available. Use --sequential" in line
    assert "Use --sequential" not in refused(capsys, *asked, "--sequential")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text", "none.txt"), "none.txt: no such file"),
        (("--ctx", "4"), "--ctx 4: expected a number from 8"),
        (("--seed", "-1"), "--seed -1: expected a number from 0"),
        (("--tuned", "nowhere"), "nowhere: no such file or directory"),
        (("--delta", "nothing.dq.gguf"), "nothing.dq.gguf: no such file"),
        (("--json", "no/such/folder/x.json"), "no/such/folder"),
    ],
)
def test_arguments_that_cannot_be(
    trio: Trio, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, trio.base, "--tuned", trio.tuned, "--delta", trio.deltas[0], *options)
    assert message in line


def test_an_adapter_is_no_fine_tune(trio: Trio, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, trio.base, "--tuned", trio.deltas[0], "--delta", trio.deltas[0])
    assert "adapter" in line


def test_a_model_of_another_shape_is_no_fine_tune(
    trio: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = Shape(n_embd=72, n_head=3, n_head_kv=3, n_ff=104)
    other = write_model(tmp_path / "other.gguf", shape, base_weights(shape), Type.F16)
    line = refused(capsys, trio.base, "--tuned", other, "--delta", trio.deltas[0])
    assert f"other.gguf: is no fine-tune of base {trio.base}: weight 'token_embd.weight' is 72x" in line


def test_problems_that_do_not_fit_are_refused_before_the_text_is_read(
    trio: Trio, text_file: Path, problem_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "measure_text", lambda *_: pytest.fail("the text was read"))
    monkeypatch.setattr(room, "_PROCESS_BYTES", room.WORK_BYTES)
    monkeypatch.setattr(room.Rounds, "plan", lambda *_: room.Rounds(1, 4, 3, 0))
    argv = (
        trio.base,
        "--tuned",
        trio.tuned,
        "--delta",
        trio.deltas[0],
        "--text",
        text_file,
        "--problems",
        problem_file,
    )
    assert "bytes beside the models" in refused(capsys, *argv, "--ctx", "32", "-t", "1")

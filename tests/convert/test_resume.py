"""Conversions that are interrupted, and go on: the same bytes as without, or one line that says why not."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest

from dqrelo_gguf.cli.convert import main
from dqrelo_gguf.convert import job as job_module
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import DqreloError, InputError, OutputExistsError
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.interruptions import KilledError, interrupt_after
from tests.support.models import pico_gguf, pico_tuned_gguf


def job_of(out: Path, **options: object) -> Job:
    return Job(pico_gguf("llama"), pico_tuned_gguf("llama"), out, n_threads=1, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The delta of an uninterrupted conversion."""
    out = tmp_path_factory.mktemp("whole") / "x.dq.gguf"
    convert(job_of(out))
    return out.read_bytes()


def left(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


PARTIAL = {"x.dq.gguf.partial", "x.dq.gguf.partial.log"}


def interrupted(monkeypatch: pytest.MonkeyPatch, out: Path, n: int, **options: object) -> None:
    with monkeypatch.context() as context:
        interrupt_after(context, n)
        with pytest.raises(KilledError):
            convert(job_of(out, resume=True, **options))


@pytest.mark.parametrize("n", [0, 1, 5, 20])
def test_finished_weights_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes, n: int
) -> None:
    out = tmp_path / "x.dq.gguf"
    interrupted(monkeypatch, out, n)
    assert left(tmp_path) == PARTIAL
    names = interrupt_after(monkeypatch, -1)
    result = convert(job_of(out, resume=True))
    assert out.read_bytes() == whole
    assert left(tmp_path) == {"x.dq.gguf"}
    n_weights = len(DeltaReader(out).weights)
    assert len(result.weights) == n_weights
    assert n_weights - n <= len(names) <= n_weights - max(n - 8, 0)  # Some wait in the lanes and are not written yet.
    assert {w.name: w.error_delta for w in result.weights} == {
        w.name: w.error_delta for w in convert_plain(tmp_path).weights
    }


def convert_plain(folder: Path) -> job_module.ConvertResult:
    return convert(job_of(folder / "plain.dq.gguf", force=True))


def test_it_can_be_interrupted_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes) -> None:
    out = tmp_path / "x.dq.gguf"
    for _ in range(5):
        interrupted(monkeypatch, out, 3)
    convert(job_of(out, resume=True))
    assert out.read_bytes() == whole


def test_resume_with_nothing_left_begins(tmp_path: Path, whole: bytes) -> None:
    convert(job_of(tmp_path / "x.dq.gguf", resume=True))
    assert (tmp_path / "x.dq.gguf").read_bytes() == whole
    assert left(tmp_path) == {"x.dq.gguf"}


def test_what_is_left_is_named_without_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.dq.gguf"
    interrupted(monkeypatch, out, 9)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert main([str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(out)]) == 1
    error = capsys.readouterr().err
    assert (
        f"{out}.partial: is left of an interrupted conversion. Go on with --resume, or begin anew with --force" in error
    )
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    convert(job_of(out, force=True))
    assert out.read_bytes() == whole
    assert left(tmp_path) == {"x.dq.gguf"}


def test_without_resume_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(monkeypatch, 9)
    with pytest.raises(KilledError):
        convert(job_of(tmp_path / "x.dq.gguf"))
    assert left(tmp_path) == set()


def test_an_error_leaves_what_is_finished_with_resume_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes
) -> None:
    out = tmp_path / "x.dq.gguf"
    for resume, expected in ((False, set()), (True, PARTIAL)):
        with monkeypatch.context() as context:
            interrupt_after(context, 9, InputError("no more"))
            with pytest.raises(InputError, match="no more"):
                convert(job_of(out, resume=resume))
        assert left(tmp_path) == expected
    convert(job_of(out, resume=True))
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("changed", "options", "what"),
    [
        ({"name": "other"}, Options(), "--name"),
        ({}, Options(ratio=Fraction(1, 4)), "--ratio"),
        ({}, Options(method="paper"), "--factor-type"),
        ({"base": "copy"}, Options(), "base"),
        ({"tuned": "copy"}, Options(), "fine-tune"),
        ({"reference": "copy"}, Options(), "--reference"),
    ],
)
def test_a_changed_input_or_option_refuses_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], options: Options, what: str
) -> None:
    out = tmp_path / "out" / "x.dq.gguf"
    out.parent.mkdir()
    interrupted(monkeypatch, out, 9)
    before = {p.name: p.read_bytes() for p in out.parent.iterdir()}
    other = dict(changed)
    for field, value in changed.items():
        if value == "copy":
            source = pico_tuned_gguf("llama") if field == "tuned" else pico_gguf("llama")
            copy = tmp_path / source.name
            copy.write_bytes(source.read_bytes())
            os.utime(copy, ns=(1, 1))
            other[field] = str(copy)
    job = Job(**{**vars(job_of(out, resume=True)), **other})
    with pytest.raises(InputError, match=rf"x\.dq\.gguf\.partial: was begun with another {what} \(") as error:
        convert(job, options)
    assert "\n" not in str(error.value)
    assert {p.name: p.read_bytes() for p in out.parent.iterdir()} == before


def test_another_version_of_the_package_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.dq.gguf"
    interrupted(monkeypatch, out, 9)
    monkeypatch.setattr("dqrelo_gguf.convert.facts.__version__", "99.0")
    with pytest.raises(InputError, match=r"was begun with another version of dqrelo-gguf \(.*, now 99.0\)"):
        convert(job_of(out, resume=True))


def test_a_fine_tune_of_which_one_byte_changed_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, tuned = tmp_path / "x.dq.gguf", tmp_path / "tuned.gguf"
    tuned.write_bytes(pico_tuned_gguf("llama").read_bytes())
    with monkeypatch.context() as context:
        interrupt_after(context, 9)
        with pytest.raises(KilledError):
            convert(Job(pico_gguf("llama"), tuned, out, resume=True, n_threads=1))
    with tuned.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(InputError, match="another fine-tune"):
        convert(Job(pico_gguf("llama"), tuned, out, resume=True, n_threads=1))


@pytest.mark.parametrize("seed", range(8))
def test_damage_costs_work_and_no_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes, seed: int
) -> None:
    """Torn and changed bytes at random places of both files: what is not proved is computed again."""
    draw, out = random.Random(seed), tmp_path / "x.dq.gguf"  # noqa: S311
    interrupted(monkeypatch, out, 15)
    path = tmp_path / sorted(PARTIAL)[seed % 2]
    data = bytearray(path.read_bytes())
    at = draw.randrange(len(data))
    if seed < 4:
        del data[at:]
    else:
        data[at] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    try:
        convert(job_of(out, resume=True))
    except DqreloError:
        pytest.fail("a damaged journal stopped a conversion")
    assert out.read_bytes() == whole


def test_a_log_of_another_plan_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes) -> None:
    out = tmp_path / "x.dq.gguf"
    interrupted(monkeypatch, out, 15)
    (tmp_path / "x.dq.gguf.partial.log").write_bytes(b"\xff\x00 no log\n" * 5)
    convert(job_of(out, resume=True))
    assert out.read_bytes() == whole


def test_two_conversions_to_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl", reason="the system has no such locks")
    out = tmp_path / "x.dq.gguf"
    interrupted(monkeypatch, out, 9)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with (tmp_path / "x.dq.gguf.partial.log").open("rb") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        for options in ({"resume": True}, {"force": True}):
            with pytest.raises(InputError, match="is being written by another conversion"):
                convert(job_of(out, **options))
        with pytest.raises(OutputExistsError, match="is left of an interrupted conversion"):
            convert(job_of(out))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["x.dq.gguf.partial", "x.dq.gguf.partial.log"])
@pytest.mark.parametrize("how", [{"resume": True}, {"force": True}])
@pytest.mark.parametrize("kind", ["pipe", "dangling link", "link", "directory"])
def test_what_is_left_must_be_regular_files(tmp_path: Path, name: str, how: dict[str, bool], kind: str) -> None:
    place, other = tmp_path / name, tmp_path / "other"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to(other)
        if kind == "link":
            other.write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{re.escape(str(place))}: is not a regular file, .*Remove it"):
        convert(job_of(tmp_path / "x.dq.gguf", **how))
    assert os.path.lexists(place)
    assert not other.exists() or other.read_bytes() == b"mine"


@pytest.mark.parametrize("text", [b"{", b"[" * 100_000, b"\xff"])
def test_a_forged_line_is_a_torn_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes, text: bytes
) -> None:
    out = tmp_path / "x.dq.gguf"
    interrupted(monkeypatch, out, 5)
    with (tmp_path / "x.dq.gguf.partial.log").open("ab") as log:
        log.write(hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n")
    convert(job_of(out, resume=True))
    assert out.read_bytes() == whole


def test_pruned_models_are_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume: is for a delta"):
        convert(job_of(tmp_path / "x.gguf", resume=True), Options(method="magnitude"))


@pytest.mark.parametrize("n_kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_kill_9_at_random_points(tmp_path: Path, whole: bytes, n_kills: int) -> None:
    """A process that is killed n times, each time a little later, and then left alone."""
    out = tmp_path / "x.dq.gguf"
    args = [str(pico_gguf("llama")), str(pico_tuned_gguf("llama")), "-o", str(out), "--resume", "-t", "1"]
    code = "import sys, time\n" + SLOW + "from dqrelo_gguf.cli.convert import main\nsys.exit(main())"
    draw, n_seen = random.Random(n_kills), 0  # noqa: S311
    log = tmp_path / "x.dq.gguf.partial.log"
    for _ in range(n_kills):
        with subprocess.Popen([sys.executable, "-c", code, *args], stderr=subprocess.PIPE) as child:
            n_wanted = n_seen + draw.randrange(3)
            while child.poll() is None and n_lines(log) < 2 + n_wanted:
                time.sleep(0.002)
            time.sleep(draw.random() * 0.02)
            child.kill()
        assert not out.exists() or out.read_bytes() == whole
        if out.exists():
            out.unlink()
        n_seen = max(n_lines(log) - 2, 0)
    assert main(args) == 0
    assert out.read_bytes() == whole
    assert left(tmp_path) == {"x.dq.gguf"}


def n_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


# Every write takes a moment, so that a kill falls between any two of them.
SLOW = """
from dqrelo_gguf.file import journal
_append = journal.Journal._append
def slowly(self, line):
    time.sleep(0.005)
    _append(self, line)
journal.Journal._append = slowly
"""

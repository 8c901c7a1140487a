"""The quality record: what is read is what was written, parts may be absent, and a file without one has none."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from dqrelo_gguf.errors import DiskFullError, FormatError
from dqrelo_gguf.file import rewrite
from dqrelo_gguf.file.quality import RULES
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.file.rewrite import stamp_quality
from tests.support.delta_files import write_delta
from tests.support.malformed import ON_PROBLEMS, ON_TEXT, QUALITY


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    write_delta(tmp_path / "a.dq.gguf")
    return tmp_path / "a.dq.gguf"


def stamp(path: Path, record: dict[str, object]) -> None:
    stamp_quality(path, record, DeltaReader(path).content_hash)


@pytest.mark.parametrize("left_out", [(), ON_TEXT, ON_PROBLEMS], ids=["whole", "problems", "text"])
def test_what_is_stamped_is_read(delta: Path, left_out: tuple[str, ...]) -> None:
    before = DeltaReader(delta)
    weights = {w.name: before.reconstruct(w.name) for w in before.weights}
    fields = before.fields()
    record = {name: value for name, value in QUALITY.items() if name not in left_out}
    stamp(delta, record)
    after = DeltaReader(delta)
    after.verify()
    assert after.quality == record
    assert after.content_hash == before.content_hash
    assert {key: value for key, value in after.fields().items() if key in fields} == fields
    assert all((after.reconstruct(name) == d_hat).all() for name, d_hat in weights.items())


def test_a_new_record_replaces_all_of_the_old_one(delta: Path) -> None:
    stamp(delta, QUALITY)
    only_text = {name: value for name, value in QUALITY.items() if name not in ON_PROBLEMS}
    stamp(delta, only_text | {"kl": 0.5})
    assert DeltaReader(delta).quality == only_text | {"kl": 0.5}


def test_a_file_without_a_record_has_none(delta: Path) -> None:
    assert DeltaReader(delta).quality is None


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o440])
def test_permissions_stay(delta: Path, mode: int) -> None:
    delta.chmod(mode)
    before = delta.stat()
    stamp(delta, QUALITY)
    after = delta.stat()
    assert stat.S_IMODE(after.st_mode) == mode
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


def test_the_target_of_a_link_is_replaced(delta: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.dq.gguf"
    link.symlink_to(delta)
    stamp(link, QUALITY)
    assert link.is_symlink()
    assert DeltaReader(delta).quality == QUALITY


def test_an_open_file_keeps_its_bytes(delta: Path) -> None:
    raw = delta.read_bytes()
    with delta.open("rb") as file:
        stamp(delta, QUALITY)
        assert file.read() == raw


def test_another_delta_than_was_measured_is_refused(delta: Path) -> None:
    raw = delta.read_bytes()
    with pytest.raises(FormatError, match=r"a\.dq\.gguf: is another delta by now than was measured"):
        stamp_quality(delta, QUALITY, "0" * 64)
    assert delta.read_bytes() == raw


def test_a_record_that_no_file_may_have_is_not_written(delta: Path) -> None:
    raw = delta.read_bytes()
    for rule in RULES:
        with pytest.raises(FormatError, match=f"{rule.name}' is missing"):
            stamp(delta, {name: value for name, value in QUALITY.items() if name != rule.name})
    assert delta.read_bytes() == raw
    assert list(delta.parent.iterdir()) == [delta]


def test_an_interrupted_stamp_leaves_the_old_file(delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = delta.read_bytes()

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rewrite.shutil, "copyfileobj", fail)
    with pytest.raises(DiskFullError):
        stamp(delta, QUALITY)
    assert delta.read_bytes() == raw
    assert list(delta.parent.iterdir()) == [delta]

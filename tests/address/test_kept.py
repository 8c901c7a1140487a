"""What is said of the cache: as much as is true, nothing of what lies outside, and nothing secret."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dqrelo_gguf.address import kept
from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.errors import InputError
from tests.support.addresses import RANGE_BYTES
from tests.support.cached import DAY, digest, look, put
from tests.support.web_server import Rule, Served, WebServer, status

PATH = "/folder/x.gguf"


def test_nothing_was_fetched_yet() -> None:
    found = look()
    assert (found.kept, found.n_bytes, found.problems) == ((), 0, ())
    assert not found.folder.exists(), "looking makes nothing"


def test_a_fetched_file_with_its_address_and_without_the_query(web: WebServer) -> None:
    web.files[PATH] = Served.of(b"12345")
    local(f"{web.url}{PATH}?signature=secret", Kind.MODEL)
    (found,) = look().kept
    assert (found.address, found.names, found.n_bytes) == (f"{web.url}{PATH}", ("x.gguf",), 5)
    assert (found.is_unfinished, found.is_older, found.strange) == (False, False, None)


def test_a_long_address_is_kept_whole(web: WebServer) -> None:
    path = f"/{'folder/' * 40}x.gguf"
    web.files[path] = Served.of(b"12345")
    local(f"{web.url}{path}", Kind.MODEL)
    assert look().kept[0].address == f"{web.url}{path}"


def test_an_unfinished_file_counts_as_far_as_it_is_there(web: WebServer) -> None:
    n_ranges = 64
    web.files[PATH] = Served.of(b"y" * n_ranges * RANGE_BYTES)
    web.rules.append(Rule(PATH, status(404), skip=3))
    with pytest.raises(InputError):
        local(f"{web.url}{PATH}", Kind.MODEL)
    (found,) = look().kept
    assert (found.address, found.is_unfinished, found.is_older) == (f"{web.url}{PATH}", True, False)
    assert found.n_bytes < n_ranges * RANGE_BYTES / 2
    web.rules.clear()
    local(f"{web.url}{PATH}", Kind.MODEL)
    (found,) = look().kept
    assert (found.is_unfinished, found.n_bytes) == (False, n_ranges * RANGE_BYTES)


def test_an_older_version_is_one_and_a_newer_one_under_way_is_not() -> None:
    put("https://h/x.gguf", days=3, version="1")
    put("https://h/x.gguf", days=2, version="2")
    assert [(found.is_older, found.is_unfinished) for found in look().kept] == [(True, False), (False, False)]
    newer = put("https://h/x.gguf", days=1, version="3", names=("x.gguf.partial",))
    (newer.parent / "current").write_text(digest("2"))
    assert [(found.is_older, found.is_unfinished) for found in look().kept] == [
        (True, False),
        (False, False),
        (False, True),
    ]


def test_a_split_model_is_one_thing_and_unfinished_until_all_parts_are_there() -> None:
    names = tuple(f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3))
    whole, part = put("https://h/a", names=names), put("https://h/b", names=names[1:])
    by_place = {found.place: found for found in look().kept}
    assert by_place[f"{whole.parent.name}/{whole.name}"].names == names
    assert by_place[f"{whole.parent.name}/{whole.name}"].n_bytes == 300
    assert not by_place[f"{whole.parent.name}/{whole.name}"].is_unfinished
    assert by_place[f"{part.parent.name}/{part.name}"].is_unfinished


def test_the_least_recently_used_comes_first_with_and_without_a_marker() -> None:
    put("https://h/a", days=1)
    put("https://h/b", days=3)
    old, note = put("https://h/c", days=-1), 2 * DAY
    for path, ago in ((old / "x.gguf", 10 * DAY), (old.parent / "current", note)):
        os.utime(path, (path.stat().st_mtime - ago,) * 2)
    found = look().kept
    assert [f.address for f in found] == ["https://h/b", "https://h/c", "https://h/a"]
    assert found[1].mark_ns is None


@pytest.mark.parametrize("time", [-(1 << 31), 1 << 33])
def test_a_time_is_one_that_has_a_date(time: int) -> None:
    folder = put("https://h/a")
    os.utime(folder.parent / f"{folder.name}.used", (time, time))
    assert 0 <= look().kept[0].used_ns <= kept._LAST_NS


def test_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.gguf").write_bytes(b"secret")
    folder = put("https://h/a")
    root = folder.parent.parent
    (root / ("0" * 32)).symlink_to(outside)
    (folder.parent / ("1" * 32)).symlink_to(outside)
    (folder.parent / "address").unlink()
    (folder.parent / "address").symlink_to(outside / "x.gguf")
    (folder / "y.gguf").symlink_to(outside / "x.gguf")
    (root / "note.txt").touch()
    found = look()
    (only,) = found.kept
    assert (only.address, only.names, only.n_bytes, only.strange) == (None, ("x.gguf",), 100, "y.gguf")
    assert found.n_others == 3
    assert "secret" not in repr(found)


def test_a_folder_of_the_cache_that_is_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    root = kept.files_folder()
    root.parent.mkdir(parents=True)
    root.symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a link, which is not followed"):
        look()
    root.unlink()
    root.write_text("")
    with pytest.raises(InputError, match="not a directory"):
        look()


def test_a_cache_that_is_a_link_by_its_setting_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.setenv("DQRELO_CACHE", str(tmp_path / "link"))
    put("https://h/a")
    assert len(look().kept) == 1


def test_what_is_hostile_in_a_note_is_shown_as_one_line() -> None:
    folder = put("https://h/a")
    (folder.parent / "address").write_bytes(b"https://h/\x1b[2J\n\xff" + b"a" * (1 << 20))
    (folder.parent / "current").unlink()
    os.mkfifo(folder.parent / "current")
    (found,) = look().kept
    assert found.address is not None
    assert found.address.isprintable()
    assert len(found.address) <= kept._MAX_NOTE_BYTES
    assert stat.S_ISFIFO((folder.parent / "current").stat().st_mode)


def test_what_cannot_be_read_is_a_line_and_the_rest_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, folder = put("https://h/a"), put("https://h/b")
    opened = kept.opened

    @contextmanager
    def refuse(name: str, folder: int | None = None) -> Iterator[int]:
        if name == closed.parent.name:
            raise PermissionError(13, "Permission denied")
        with opened(name, folder) as found:
            yield found

    monkeypatch.setattr(kept, "opened", refuse)
    found = look()
    assert [f.key for f in found.kept] == [folder.parent.name]
    assert found.problems == (f"{closed.parent}: permission denied",)

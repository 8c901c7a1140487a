"""Removing from the cache: the least recently used first, nothing that anybody uses or fetches, nothing outside."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from dqrelo_gguf.address import prune as pruning
from dqrelo_gguf.address import settings
from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.kept import PRUNING, files_folder
from dqrelo_gguf.address.prune import Bounds, prune
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.errors import InputError
from tests.support.addresses import RANGE_BYTES
from tests.support.cached import DAY, digest, let_go, look, put
from tests.support.web_server import Handler, Rule, Served, WebServer

PATH = "/folder/x.gguf"
DATA = bytes(range(256)) * 40
ALL = Bounds(max_bytes=0)


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    yield
    let_go()


def addresses() -> list[str | None]:
    return [kept.address for kept in look().kept]


def test_the_least_recently_used_goes_until_the_rest_fits() -> None:
    for name, days in (("a", 1), ("b", 3), ("c", 2), ("d", 4)):
        put(f"https://h/{name}", 100, days)
    said: list[str | None] = []
    done = prune(Bounds(max_bytes=250), say=lambda kept: said.append(kept.address))
    assert [kept.address for kept in done.removed] == said == ["https://h/d", "https://h/b"]
    assert addresses() == ["https://h/c", "https://h/a"]
    assert done.n_left == look().n_bytes
    assert prune(Bounds(max_bytes=250)).removed == []


@pytest.mark.parametrize(
    ("bounds", "left"),
    [
        (Bounds(older_than_seconds=2.5 * DAY), ["b", "c", "a"]),
        (Bounds(unfinished=True), ["d", "b", "a"]),
        (Bounds(older_than_seconds=2.5 * DAY, unfinished=True), ["b", "a"]),
        (Bounds(max_bytes=210, unfinished=True), ["b", "a"]),
        (Bounds(max_bytes=10**9), ["d", "b", "c", "a"]),
        (Bounds(max_bytes=0, idle_seconds=1.5 * DAY), ["a"]),
        (ALL, []),
    ],
)
def test_what_is_due_goes_first_and_counts(bounds: Bounds, left: list[str]) -> None:
    for name, days, file in (("a", 1, "x"), ("b", 2, "x"), ("c", 1.7, "x.partial"), ("d", 3, "x")):
        put(f"https://h/{name}", 100, days, names=(file,))
    done = prune(bounds)
    assert addresses() == [f"https://h/{name}" for name in left]
    assert (done.problems, done.in_use) == ([], [])


def test_a_version_goes_alone_and_the_last_one_with_its_folder() -> None:
    old, new = put("https://h/a", 100, 2, version="1"), put("https://h/a", 100, 1, version="2")
    prune(Bounds(max_bytes=100))
    assert (old.exists(), new.exists()) == (False, True)
    assert (new.parent / "current").read_text().strip() == new.name
    prune(ALL)
    assert list(files_folder().iterdir()) == [files_folder() / PRUNING]


def test_a_split_model_goes_as_a_whole() -> None:
    put("https://h/m", 100, 1, names=tuple(f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)))
    done = prune(Bounds(max_bytes=250))
    assert (len(done.removed), done.n_left, addresses()) == (1, 0, [])


def test_a_marker_without_files_goes_as_unfinished() -> None:
    folder = put("https://h/a", names=())
    (folder).rmdir()
    assert prune(ALL).removed == [], "it takes nothing"
    assert len(prune(Bounds(unfinished=True)).removed) == 1
    assert not folder.parent.exists()


def test_a_dry_run_changes_nothing() -> None:
    put("https://h/a", 100, 1)
    put("https://h/b", 100, -1)
    before = sorted(files_folder().rglob("*"))
    done = prune(ALL, dry_run=True)
    assert (len(done.removed), done.n_left) == (2, 0)
    assert sorted(files_folder().rglob("*")) == before
    with FileLock(files_folder() / digest("https://h/b") / digest("1") / "x.gguf.lock"):
        assert len(prune(ALL, dry_run=True).in_use) == 1


def test_a_download_of_a_release_without_markers_is_seen_by_its_lock() -> None:
    folder = put("https://h/a", 100, -1, names=("x.gguf.partial",))
    with FileLock(folder / "x.gguf.lock"):
        done = prune(Bounds(max_bytes=0, unfinished=True))
        assert ([kept.address for kept in done.in_use], done.n_left > 0) == (["https://h/a"], True)
        assert (folder / "x.gguf.partial").exists()
    assert len(prune(Bounds(unfinished=True)).removed) == 1


def test_what_is_used_after_the_look_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put("https://h/a", 100, 1)
    looked = pruning.contents

    def look_and_use(root: int | None) -> object:
        found = looked(root)
        os.utime(folder.parent / f"{folder.name}.used")
        return found

    monkeypatch.setattr(pruning, "contents", look_and_use)
    assert len(prune(ALL).in_use) == 1
    assert folder.exists()


def test_an_open_and_a_mapped_file_stay_readable() -> None:
    folder = put("https://h/a", 5000, 1)
    with (folder / "x.gguf").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert len(prune(ALL).removed) == 1
        assert not folder.exists()
        assert file.read() == mapped[:] == b"x" * 5000


CHILD = f"""
import os, sys
from dqrelo_gguf.address import marks, reading
from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
reading.RANGE_BYTES = {RANGE_BYTES}
for _ in range(int(sys.argv[2])):
    assert local(sys.argv[1], Kind.MODEL).read_bytes() == bytes(range(256)) * 40
    while marks._held:
        os.close(marks._held.popitem()[1])
print("done", flush=True)
"""


def child(web: WebServer, n_times: int) -> subprocess.Popen[bytes]:
    """A process that fetches the file and reads it, some times."""
    command = [sys.executable, "-c", CHILD, f"{web.url}{PATH}", str(n_times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_what_another_process_fetches_stays_and_is_whole_afterwards(web: WebServer) -> None:
    web.files[PATH] = Served.of(DATA)
    go_on = threading.Event()

    def hold(handler: Handler) -> None:
        go_on.wait(60)
        web.answer(handler)

    web.rules.append(Rule(PATH, hold, skip=3))
    with child(web, 1) as fetching:
        end = time.monotonic() + 60
        while web.count(PATH) < 5 and time.monotonic() < end:
            time.sleep(0.01)
        for bounds in (ALL, Bounds(unfinished=True), Bounds(older_than_seconds=0)):
            began = time.monotonic()
            done = prune(bounds)
            assert time.monotonic() - began < 5, "it waits for nobody"
            assert ([kept.address for kept in done.in_use], done.removed) == ([f"{web.url}{PATH}"], [])
        go_on.set()
        out, err = fetching.communicate(timeout=60)
    assert out == b"done\n", err
    assert [kept.is_unfinished for kept in look().kept] == [False]


def test_fetching_and_pruning_at_the_same_time_gives_whole_files(web: WebServer) -> None:
    web.files[PATH] = Served.of(DATA)
    children = [child(web, 30) for _ in range(2)]
    n_removed = 0
    while any(c.poll() is None for c in children):
        n_removed += len(prune(ALL).removed)
        time.sleep(0.002)
    for c in children:
        out, err = c.communicate(timeout=60)
        assert out == b"done\n", err
    assert n_removed > 2
    prune(ALL)
    assert list(files_folder().iterdir()) == [files_folder() / PRUNING]


def test_links_are_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("x.gguf", "y.partial", "z.lock", "current"):
        (outside / name).write_text("precious")
    key = outside / digest("1")
    key.mkdir()
    (key / "x.gguf").write_text("precious")
    before = sorted((path, path.stat().st_mtime_ns) for path in outside.rglob("*"))
    links = [put(f"https://h/{i}", 100, 1) for i in range(4)]
    (links[0] / "y.gguf").symlink_to(outside / "x.gguf")
    (links[1] / "x.gguf.lock").unlink()
    (links[1] / "x.gguf.lock").symlink_to(outside / "z.lock")
    marker = links[2].parent / f"{links[2].name}.used"
    marker.unlink()
    marker.symlink_to(outside / "x.gguf")
    (links[3].parent / digest("2")).symlink_to(key)
    (links[3] / "folder").mkdir()
    (files_folder() / digest("elsewhere")).symlink_to(outside)
    done = prune(Bounds(max_bytes=0, older_than_seconds=0, unfinished=True))
    assert done.removed == []
    assert len(done.problems) == 4
    assert all("\n" not in problem for problem in done.problems)
    assert sorted((path, path.stat().st_mtime_ns) for path in outside.rglob("*")) == before


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    put("https://h/a", 100, 1)
    (files_folder() / PRUNING).symlink_to(tmp_path / "made")
    with pytest.raises(InputError, match=PRUNING):
        prune(ALL)
    assert not (tmp_path / "made").exists()


def test_what_cannot_be_removed_is_a_line_and_the_rest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, other = put("https://h/a", 100, 2), put("https://h/b", 100, 1)
    unlink = os.unlink

    def refuse(name: str, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None and Path(f"/proc/self/fd/{dir_fd}").resolve() == stuck:
            raise PermissionError(13, "Permission denied")
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(pruning.os, "unlink", refuse)
    done = prune(ALL)
    assert done.problems == [f"https://h/a: {stuck.parent.name}/{stuck.name} cannot be removed: permission denied"]
    assert (stuck.exists(), other.exists(), done.n_left) == (True, False, look().n_bytes)


def test_one_prune_at_a_time(monkeypatch: pytest.MonkeyPatch, web: WebServer) -> None:
    put("https://h/a", 100, 1)
    monkeypatch.setattr(pruning, "_TURN_SECONDS", 0.1)
    monkeypatch.setattr(settings, "cache_max_bytes", lambda: 0)
    web.files[PATH] = Served.of(DATA)
    with FileLock(files_folder() / PRUNING):
        with pytest.raises(InputError, match="another process prunes it"):
            prune(ALL)
        assert local(f"{web.url}{PATH}", Kind.MODEL).read_bytes() == DATA, "a fetch does not mind"
    assert len(look().kept) == 2


# --- after a download ---


def test_a_download_removes_what_is_beyond_the_limit_and_not_itself(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, days in (("a", 2), ("b", 1), ("just", 0)):
        put(f"https://h/{name}", 100, days)
    web.files[PATH] = Served.of(DATA)
    monkeypatch.setattr(settings, "cache_max_bytes", lambda: len(DATA) + 250)
    local(f"{web.url}{PATH}", Kind.MODEL)
    assert addresses() == ["https://h/b", "https://h/just", f"{web.url}{PATH}"]
    assert capfd.readouterr().err.splitlines()[0] == "https://h/a: removed from the cache (100 B, DQRELO_CACHE_MAX)"
    monkeypatch.setattr(settings, "cache_max_bytes", lambda: 1)
    monkeypatch.setattr(pruning, "IDLE_SECONDS", 1e-9)
    web.files["/other"] = Served.of(b"12345")
    local(f"{web.url}/other", Kind.MODEL)
    assert addresses() == [f"{web.url}{PATH}", f"{web.url}/other"], "what this process reads stays"


def test_without_a_limit_everything_stays(web: WebServer) -> None:
    put("https://h/a", 100, 1000)
    web.files[PATH] = Served.of(DATA)
    local(f"{web.url}{PATH}", Kind.MODEL)
    assert len(look().kept) == 2


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "much", "9" * 5000])
def test_a_limit_that_is_none_is_refused_before_a_download(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("DQRELO_CACHE_MAX", value)
    with pytest.raises(InputError, match=r"DQRELO_CACHE_MAX=.*: expected a whole number of GiB") as error:
        local(f"{web.url}{PATH}", Kind.MODEL)
    assert len(str(error.value)) < 300
    assert web.requests == []

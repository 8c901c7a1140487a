"""Markers: they say when a version was last used and who uses it, and leave its files as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dqrelo_gguf.address import marks
from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.prune import Bounds, prune
from dqrelo_gguf.address.resolve import local
from tests.support.cached import digest, let_go, look, put
from tests.support.web_server import Served, WebServer

PATH = "/folder/x.gguf"
ALL = Bounds(max_bytes=0)


def age(path: Path) -> Path:
    """Makes the marker of a file's version a day old; returns it."""
    marker = path.parent.with_name(f"{path.parent.name}.used")
    os.utime(marker, (marker.stat().st_mtime - 86400,) * 2)
    return marker


def test_an_address_that_resolves_touches_its_marker_and_no_file(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files[PATH] = Served.of(b"12345")
    path = local(f"{web.url}{PATH}", Kind.MODEL)
    before = path.stat()
    for offline in ("", "1"):
        monkeypatch.setenv("DQRELO_OFFLINE", offline)
        let_go()
        old = age(path).stat().st_mtime_ns
        assert look().kept[0].used_ns == old
        assert local(f"{web.url}{PATH}", Kind.MODEL) == path
        assert look().kept[0].used_ns > old
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_what_a_process_resolved_is_held_until_it_ends(web: WebServer) -> None:
    web.files[PATH] = Served.of(b"12345")
    path = local(f"{web.url}{PATH}", Kind.MODEL)
    assert [kept.address for kept in prune(ALL).in_use] == [f"{web.url}{PATH}"]
    assert path.exists()
    let_go()
    assert [kept.address for kept in prune(ALL).removed] == [f"{web.url}{PATH}"]
    assert not path.exists()


EXEC = """
import os, sys
from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
local(sys.argv[1], Kind.MODEL)
os.execv(sys.executable, [sys.executable, "-c", "import sys; print('here', flush=True); sys.stdin.read()"])
"""


def test_a_program_that_takes_the_process_over_holds_it_too(web: WebServer) -> None:
    web.files[PATH] = Served.of(b"12345")
    command = [sys.executable, "-c", EXEC, f"{web.url}{PATH}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        assert len(prune(ALL).in_use) == 1
        child.communicate()
    assert len(prune(ALL).removed) == 1


def test_a_few_versions_are_held_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go()
    monkeypatch.setattr(marks, "MAX_HELD", 2)
    folders = [put(f"https://h/{i}") for i in range(3)]
    for folder in (*folders, folders[1]):
        marks.use(folder.parent, folder.name)
    assert len(marks._held) == 2
    assert [kept.address for kept in prune(ALL).removed] == ["https://h/0"]
    assert all(folder.exists() for folder in folders[1:])


def test_a_marker_goes_with_its_cache_and_is_made_again() -> None:
    folder = put("https://h/a")
    marks.use(folder.parent, folder.name)
    (folder.parent / f"{folder.name}.used").unlink()
    marks.use(folder.parent, folder.name)
    assert len(prune(ALL).in_use) == 1


def test_a_marker_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    marks.use(tmp_path / "file" / "key", digest("1"))
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    before = outside.stat()
    (tmp_path / f"{digest('1')}.used").symlink_to(outside)
    marks.use(tmp_path, digest("1"))
    assert (outside.stat().st_mtime_ns, outside.read_text()) == (before.st_mtime_ns, "as it was")

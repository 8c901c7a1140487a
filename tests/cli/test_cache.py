"""dqrelo-cache: what is there and what goes, and one line for everything that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dqrelo_gguf.address.kept import PRUNING, files_folder
from dqrelo_gguf.cli.cache import HUB, main
from tests.support.addresses import own_cache
from tests.support.cached import look, put


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_cache(tmp_path, monkeypatch)


def out_of(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    """The lines of a run that went well."""
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return list(out.splitlines())


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line on stderr of a run that failed."""
    assert main(args) == 1
    err = capsys.readouterr().err
    assert err.startswith("dqrelo-cache: error: ")
    assert err.count("\n") == 1
    return err


# --- list ---


def test_an_empty_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert out_of(capsys, "list") == [f"       0 B  in all, 0 in {files_folder()}", HUB]
    assert out_of(capsys, "prune", "--max-size", "0") == ["0 B removed, 0 B left"]
    assert json.loads("\n".join(out_of(capsys, "list", "--json")))["kept"] == []
    assert not files_folder().exists()


def test_a_line_for_each_version_and_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    put("https://h/x.gguf", 1536, 3, version="1")
    put("https://h/x.gguf", 1024, 2, version="2")
    put("s3://b/m", 100, 1, names=("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"))
    put("s3://b/y", 0, 0, names=("y.partial",))
    (files_folder() / "note.txt").touch()
    lines = out_of(capsys, "list")
    days = [(datetime.now() - timedelta(days=n)).strftime("%Y-%m-%d") for n in (3, 2, 1, 0)]
    assert [line.split("  ")[-1] for line in lines[:4]] == [
        "https://h/x.gguf (older version)",
        "https://h/x.gguf",
        "s3://b/m (2 parts)",
        "s3://b/y (unfinished)",
    ]
    assert [line.strip().split("  ")[0] for line in lines[:5]] == ["1.5 KiB", "1.0 KiB", "200 B", "3 B", "2.7 KiB"]
    assert all(day in line for day, line in zip(days, lines, strict=False))
    assert lines[5] == "1 other files or folders lie there, and are none of the cache's"
    assert lines[6] == HUB
    assert "`hf cache`" in HUB


def test_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    folder = put("https://h/x.gguf", 10, 1)
    document = json.loads("\n".join(out_of(capsys, "list", "--json")))
    (found,) = document["kept"]
    used = datetime.fromisoformat(found.pop("last_used"))
    assert timedelta(hours=23) < datetime.now(UTC) - used < timedelta(hours=25)
    assert found == {
        "address": "https://h/x.gguf",
        "folder": f"{folder.parent.name}/{folder.name}",
        "files": ["x.gguf"],
        "n_bytes": 10,
        "unfinished": False,
        "older_version": False,
    }
    assert (document["n_bytes"], document["folder"], document["problems"]) == (10, str(files_folder()), [])


def test_an_address_that_is_not_known_is_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    folder = put("https://h/x.gguf", 10, 1)
    (folder.parent / "address").unlink()
    assert out_of(capsys, "list")[0].endswith(f"  {folder.parent.name}/{folder.name}")


# --- prune ---


def test_what_goes_is_said_with_its_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    for name, days in (("a", 3), ("b", 2), ("c", 1)):
        put(f"https://h/{name}", 1 << 20, days)
    size = str(2.5 / 1024)
    before = sorted(files_folder().rglob("*"))
    lines = out_of(capsys, "prune", "--max-size", size, "--dry-run")
    assert [line.split("  ")[-1] for line in lines] == ["https://h/a", "1.0 MiB would be removed, 2.0 MiB left"]
    assert sorted(files_folder().rglob("*")) == before
    lines = out_of(capsys, "prune", "--max-size", size)
    assert lines[0].startswith("removed     1.0 MiB  ")
    assert lines[0].endswith("  https://h/a")
    assert lines[1] == "1.0 MiB removed, 2.0 MiB left"
    out_of(capsys, "prune", "--older-than", "1.5")
    assert [kept.address for kept in look().kept] == ["https://h/c"]


def test_what_is_in_use_stays_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    folder = put("https://h/a", 100, 1)
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print('here', flush=True); input()"
    marker = folder.parent / f"{folder.name}.used"
    command = [sys.executable, "-c", code, str(marker)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert out_of(capsys, "prune", "--max-size", "0") == [
            "in use, stays: https://h/a (100 B)",
            "0 B removed, 100 B left",
        ]
        process.communicate(b"\n")
    assert out_of(capsys, "prune", "--max-size", "0")[-1] == "100 B removed, 0 B left"


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["remove"],
        ["list", "x"],
        ["list", "--max-size", "1"],
        ["prune"],
        ["prune", "--dry-run"],
        ["prune", "--max-size"],
        ["prune", "--max-size", "-1"],
        ["prune", "--max-size", "nan"],
        ["prune", "--max-size", "inf"],
        ["prune", "--max-size", "1GiB"],
        ["prune", "--older-than", "1e300"],
        ["prune", "--older-than", ""],
    ],
)
def test_wrong_arguments_remove_nothing(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    put("https://h/a", 100, 1000, names=("x.partial",))
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
    assert len(look().kept) == 1


def test_a_cache_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files_folder().parent.mkdir(parents=True)
    files_folder().write_text("")
    for args in (["list"], ["list", "--json"], ["prune", "--max-size", "0"]):
        assert "not a directory" in refused(capsys, *args)
    files_folder().unlink()
    files_folder().symlink_to(tmp_path)
    for args in (["list"], ["prune", "--max-size", "0"]):
        assert "is a link, which is not followed" in refused(capsys, *args)


def test_what_cannot_be_removed_is_one_line_behind_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    odd = put("https://h/a", 100, 2)
    (odd / "folder").mkdir()
    put("https://h/b", 100, 1)
    assert main(["prune", "--max-size", "0"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "100 B removed, 100 B left"
    place = f"{odd.parent.name}/{odd.name}/folder"
    why = f"{place} is no file of the cache, so the version is left alone"
    assert err == f"dqrelo-cache: error: 1 could not be removed or looked at, first https://h/a: {why}\n"


def test_another_prune_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    from dqrelo_gguf.address import prune

    put("https://h/a", 100, 1)
    monkeypatch.setattr(prune, "_TURN_SECONDS", 0.1)
    with FileLock(files_folder() / PRUNING):
        assert "another process prunes it" in refused(capsys, "prune", "--max-size", "0")
        out_of(capsys, "prune", "--max-size", "0", "--dry-run")

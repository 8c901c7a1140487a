"""Files of a web server: whole or not at all, whatever the server and the connection do."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from dqrelo_gguf.address import download as downloading
from dqrelo_gguf.address import reading
from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.errors import DiskFullError, DqreloError, InputError
from tests.support.addresses import RANGE_BYTES
from tests.support.web_server import Action, Handler, Rule, Served, WebServer, cut, redirect, serving, status

DATA = np.random.default_rng(1).bytes(10 * RANGE_BYTES + 17)
PATH = "/folder/x.gguf"
SIGNED = "?X-Signature=secret"


@pytest.fixture
def served(web: WebServer) -> WebServer:
    web.files[PATH] = Served.of(DATA)
    return web


def fetch(web: WebServer, query: str = "") -> bytes:
    return local(f"{web.url}{PATH}{query}", Kind.MODEL).read_bytes()


def complete_files(cache: Path) -> list[Path]:
    """What has a name that somebody could take for a downloaded file."""
    own = (".partial", ".ranges", ".lock", ".used")
    return [
        p for p in cache.rglob("*") if p.is_file() and not p.name.endswith(own) and p.name not in ("current", "address")
    ]


def test_a_file_is_fetched_in_ranges_and_once(served: WebServer, capfd: pytest.CaptureFixture[str]) -> None:
    path = local(f"{served.url}{PATH}", Kind.MODEL)
    assert path.read_bytes() == DATA
    assert path.name == "x.gguf"
    assert served.count(PATH) == 1 + 11
    assert {r.headers.get("accept-encoding") for r in served.requests} == {"identity"}
    assert fetch(served) == DATA
    assert served.count(PATH) == 13  # It is asked whether the file is still the same.
    assert f"{served.url}{PATH} (version {served.files[PATH].etag}): {path}" in capfd.readouterr().err
    assert not list(path.parent.glob("*.partial"))


def test_progress_is_shown_of_large_files(
    served: WebServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(downloading, "QUIET_BYTES", 1)
    fetch(served, SIGNED)
    assert "fetching: 100 %" in (text := capfd.readouterr().err)
    assert "(x.gguf)" in text


def test_another_version_is_fetched_and_the_old_one_stays_whole(served: WebServer) -> None:
    first = local(f"{served.url}{PATH}", Kind.MODEL)
    served.files[PATH] = Served.of(DATA[::-1])
    second = local(f"{served.url}{PATH}", Kind.MODEL)
    assert (first.read_bytes(), second.read_bytes()) == (DATA, DATA[::-1])


@pytest.mark.parametrize("has_length", [True, False])
def test_a_server_without_ranges(web: WebServer, has_length: bool) -> None:
    web.files[PATH] = Served.of(DATA, has_ranges=False)
    if not has_length:
        web.rules.append(Rule(PATH, chunked(DATA)))
    assert fetch(web) == DATA


def chunked(data: bytes, is_whole: bool = True) -> Action:
    def act(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        if is_whole:
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    return act


def test_an_empty_file(web: WebServer) -> None:
    web.files[PATH] = Served.of(b"")
    assert fetch(web) == b""


def test_a_server_without_versions_is_asked_for_all_each_time(web: WebServer) -> None:
    web.files[PATH] = Served(DATA)
    assert fetch(web) == DATA
    web.files[PATH] = Served(DATA[::-1])
    assert fetch(web) == DATA[::-1]


@pytest.mark.parametrize(("n_bytes", "kept", "times"), [(0, 0, 3), (50, 0, 3), (950, 900, 1)])
def test_connections_that_end_early_go_on_where_they_were(
    served: WebServer, monkeypatch: pytest.MonkeyPatch, n_bytes: int, kept: int, times: int
) -> None:
    """What is left of a range after 900 bytes is too short to be cut again, so only one answer is cut there."""
    monkeypatch.setattr("dqrelo_gguf.address.web.PIECE_BYTES", 100)
    served.rules.append(Rule(PATH, cut(served.files[PATH], n_bytes), times=times, skip=2))
    assert fetch(served) == DATA
    begun = [int(r.headers["range"].removeprefix("bytes=").partition("-")[0]) for r in served.requests]
    assert sum(start % RANGE_BYTES == kept for start in begun[1:]) == (11 if kept == 0 else 0) + times
    assert len(begun) == 1 + 11 + times


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("skip", [0, 3])
def test_a_busy_server_is_asked_again(served: WebServer, code: int, skip: int) -> None:
    served.rules.append(Rule(PATH, status(code), times=2, skip=skip))
    assert fetch(served) == DATA


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7), ("999", 60), ("9" * 30, 0.001), ("-1", 0.001), ("soon", 0.001)]
)
def test_a_pause_that_the_server_asks_for_is_kept_within_bounds(
    served: WebServer, monkeypatch: pytest.MonkeyPatch, value: str, seconds: float
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("dqrelo_gguf.address.reading.time.sleep", pauses.append)
    served.rules.append(Rule(PATH, status(429, Retry_After=value), times=1))
    assert fetch(served) == DATA
    assert pauses == [seconds]


def test_a_large_file_has_long_ranges(served: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "MAX_RANGES", 3)
    assert fetch(served) == DATA
    assert served.count(PATH) == 1 + 3


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (401, "asks for credentials"),
        (403, "may not be read"),
        (404, "is not there"),
        (410, "is not there any more"),
        (418, "answers 418"),
        (429, "too many requests"),
        (500, "answers 500"),
    ],
)
@pytest.mark.parametrize("skip", [0, 3])
def test_what_stays_so_is_one_line(served: WebServer, cache: Path, code: int, problem: str, skip: int) -> None:
    served.rules.append(Rule(PATH, status(code), skip=skip))
    with pytest.raises(InputError, match=problem) as error:
        fetch(served, SIGNED)
    assert f"{served.url}{PATH}" in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    assert complete_files(cache) == []


def test_what_was_fetched_before_an_error_is_kept(served: WebServer) -> None:
    served.rules.append(Rule(PATH, status(500), skip=7))
    with pytest.raises(InputError, match="Run again: what is here already is kept"):
        fetch(served)
    served.rules.clear()
    served.requests.clear()
    assert fetch(served) == DATA
    assert 2 <= served.count(PATH) < 11


@pytest.mark.parametrize("n_bytes", [5, 5 * RANGE_BYTES])
def test_a_length_that_is_not_kept_is_no_file(web: WebServer, cache: Path, n_bytes: int) -> None:
    """More is declared than is sent, in one piece."""
    served = Served.of(DATA, has_ranges=False)
    web.files[PATH] = served
    web.rules.append(Rule(PATH, lambda handler: handler.send_file(served, declared=len(DATA) + n_bytes)))
    with pytest.raises(InputError, match="the connection ended early"):
        fetch(web)
    assert complete_files(cache) == []


def test_a_chunked_body_that_ends_early_is_no_file(web: WebServer, cache: Path) -> None:
    web.rules.append(Rule(PATH, chunked(DATA, is_whole=False)))
    with pytest.raises(InputError, match="the connection ended early"):
        fetch(web)
    assert complete_files(cache) == []


def wrong_range(text: str, data: bytes = b"x" * RANGE_BYTES) -> Action:
    return lambda handler: handler.plain(206, data, Content_Range=text, ETag='"a"')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes 0-99/100",
        "bytes 5-1004/99999",
        f"bytes 0-{10**25}/{10**26}",
        "bytes 0-999/*",
        "bytes 0-999/5",
        "x\x01y",
    ],
)
def test_a_range_that_was_not_asked_for(served: WebServer, cache: Path, text: str) -> None:
    served.files[PATH].etag = '"a"'
    served.rules.append(Rule(PATH, wrong_range(text), skip=1))
    with pytest.raises(InputError, match="was asked for the bytes"):
        fetch(served)
    assert complete_files(cache) == []


def test_more_bytes_than_the_range_has(served: WebServer, cache: Path) -> None:
    served.files[PATH].etag = '"a"'

    def long(handler: Handler) -> None:
        first, end = handler.span(len(DATA)) or (0, 0)
        handler.plain(206, b"y" * 5000, Content_Range=f"bytes {first}-{end - 1}/{len(DATA)}", ETag='"a"')

    served.rules.append(Rule(PATH, long, skip=1))
    with pytest.raises(InputError, match="more bytes than it was asked for"):
        fetch(served)
    assert complete_files(cache) == []


def test_another_etag_between_ranges_begins_anew(served: WebServer) -> None:
    def change(handler: Handler) -> None:
        served.files[PATH] = Served.of(DATA[::-1])
        served.answer(handler)

    served.rules.append(Rule(PATH, change, times=1, skip=4))
    assert fetch(served) == DATA[::-1]


def test_an_etag_that_always_changes_is_an_error(served: WebServer, cache: Path) -> None:
    numbers = iter(range(1000))

    def change(handler: Handler) -> None:
        served.files[PATH] = Served(DATA, f'"{next(numbers)}"')
        served.answer(handler)

    served.rules.append(Rule(PATH, change))
    with pytest.raises(InputError, match="changes while it is read"):
        fetch(served)
    assert complete_files(cache) == []


def test_a_file_that_shrinks_begins_anew(served: WebServer) -> None:
    def shrink(handler: Handler) -> None:
        served.files[PATH] = Served.of(DATA[:100])
        served.answer(handler)

    served.rules.append(Rule(PATH, shrink, times=1, skip=2))
    assert fetch(served) == DATA[:100]


DIGESTS: list[tuple[str, Callable[[bytes], str]]] = [
    ("x-amz-checksum-sha256", lambda data: base64.b64encode(hashlib.sha256(data).digest()).decode()),
    ("x-goog-hash", lambda data: f"crc32c=AAAAAA==, md5={base64.b64encode(hashlib.md5(data).digest()).decode()}"),  # noqa: S324
]


@pytest.mark.parametrize(("name", "value"), DIGESTS)
def test_a_digest_of_the_server_is_checked(
    web: WebServer, cache: Path, name: str, value: Callable[[bytes], str]
) -> None:
    web.files[PATH] = Served(DATA, '"a"', headers={name: value(DATA)})
    assert fetch(web) == DATA
    web.files["/other"] = Served(DATA, '"a"', headers={name: value(DATA + b"x")})
    before = complete_files(cache)
    with pytest.raises(InputError, match=r"its bytes have the .* thrown away"):
        local(f"{web.url}/other", Kind.FILE)
    assert complete_files(cache) == before
    assert not list(cache.rglob("*.partial"))


@pytest.mark.parametrize("value", ["abc-3", "!!!", "QUJD"])
def test_a_checksum_of_parts_is_no_digest(web: WebServer, value: str) -> None:
    web.files[PATH] = Served(DATA, '"a"', headers={"x-amz-checksum-sha256": value, "x-goog-hash": f"md5={value}"})
    assert fetch(web) == DATA


def test_what_is_sent_compressed_is_refused(web: WebServer) -> None:
    web.files[PATH] = Served.of(DATA, headers={"Content-Encoding": "gzip"})
    with pytest.raises(InputError, match="is sent compressed"):
        fetch(web)


def test_redirects_on_this_machine_are_followed(served: WebServer) -> None:
    served.files["/there"] = served.files.pop(PATH)
    served.rules.append(Rule(PATH, redirect("/there")))
    assert fetch(served) == DATA


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("file:///etc/passwd", "refused"),
        ("ftp://127.0.0.1/x", "refused"),
        ("http://example.org/secret", "is not encrypted"),
        (PATH, "redirects, which may be a circle"),
    ],
)
def test_redirects_that_are_refused(served: WebServer, cache: Path, target: str, problem: str) -> None:
    served.rules.append(Rule(PATH, redirect(target)))
    with pytest.raises(InputError, match=problem) as error:
        fetch(served, SIGNED)
    assert "secret" not in str(error.value)
    assert complete_files(cache) == []


def test_a_redirect_from_https_to_http_is_refused() -> None:
    from dqrelo_gguf.address.web import _checked_redirect

    with pytest.raises(InputError, match="from https to the scheme 'http'"):
        _checked_redirect("https", "http://127.0.0.1/x", "label")
    assert _checked_redirect("http", "https://example.org/x", "label") == "https://example.org/x"


def test_a_server_that_is_not_there(cache: Path) -> None:
    with pytest.raises(InputError, match="could not be reached") as error:
        local(f"http://127.0.0.1:9/x.gguf{SIGNED}", Kind.MODEL)
    assert "secret" not in str(error.value)
    assert complete_files(cache) == []


def test_a_file_over_the_limit_is_not_begun(web: WebServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("DQRELO_MAX_DOWNLOAD", "1")
    web.rules.append(Rule(PATH, wrong_range(f"bytes 0-0/{(1 << 30) + 1}", b"x")))
    with pytest.raises(InputError, match=r"has 1\.00 GiB, expected at most 1\.00 GiB. Set DQRELO_MAX_DOWNLOAD"):
        fetch(web)
    assert web.count(PATH) == 1
    assert not list(cache.rglob("*.partial"))


def test_a_file_that_does_not_fit_on_the_disk_is_not_begun(
    web: WebServer, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("DQRELO_MAX_DOWNLOAD", "1000000")
    web.rules.append(Rule(PATH, wrong_range(f"bytes 0-0/{1 << 49}", b"x")))
    with pytest.raises(DiskFullError, match="free"):
        fetch(web)
    assert not list(cache.rglob("*.partial"))


def test_a_body_of_unknown_size_ends_at_the_limit(web: WebServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr("dqrelo_gguf.address.settings.max_bytes", lambda: 1000)
    web.rules.append(Rule(PATH, chunked(DATA)))
    with pytest.raises(InputError, match="sends more than 1000 bytes"):
        fetch(web)
    assert complete_files(cache) == []


@pytest.mark.parametrize("n_digits", [25, 400, 5000])
def test_a_length_that_no_file_has(web: WebServer, cache: Path, n_digits: int) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "9" * n_digits)
        handler.end_headers()
        handler.write_body(DATA)
        handler.close_connection = True

    web.rules.append(Rule(PATH, answer))
    if n_digits > 4300:  # Python reads no such number, so there is none.
        assert fetch(web) == DATA
        return
    with pytest.raises(InputError, match=re.escape(PATH)):
        fetch(web)
    assert complete_files(cache) == []


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", "²", "9999999999"])
def test_a_limit_that_is_none(served: WebServer, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DQRELO_MAX_DOWNLOAD", value)
    with pytest.raises(InputError, match="expected a whole number of GiB"):
        fetch(served)


def test_offline(served: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQRELO_OFFLINE", "1")
    with pytest.raises(InputError, match="is not in the cache, and there is no network"):
        fetch(served)
    assert served.requests == []
    monkeypatch.delenv("DQRELO_OFFLINE")
    assert fetch(served) == DATA
    served.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(served) == DATA
    assert served.requests == []


def test_a_query_is_on_no_path_and_in_no_file(
    served: WebServer, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fetch(served, SIGNED) == DATA
    texts = [p.read_bytes() for p in cache.rglob("*") if p.is_file()]
    assert not any(b"secret" in text for text in texts)
    assert not any("secret" in str(p) for p in cache.rglob("*"))
    captured = capfd.readouterr()
    assert "secret" not in captured.out + captured.err


def test_split_models_come_whole(web: WebServer) -> None:
    names = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in names:
        web.files[f"/d/{name}"] = Served.of(name.encode())
    path = local(f"{web.url}/d/{names[1]}", Kind.MODEL)
    assert path.name == names[1]
    assert [path.with_name(n).read_bytes() for n in names] == [n.encode() for n in names]
    assert local(f"{web.url}/d/{names[0]}", Kind.MODEL).parent == path.parent
    with pytest.raises(InputError, match="Fetch them yourself"):
        local(f"{web.url}/d/{names[0]}?sig=1", Kind.MODEL)
    with pytest.raises(InputError, match="expected at most 1000"):
        local(f"{web.url}/d/m-00001-of-99999.gguf", Kind.MODEL)
    web.rules.append(
        Rule(names[1], chunked(b"x"), times=1)
    )  # Each of the parts could then have as many bytes as all may.
    with pytest.raises(InputError, match="does not say how large each is"):
        local(f"{web.url}/d/{names[0]}", Kind.MODEL)
    del web.files[f"/d/{names[2]}"]
    with pytest.raises(InputError, match=f"{names[2]}: is not there"):
        local(f"{web.url}/d/{names[0]}", Kind.MODEL)


CHILD = f"""
import sys
from dqrelo_gguf.address import reading
from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
reading.RANGE_BYTES = {RANGE_BYTES}
sys.stdout.buffer.write(local(sys.argv[1], Kind.MODEL).read_bytes())
"""


def fetch_in_child(web: WebServer) -> subprocess.Popen[bytes]:
    """A process of its own, which writes the file to its stdout."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, f"{web.url}{PATH}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def test_processes_that_want_the_same_file_take_turns(served: WebServer) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.02)
        served.answer(handler)

    served.rules.append(Rule(PATH, slow))
    children = [fetch_in_child(served) for _ in range(3)]
    assert [child.communicate(timeout=120)[0] for child in children] == [DATA] * 3
    assert served.count(PATH) == 3 + 11  # Each asked once; one fetched.


def ranges_there(cache: Path) -> int:
    """How many ranges the list beside a partial file has."""
    return sum(path.read_bytes().count(b"\n") - 1 for path in cache.rglob("*.ranges"))


def wait_until(condition: Callable[[], bool]) -> None:
    """Gives another process time to do something."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_killed_download_goes_on_and_is_never_taken_for_whole(served: WebServer, cache: Path) -> None:
    n_there = 0
    for n_more in (2, 4, 3):
        go_on = threading.Event()

        def hold(handler: Handler, go_on: threading.Event = go_on) -> None:
            go_on.wait(60)
            served.answer(handler)

        served.requests.clear()
        served.rules[:] = [Rule(PATH, hold, skip=1 + n_more)]
        # All requests that it can make have come, so that none of a dead process is counted as one of the next.
        n_asked = 1 + min(11 - n_there, n_more + reading.N_CONNECTIONS)
        n_there += n_more
        with fetch_in_child(served) as child:
            wait_until(lambda: served.count(PATH) == n_asked and ranges_there(cache) == n_there)  # noqa: B023
            child.kill()
        go_on.set()
        assert complete_files(cache) == []
    served.rules.clear()
    served.requests.clear()
    assert fetch(served) == DATA
    assert served.count(PATH) == 1 + 11 - n_there


@pytest.mark.parametrize(
    "tail", [b"3000", b"3000\nx\n", b"\xff\n", b"999999999999\n-5\n1\n", b"3000\n" * 3],
    ids=["torn", "word", "bytes", "numbers", "twice"],
)  # fmt: skip
def test_a_damaged_list_of_ranges_costs_time_and_no_bytes(served: WebServer, cache: Path, tail: bytes) -> None:
    served.rules.append(Rule(PATH, status(404), skip=6))
    with pytest.raises(InputError):
        fetch(served)
    served.rules.clear()
    path = next(cache.rglob("*.ranges"))
    partial = path.with_name("x.gguf.partial")
    there = path.read_bytes()
    if b"3000\n" in tail:  # It claims a range that is there.
        with partial.open("r+b") as file:
            file.seek(3000)
            file.write(DATA[3000:4000])
    path.write_bytes(there + tail)
    assert fetch(served) == DATA


def test_a_partial_file_of_another_size_is_begun_anew(served: WebServer, cache: Path) -> None:
    served.rules.append(Rule(PATH, status(404), skip=6))
    with pytest.raises(InputError):
        fetch(served)
    served.rules.clear()
    next(cache.rglob("*.partial")).write_bytes(b"other")
    assert fetch(served) == DATA


def test_a_cache_that_cannot_be_written(served: WebServer, cache: Path) -> None:
    cache.mkdir()
    (cache / "dqrelo").write_text("a file")
    with pytest.raises(DqreloError, match="dqrelo"):
        fetch(served)


def test_a_running_download_ends_at_an_interrupt(
    served: WebServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object) -> None:
        raise KeyboardInterrupt

    class Stop:
        def __init__(self, *_args: object) -> None: ...
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_args: object) -> None: ...

        step = interrupt

    monkeypatch.setattr(downloading, "QUIET_BYTES", 0)
    monkeypatch.setattr(downloading, "phases_for_stderr", lambda _unit: Stop)
    with pytest.raises(KeyboardInterrupt):
        fetch(served)
    assert complete_files(cache) == []


def test_a_second_server_on_another_port_is_another_address(served: WebServer) -> None:
    other = WebServer()
    other.files[PATH] = Served.of(b"other")
    with serving(other):
        assert (fetch(served), fetch(other)) == (DATA, b"other")

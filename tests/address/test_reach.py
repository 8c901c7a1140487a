"""Which addresses a prefix of --load-from allows, and which URLs may then be asked."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dqrelo_gguf.address import settings
from dqrelo_gguf.address.parse import HubAddress, UrlAddress, parse
from dqrelo_gguf.address.reach import REACH, AllowList, prefix_of, rule_for
from dqrelo_gguf.errors import InputError, NotAllowedError

HUB = "https://hub.example"


def allowed(*prefixes: str) -> AllowList:
    return AllowList(tuple(map(prefix_of, prefixes)))


def address(text: str) -> HubAddress | UrlAddress:
    found = parse(text)
    assert not isinstance(found, Path)
    return found


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("hf://owner", "hf://owner/any"),
        ("hf://owner/", "hf://owner/any/folder/x.dq.gguf@v1"),
        ("hf://owner/repo", "hf://owner/repo"),
        ("hf://owner/repo/", "hf://owner/repo/x.dq.gguf"),
        ("hf://owner/repo/folder", "hf://owner/repo/folder/x.dq.gguf@0123"),
        ("s3://bucket/", "s3://bucket/x"),
        ("s3://bucket/a", "s3://bucket/a/b/x.dq.gguf"),
        ("gs://bucket/a/x.dq.gguf", "gs://bucket/a/x.dq.gguf"),
        ("https://host", "https://host/x"),
        ("https://host/a/", "https://HOST:443/a/x.dq.gguf?X-Signature=secret"),
        ("https://Host:443/a/", "HTTPS://host/a/b/x"),
        ("https://host/a b/".replace(" ", "%20"), "https://host/a%20b/x"),
        ("https://host/ab/", "https://host/%61b/x"),
        ("https://[::1]/", "https://[0:0::1]:443/x"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/x"),
    ],
)
def test_what_lies_below_a_prefix_is_allowed(prefix: str, text: str) -> None:
    allowed("hf://other/", prefix).require(address(text))


@pytest.mark.parametrize(
    ("prefix", "text"),
    [
        ("hf://owner/", "hf://owner2/repo"),
        ("hf://owner/", "hf://Owner/repo"),
        ("hf://owner/repo", "hf://owner/repo2"),
        ("hf://owner/repo/folder", "hf://owner/repo"),
        ("hf://owner/repo/folder", "hf://owner/repo/folder2/x"),
        ("s3://bucket/a/", "s3://bucket/ab/x"),
        ("s3://bucket/a/", "s3://bucket2/a/x"),
        ("s3://bucket/a/", "gs://bucket/a/x"),
        ("s3://bucket/a/", "s3://bucket/%61/x"),
        ("s3://bucket/", "s3://bucket/a%20b"),
        ("https://host/a/", "https://host/b/x"),
        ("https://host/a/", "https://host/A/x"),
        ("https://host/a/", "https://host/ab/x"),
        ("https://host/a/x", "https://host/a/x2"),
        ("https://host/", "https://host:8443/x"),
        ("https://host/", "https://host./x"),
        ("https://host/", "https://host.evil/x"),
        ("https://host/", "https://evil/host/x"),
        ("https://host/", "https://hosT\u0131/x"),
        ("https://host/", "https://\u24d7ost/x"),
        ("https://host/", "http://127.0.0.1/x"),
        ("https://host:0/", "https://host/x"),
        ("https://127.0.0.1/", "https://0x7f000001/x"),
        ("https://127.0.0.1/", "https://localhost/x"),
        ("https://host/a/", "https://host/a/..;/b/x"),
        ("https://host/a/", "https://host/a/.;v=1/x"),
        ("https://host/a/", "https://host/a/;/x"),
        ("https://host/a/", "https://host/a/%252e%252e/b/x"),
        ("https://host/a/", "https://host/a%2Fb/x"),
        ("https://host/a/", "https://host/a/b%25/x"),
        ("https://host/d%ff/", "https://host/d%fe/x"),
    ],
)
def test_what_does_not_lie_below_a_prefix_is_refused(prefix: str, text: str) -> None:
    with pytest.raises(NotAllowedError, match="--load-from") as caught:
        allowed("hf://other/", prefix).require(address(text))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a/../b/x",
        "https://host/a/%2e%2e/b/x",
        "https://host/a/%2E./b/x",
        "https://host/a//b/x",
        "https://host/a/..%2fb",
        "https://host/a/..%5cb",
        "https://host\\@evil/a/x",
        "https://host@evil/a/x",
        "https://host:pw@host/a/x",
        "https://host/a/x#@evil/",
        "https://host /a/x",
        "https://host/a/\tx",
        "https://host:44x/a/x",
        "s3://bucket/../other/x",
        "s3://bucket:80/a",
        "hf://owner/repo/../../evil/repo",
        "hf://owner/../evil/repo",
        "hf://owner/repo?x",
        "hf://owner/repo/a:b",
    ],
)
def test_what_is_no_address_is_not_compared(text: str) -> None:
    with pytest.raises(InputError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected hf://OWNER/"),
        ("/deltas", "expected hf://OWNER/"),
        ("file:///deltas", "expected hf://OWNER/"),
        ("hf://", "expected hf://OWNER/"),
        ("https://", "expected hf://OWNER/"),
        ("ftp://host/", "no scheme"),
        ("https://user:secret@host/", "user or a password"),
        ("https://host/a?token=secret", "without a query"),
        ("https://host?token=secret", "HOST/PATH"),
        ("hf://owner/repo@v1", "without a query or a revision"),
        ("https://host/a/../", "HOST/PATH"),
        ("https://host/a/..;/", "read in two ways"),
        ("https://host//", "HOST/PATH"),
        ("s3://bucket/a%20b", "percent sign"),
        ("http://example.org/", "not encrypted"),
    ],
)
def test_what_is_no_prefix(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prefix_of(text)
    assert "--load-from" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_http_to_other_machines_needs_its_own_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.ALLOW_HTTP, "1")
    allowed("http://example.org/a/").require(address("http://EXAMPLE.org:80/a/x"))


# --- URLs that are asked for an address


def test_a_web_server_redirects_to_what_is_allowed_only() -> None:
    prefixes = allowed("https://host/a/", "https://cdn/")
    rule = rule_for(address("https://host/a/x"), prefixes, lambda: HUB)
    for url in ("https://host/a/x", "https://host/a/y?q", "https://cdn/x?X-Signature=secret"):
        rule(url, "label")
    for url in ("https://host/b", "https://host/a/..;/b", "https://evil/a/x", "https://10.0.0.1/x", "https://[", HUB):
        with pytest.raises(NotAllowedError, match="label: is redirected to"):
            rule(url, "label")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of hosts, and where they are."""
    known = {
        "cdn.example": ["203.0.114.5", "2606:4700::5"],
        "inner.example": ["10.1.2.3"],
        "both.example": ["203.0.114.5", "127.0.0.1"],
        "mapped.example": ["::ffff:192.168.1.1"],
        "meta.example": ["169.254.169.254"],
        "localhost": ["127.0.0.1"],
    }

    def look_up(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host not in known:
            raise socket.gaierror("no such name")
        return [(0, 0, 0, "", (ip, 0)) for ip in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.usefixtures("names")
def test_the_hub_redirects_to_the_open_internet_only() -> None:
    found = address("hf://owner/repo/x.dq.gguf")
    rule = rule_for(found, allowed("hf://owner/", "https://inner.example/files/"), lambda: HUB)
    for url in (
        f"{HUB}/api/models/owner/repo/revision/main?blobs=true",
        f"{HUB}/owner/repo/resolve/0123/x.dq.gguf",
        f"{HUB}/api/resolve-cache/models/owner/repo/0123/x.dq.gguf",
        "https://cdn.example/x?X-Signature=secret",
        "https://inner.example/files/x",  # A prefix names it.
    ):
        rule(url, "label")
    for host in ("inner.example", "both.example", "mapped.example", "meta.example", "localhost", "unknown.example", ""):
        with pytest.raises(NotAllowedError, match="label: is redirected to"):
            rule(f"https://{host}/x", "label")


@pytest.mark.parametrize("hub", [HUB, f"{HUB}/mirror"])
@pytest.mark.parametrize(
    "path",
    [
        "/api/models/evil/repo/revision/main",
        "/api/models/evil/repo/revision/owner%2Frepo%2Fv1",  # Whoever asks chooses the revision, and the path of the file.
        "/evil/repo/resolve/0123/owner/repo/x.dq.gguf",
        "/api/resolve-cache/models/evil/repo/0123/owner/repo/x.dq.gguf",
        "/api/models/api/models/owner/repo/x",
        "/api/datasets/owner/repo/resolve/0123/x.dq.gguf",
        "/owner/repo2/resolve/0123/x.dq.gguf",
    ],
)
def test_a_repository_that_moved_is_another_one(hub: str, path: str) -> None:
    rule = rule_for(address("hf://owner/repo"), allowed("hf://owner/"), lambda: hub)
    rule(f"{hub}/owner/repo/resolve/0123/x.dq.gguf", "label")
    with pytest.raises(NotAllowedError, match="has moved to another repository"):
        rule(f"{hub}{path}", "label")


@pytest.mark.parametrize("revision", ["refs/pr/1", "pr/1", "refs/pr/12/x"])
def test_a_pull_request_is_nothing_of_the_repositorys(revision: str) -> None:
    found = address(f"hf://owner/repo/x.dq.gguf@{revision}")
    with pytest.raises(NotAllowedError, match=f"@{revision}: is a pull request, which anybody may open"):
        allowed("hf://owner/").require(found)


@pytest.mark.usefixtures("names")
def test_a_hub_on_this_machine_may_have_its_files_on_it() -> None:
    rule = rule_for(address("hf://owner/repo"), allowed("hf://owner/"), lambda: "http://localhost:5000")
    rule("http://localhost:6000/cdn", "label")
    with pytest.raises(NotAllowedError):
        rule("http://inner.example/cdn", "label")


def test_a_process_is_confined_until_it_is_not() -> None:
    def never(url: str, label: str) -> None:
        raise NotAllowedError(f"{label}: {url}")

    REACH.require("https://anywhere/", "label")
    REACH.confine(never)
    try:
        with pytest.raises(NotAllowedError, match="label: https://anywhere/"):
            REACH.require("https://anywhere/", "label")
    finally:
        REACH.confine(None)
    REACH.require("https://anywhere/", "label")

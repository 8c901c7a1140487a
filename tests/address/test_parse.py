"""What is an address, what is refused, and what is never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from dqrelo_gguf.address.parse import HubAddress, UrlAddress, is_address, is_inside, parse
from dqrelo_gguf.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://a/b", HubAddress("a/b")),
        ("hf://a/b/", HubAddress("a/b")),
        ("hf://a/b@v1.0", HubAddress("a/b", "", "v1.0")),
        ("hf://a/b/q/x-00001-of-00002.gguf", HubAddress("a/b", "q/x-00001-of-00002.gguf")),
        ("hf://a/b/x.gguf@refs/pr/1", HubAddress("a/b", "x.gguf", "refs/pr/1")),
        ("HF://a/b", HubAddress("a/b")),
        ("s3://bucket/a/x.gguf", UrlAddress("s3", "bucket", "a/x.gguf")),
        ("gs://bucket/x.gguf", UrlAddress("gs", "bucket", "x.gguf")),
        ("https://host:8443/a%20b.gguf?sig=1", UrlAddress("https", "host:8443", "a%20b.gguf", "sig=1")),
        ("http://127.0.0.1:8000/x.gguf", UrlAddress("http", "127.0.0.1:8000", "x.gguf")),
        ("http://[::1]:8000/x.gguf", UrlAddress("http", "[::1]:8000", "x.gguf")),
        ("file:///a%20b/x.gguf", Path("/a b/x.gguf")),
        ("file://localhost/x.gguf", Path("/x.gguf")),
        ("x.gguf", Path("x.gguf")),
        ("C:\\x.gguf", Path("C:\\x.gguf")),
        ("C://x.gguf", Path("C://x.gguf")),
        ("math=x.gguf", Path("math=x.gguf")),
    ],
)
def test_what_is_read(text: str, expected: HubAddress | UrlAddress | Path) -> None:
    assert parse(text) == expected
    assert parse(Path("some/path")) == Path("some/path")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hf://a", "expected hf://owner/repo"),
        ("hf://", "expected hf://owner/repo"),
        ("hf://a/..", "expected hf://owner/repo"),
        ("hf://a/b/../../c", "expected hf://owner/repo"),
        ("hf://a/b//c", "expected hf://owner/repo"),
        ("hf://a/b/c@", "expected hf://owner/repo"),
        ("hf://a/b/c@../main", "expected hf://owner/repo"),
        ("hf://a/b/c@-x", "expected hf://owner/repo"),
        ("hf://datasets/a/b", "not in a model repository"),
        ("hf://a/b?x=1", "has a query"),
        ("ftp://a/b", "expected one of hf, s3, gs, https, http, file"),
        ("javascript://a/b", "expected one of hf, s3, gs, https, http, file"),
        ("https://host", "expected https://HOST/PATH"),
        ("https://host/folder/", "expected https://HOST/PATH"),
        ("https://host/../x", "expected https://HOST/PATH"),
        ("https://host/%2e%2e/x", "expected https://HOST/PATH"),
        ("https://host/a%00b", "expected https://HOST/PATH"),
        ("https://host/x#part", "expected https://HOST/PATH"),
        ("https://[host/x", "is no address"),
        ("https://host:99999/x", "is no address"),
        ("s3://bucket", "expected s3://BUCKET/PATH"),
        ("s3://bucket:80/x", "without a port"),
        ("s3://bucket/x?versionId=1", "without a port or a query"),
        ("http://example.org/x", "is not encrypted"),
        ("http://127.0.0.1.example.org/x", "is not encrypted"),
        ("file://host/x", "of this machine"),
        ("https://host/a b", "spaces, controls or backslashes"),
        ("https://host/a\nb", "spaces, controls or backslashes"),
        ("https://host/" + "x" * 5000, "over 4096 characters"),
    ],
)
def test_what_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "https://user:secret@host/x.gguf",
        "https://secret@host/x.gguf",
        "https://host/a b?X-Signature=secret",
        "https://user:secret@host/a b",
        "http://example.org/x?token=secret",
        "https://host?token=secret",
        "https://host/x?a=secret#b",
        "s3://secret:secret@bucket/x",
        "hf://a/b?token=secret",
        "hf://hf_secretsecret@a/b/c d",
        "hf://hf_secretsecret@a//b",
        "ftp://user:secret@host/x",
    ],
)
def test_no_message_repeats_a_credential(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse(text)
    assert "secret" not in str(error.value)


def test_labels_hold_no_query() -> None:
    assert parse("https://host/x.gguf?sig=secret").label == "https://host/x.gguf"


def test_http_is_allowed_by_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DQRELO_ALLOW_HTTP", "1")
    assert parse("http://example.org/x") == UrlAddress("http", "example.org", "x")


def test_an_address_that_became_a_path_says_so() -> None:
    with pytest.raises(InputError, match="made a Path"):
        parse(Path("hf://a/b"))


def test_what_is_an_address() -> None:
    assert is_address("hf://a/b")
    assert not is_address("a/b")
    assert not is_address(Path("hf://a/b"))


@pytest.mark.parametrize("path", ["", "/a", "a/", "../a", "a/../b", "a//b", "a\\b", "a\0b", "./a", "C:a", "a/b:c"])
def test_paths_that_lead_out_of_a_folder(path: str) -> None:
    assert not is_inside(path)
    assert is_inside("a/b.c")

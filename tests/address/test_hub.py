"""Files of the Hub, from a stand-in for it: what is meant, at which commit, kept where huggingface_hub keeps it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.errors import DqreloError, InputError
from tests.support.addresses import RANGE_BYTES
from tests.support.hub_server import TOKEN, HubServer, git_sha1
from tests.support.web_server import Handler, Rule, Served, redirect, status

DATA = np.random.default_rng(2).bytes(5 * RANGE_BYTES + 3)
CHECKPOINT = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "README.md": b"---\nlicense: mit\n---\n",
    "picture.png": b"png",
    "pytorch_model.bin": b"pickle",
    "other/config.json": b"{}",
    "other/model.safetensors": b"other",
}


def test_a_file_is_fetched_once_and_lies_where_huggingface_hub_looks(
    hub: HubServer, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import try_to_load_from_cache

    commit = hub.put("a/b", {"x.gguf": DATA, "README.md": b"read me"})
    path = local("hf://a/b/x.gguf", Kind.MODEL)
    assert path.read_bytes() == DATA
    assert path == cache / "hub" / "models--a--b" / "snapshots" / commit / "x.gguf"
    assert path.resolve().name == hashlib.sha256(DATA).hexdigest()
    assert try_to_load_from_cache("a/b", "x.gguf", cache_dir=cache / "hub") == str(path)
    assert f"hf://a/b/x.gguf@{commit}: {path}" in capfd.readouterr().err
    assert hub.count("/cdn/") == 6
    assert local("hf://a/b/x.gguf", Kind.MODEL) == path
    assert hub.count("/cdn/") == 6


def test_what_huggingface_hub_has_fetched_is_not_fetched_again(hub: HubServer, cache: Path) -> None:
    hub.put("a/b", {"x.gguf": DATA})
    code = "import huggingface_hub; print(huggingface_hub.hf_hub_download('a/b', 'x.gguf'))"
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache / "hub"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    hub.requests.clear()
    assert local("hf://a/b/x.gguf", Kind.MODEL) == Path(done.stdout.strip())
    assert [r.path.partition("?")[0] for r in hub.requests] == ["/api/models/a/b/revision/main"]


def test_revisions(hub: HubServer) -> None:
    first = hub.put("a/b", {"x.gguf": b"first"}, "v1")
    hub.put("a/b", {"x.gguf": b"second"})
    hub.put("a/b", {"x.gguf": b"third"}, "refs/pr/1")
    for revision, data in (("v1", b"first"), (first, b"first"), ("main", b"second"), ("refs/pr/1", b"third")):
        assert local(f"hf://a/b/x.gguf@{revision}", Kind.MODEL).read_bytes() == data
    assert local("hf://a/b/x.gguf", Kind.MODEL).read_bytes() == b"second"


def test_a_branch_that_moves_is_followed(hub: HubServer) -> None:
    hub.put("a/b", {"x.gguf": b"first"})
    old = local("hf://a/b", Kind.MODEL)
    hub.put("a/b", {"x.gguf": b"second"})
    assert local("hf://a/b", Kind.MODEL).read_bytes() == b"second"
    assert old.read_bytes() == b"first"


@pytest.mark.parametrize(
    ("address", "kind", "names"),
    [
        ("hf://a/b", Kind.DELTA, ["x.dq.gguf"]),
        ("hf://a/b/x.dq.gguf", Kind.FILE, ["x.dq.gguf"]),
        ("hf://a/b/q4", Kind.MODEL, ["q4/m-00001-of-00002.gguf", "q4/m-00002-of-00002.gguf"]),
        ("hf://a/b/q4/m-00002-of-00002.gguf", Kind.MODEL, ["q4/m-00002-of-00002.gguf", "q4/m-00001-of-00002.gguf"]),
        ("hf://a/b/mmproj-x.gguf", Kind.FILE, ["mmproj-x.gguf"]),
        ("hf://a/b/q4", Kind.TUNED, ["q4/m-00001-of-00002.gguf", "q4/m-00002-of-00002.gguf"]),
    ],
)
def test_what_is_meant(hub: HubServer, address: str, kind: Kind, names: list[str]) -> None:
    files = ("x.dq.gguf", "mmproj-x.gguf", "q4/m-00001-of-00002.gguf", "q4/m-00002-of-00002.gguf", "README.md")
    commit = hub.put("a/b", {name: name.encode() for name in files})
    path = local(address, kind)
    root = path.parents[names[0].count("/")]
    assert root.name == commit
    assert path == root / names[0]
    assert {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()} == set(names)
    assert all((root / name).read_bytes() == name.encode() for name in names)


@pytest.mark.parametrize(
    ("files", "address", "kind", "problem"),
    [
        (["q4.gguf", "q8.gguf"], "hf://a/b", Kind.MODEL, "has 2 files that may be meant, name one: q4.gguf, q8.gguf"),
        (["q4.gguf", "q8.gguf"], "hf://a/b", Kind.TUNED, "has 2 files that may be meant, name one: q4.gguf, q8.gguf"),
        (["q4.gguf", "x.dq.gguf", "mmproj.gguf"], "hf://a/b", Kind.DELTA, None),
        (["q4.gguf", "x.dq.gguf", "mmproj.gguf"], "hf://a/b", Kind.MODEL, None),
        (["a.dq.gguf", "b.dq.gguf"], "hf://a/b", Kind.DELTA, "name one: a.dq.gguf, b.dq.gguf"),
        (["a.dq.gguf"], "hf://a/b", Kind.MODEL, "has no GGUF model. It has a.dq.gguf"),
        (["q4.gguf"], "hf://a/b", Kind.DELTA, "has no delta. It has q4.gguf"),
        (["README.md"], "hf://a/b", Kind.TUNED, "has no fine-tune. It has README.md"),
        ([], "hf://a/b", Kind.MODEL, "the repository has no file . It has no files"),
        (["q4.gguf"], "hf://a/b/q5.gguf", Kind.MODEL, "has no file q5.gguf. It has q4.gguf"),
        (
            ["m-00001-of-00002.gguf"],
            "hf://a/b",
            Kind.MODEL,
            "no file m-00002-of-00002.gguf, a part of m-00001-of-00002.gguf",
        ),
        (["m-00001-of-99999.gguf"], "hf://a/b", Kind.MODEL, "expected at most 1000"),
        ([f"{i:03}.gguf" for i in range(99)], "hf://a/b", Kind.MODEL, "has 99 files .* 019.gguf and 79 more"),
    ],
)
def test_a_choice_that_is_not_clear_lists_what_there_is(
    hub: HubServer, files: list[str], address: str, kind: Kind, problem: str | None
) -> None:
    hub.put("a/b", {name: name.encode() for name in files})
    if problem is None:
        assert local(address, kind).is_file()
        return
    with pytest.raises(InputError, match=problem) as error:
        local(address, kind)
    assert "\n" not in str(error.value)
    assert hub.count("/resolve/") == 0


def test_a_checkpoint_becomes_a_directory_of_what_is_read(hub: HubServer, capfd: pytest.CaptureFixture[str]) -> None:
    commit = hub.put("owner/my-tune", CHECKPOINT)
    path = local("hf://owner/my-tune", Kind.TUNED)
    assert (path.name, path.resolve()) == ("my-tune", path)
    not_read = {"picture.png", "pytorch_model.bin"}
    expected = {name: data for name, data in CHECKPOINT.items() if "/" not in name and name not in not_read}
    assert {p.name: p.read_bytes() for p in path.iterdir()} == expected
    assert f"hf://owner/my-tune@{commit}: {path}" in capfd.readouterr().err
    hub.requests.clear()
    assert local(f"hf://owner/my-tune@{commit}", Kind.TUNED) == path
    assert hub.count("/resolve/") == 0
    inner = local("hf://owner/my-tune/other", Kind.TUNED)
    assert (inner.name, {p.name for p in inner.iterdir()}) == ("other", {"config.json", "model.safetensors"})
    assert {p.name for p in path.iterdir()} == set(expected)


def test_a_checkpoint_with_pickles_alone_and_an_adapter(hub: HubServer) -> None:
    hub.put("a/old", {"config.json": b"{}", "pytorch_model.bin": b"p", "training.log": b"l"})
    hub.put("a/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"s"})
    assert {p.name for p in local("hf://a/old", Kind.TUNED).iterdir()} == {"config.json", "pytorch_model.bin"}
    assert {p.name for p in local("hf://a/lora", Kind.TUNED).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_links_of_a_directory_that_lead_nowhere_are_made_anew(hub: HubServer, cache: Path) -> None:
    hub.put("owner/my-tune", CHECKPOINT)
    path = local("hf://owner/my-tune", Kind.TUNED)
    for blob in (cache / "hub" / "models--owner--my-tune").rglob("*"):
        if blob.is_file() or blob.is_symlink():
            blob.unlink()
    assert local("hf://owner/my-tune", Kind.TUNED) == path
    assert (path / "config.json").read_bytes() == b"{}"


def test_a_token_goes_to_the_hub_and_nowhere_else(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.put("a/b", {"x.gguf": DATA})
    hub.repositories["a/b"].is_private = True
    with pytest.raises(InputError, match="no such repository, or it is private: log in with"):
        local("hf://a/b", Kind.MODEL)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.rules.append(Rule("/cdn/", hub.answer))
    assert local("hf://a/b", Kind.MODEL).read_bytes() == DATA
    captured = capfd.readouterr()
    assert TOKEN not in captured.out + captured.err
    assert "secret" not in captured.out + captured.err


def test_a_token_is_not_sent_to_another_host(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 and localhost are two hosts, as the Hub and where it stores files."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.put("a/b", {"x.gguf": DATA})
    target = f"{hub.url.replace('127.0.0.1', 'localhost')}/cdn/{hashlib.sha256(DATA).hexdigest()}?sig=secret"
    hub.rules.append(Rule("/resolve/", redirect(target)))
    assert local("hf://a/b", Kind.MODEL).read_bytes() == DATA
    sent = {request.path.split("/")[1]: request.headers.get("authorization") for request in hub.requests}
    assert sent == {"api": f"Bearer {TOKEN}", "a": f"Bearer {TOKEN}", "cdn": None}


def test_a_token_goes_before_netrc(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.put("a/b", {"x.gguf": DATA})
    hub.repositories["a/b"].is_private = True
    assert local("hf://a/b", Kind.MODEL).read_bytes() == DATA


@pytest.mark.parametrize(
    ("code", "error_code", "problem"),
    [
        (401, "RepoNotFound", "no such repository, or it is private"),
        (404, "RepoNotFound", "no such repository, or it is private"),
        (401, "", "no such repository, or it is private"),
        (403, "GatedRepo", "has to be asked for on its page"),
        (404, "RevisionNotFound", "has no such revision"),
        (404, "", r"is not there \(404\)"),
        (429, "", "too many requests"),
        (500, "", "answers 500"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, code: int, error_code: str, problem: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    headers = {"X_Error_Code": error_code} if error_code else {}
    hub.rules.append(Rule("/api/", status(code, **headers)))
    with pytest.raises(InputError, match=problem) as error:
        local("hf://a/b/x.gguf@v9", Kind.MODEL)
    assert "hf://a/b/x.gguf@v9" in str(error.value)
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)


def test_gates_and_missing_things(hub: HubServer) -> None:
    hub.put("a/b", {"x.gguf": DATA})
    with pytest.raises(InputError, match=r"hf://a/b/x\.gguf@v9: has no such revision"):
        local("hf://a/b/x.gguf@v9", Kind.MODEL)
    with pytest.raises(InputError, match="hf://a/nothing: there is no such repository"):
        local("hf://a/nothing", Kind.MODEL)
    hub.repositories["a/b"].is_gated = True
    with pytest.raises(InputError, match="has to be asked for on its page"):
        local("hf://a/b", Kind.MODEL)


def test_a_busy_hub_is_asked_again(hub: HubServer) -> None:
    hub.put("a/b", {"x.gguf": DATA})
    hub.rules += [
        Rule("/api/", status(429), times=2),
        Rule("/resolve/", status(503), times=2),
        Rule("/cdn/", status(500), times=2),
    ]
    assert local("hf://a/b", Kind.MODEL).read_bytes() == DATA


def complete_files(cache: Path) -> list[Path]:
    """Blobs and what links to them."""
    return [p for p in (cache / "hub").rglob("*") if p.is_file() and ("snapshots" in p.parts or not p.suffix)]


@pytest.mark.parametrize("name", ["x.gguf", "README.md"])
def test_bytes_with_another_digest_are_thrown_away(hub: HubServer, cache: Path, name: str) -> None:
    data = DATA[:500]
    hub.put("a/b", {name: data})
    wrong = Served.of(data[::-1])
    hub.rules.append(Rule("/cdn/" if name == "x.gguf" else "/resolve/", lambda handler: handler.send_file(wrong)))
    with pytest.raises(InputError, match=r"its bytes have the .* thrown away; run again"):
        local(f"hf://a/b/{name}", Kind.FILE)
    assert [p for p in complete_files(cache) if "refs" not in p.parts] == []
    hub.rules.clear()
    assert local(f"hf://a/b/{name}", Kind.FILE).read_bytes() == data


def test_an_interrupted_download_goes_on_for_the_same_digest(
    hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dqrelo_gguf.address.reading.N_CONNECTIONS", 1)
    hub.put("a/b", {"x.gguf": DATA})
    hub.rules.append(Rule("/cdn/", status(403), skip=3))
    with pytest.raises(InputError, match="may not be read"):
        local("hf://a/b", Kind.MODEL)
    assert not list((cache / "hub").rglob("snapshots/*/*"))
    hub.rules.clear()
    hub.requests.clear()
    assert local("hf://a/b", Kind.MODEL).read_bytes() == DATA
    assert hub.count("/cdn/") == 3


def test_offline_with_and_without_the_file(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.put("a/b", {"x.gguf": DATA, "y.gguf": b"y"})
    hub.put("owner/my-tune", CHECKPOINT)
    monkeypatch.setenv("DQRELO_OFFLINE", "1")
    with pytest.raises(InputError, match=r"hf://a/b/x\.gguf: is not in the cache, and there is no network"):
        local("hf://a/b/x.gguf", Kind.MODEL)
    assert hub.requests == []
    monkeypatch.delenv("DQRELO_OFFLINE")
    path, directory = local("hf://a/b/x.gguf", Kind.MODEL), local("hf://owner/my-tune", Kind.TUNED)
    hub.requests.clear()
    for name in ("DQRELO_OFFLINE", "HF_HUB_OFFLINE"):
        with monkeypatch.context() as context:
            context.setenv(name, "1")
            assert local("hf://a/b/x.gguf", Kind.MODEL) == path
            assert local(f"hf://a/b/x.gguf@{commit}", Kind.MODEL) == path
            assert local("hf://owner/my-tune", Kind.TUNED) == directory
            for missing in ("hf://a/b/y.gguf", "hf://a/b/x.gguf@v1", f"hf://a/b/x.gguf@{'0' * 40}"):
                with pytest.raises(InputError):
                    local(missing, Kind.MODEL)
    assert hub.requests == []


def lying(**changes: object) -> dict[str, object]:
    good = {"rfilename": "x.gguf", "size": 4, "blobId": git_sha1(b"data")}
    return {**good, **changes}


@pytest.mark.parametrize(
    ("sibling", "problem"),
    [
        (lying(rfilename="../../../.ssh/authorized_keys"), "does not lie inside of the repository"),
        (lying(rfilename="/etc/passwd"), "does not lie inside of the repository"),
        (lying(rfilename="a\\..\\b.gguf"), "does not lie inside of the repository"),
        (lying(rfilename="a//b.gguf"), "does not lie inside of the repository"),
        (lying(rfilename=""), "does not lie inside of the repository"),
        (lying(rfilename=5), "does not lie inside of the repository"),
        (lying(rfilename="x\n.gguf"), "does not lie inside of the repository"),
        ("text", "does not lie inside of the repository"),
        (lying(size=-1), "does not say how large"),
        (lying(size=True), "does not say how large"),
        (lying(size=None), "does not say how large"),
        (lying(size="4"), "does not say how large"),
        (lying(size=10**400), "does not say how large"),
        (lying(blobId="../../x"), "gives no digest"),
        (lying(blobId=None), "gives no digest"),
        (lying(lfs={"sha256": "../../x", "size": 4}), "gives no digest"),
        (lying(lfs={"size": 4}), None),
        (lying(size=1 << 50), "expected at most 512.00 GiB"),
    ],
)
def test_nothing_in_the_list_of_files_is_believed(
    hub: HubServer, cache: Path, sibling: object, problem: str | None
) -> None:
    answer = json.dumps({"sha": hub.put("a/b", {"x.gguf": b"data"}), "siblings": [sibling]}).encode()
    hub.rules.append(Rule("/api/", lambda handler: handler.plain(200, answer)))
    if problem is None:
        assert local("hf://a/b", Kind.MODEL).read_bytes() == b"data"
        return
    with pytest.raises(DqreloError, match=problem):
        local("hf://a/b", Kind.MODEL)
    assert hub.count("/resolve/") == 0
    assert not list((cache / "hub").rglob("snapshots/*/*"))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"<html>", "is no JSON object. Is HF_ENDPOINT right"),
        (b"[]", "is no JSON object"),
        (b"\xff", "is no JSON object"),
        (b"[" * 100000, "is no JSON object"),
        (b"{}", "names no commit"),
        (b'{"sha": "../../x"}', "names no commit"),
        (b'{"sha": 5}', "names no commit"),
        (b'{"sha": "' + b"a" * 40 + b'", "siblings": 5}', "has no files"),
    ],
)
def test_answers_of_the_hub_that_are_none(hub: HubServer, answer: bytes, problem: str) -> None:
    hub.rules.append(Rule("/api/", lambda handler: handler.plain(200, answer)))
    with pytest.raises(InputError, match=problem):
        local("hf://a/b", Kind.MODEL)


def test_a_list_without_an_end_is_refused(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dqrelo_gguf.address.hub._MAX_LISTING_BYTES", 1000)
    hub.rules.append(Rule("/api/", lambda handler: handler.plain(200, b"x" * 2000)))
    with pytest.raises(InputError, match="over 1000 bytes"):
        local("hf://a/b", Kind.MODEL)


def test_a_file_that_is_larger_than_the_list_says(hub: HubServer, cache: Path) -> None:
    hub.put("a/b", {"x.gguf": DATA})

    def long(handler: Handler) -> None:
        first, end = handler.span(len(DATA)) or (0, 0)
        handler.plain(206, DATA, Content_Range=f"bytes {first}-{end - 1}/{len(DATA)}")

    hub.rules.append(Rule("/cdn/", long))
    with pytest.raises(InputError, match="more bytes than it was asked for"):
        local("hf://a/b", Kind.MODEL)
    assert not list((cache / "hub").rglob("snapshots/*/*"))


def test_without_huggingface_hub_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'dqrelo-gguf\[remote\]'"):
        local("hf://a/b", Kind.MODEL)


def test_paths_never_import_what_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert local(tmp_path / "x.gguf", Kind.MODEL) == tmp_path / "x.gguf"
    assert local(f"file://{tmp_path}/x.gguf", Kind.MODEL) == tmp_path / "x.gguf"

"""Fine-tunes whose weights are read where they lie: the delta of a downloaded one, byte for byte, and one line for what cannot be."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.address import folders, reading, settings, stream
from dqrelo_gguf.address.remote import Reader, Span
from dqrelo_gguf.address.stream import RemoteDirectory, streamed
from dqrelo_gguf.cli import convert as command
from dqrelo_gguf.convert.job import Job, convert
from dqrelo_gguf.convert.plan import Options
from dqrelo_gguf.errors import DqreloError, InputError
from dqrelo_gguf.file.reader import DeltaReader
from tests.support.hub_server import SIGNATURE, HubServer
from tests.support.interruptions import KilledError, interrupt_after
from tests.support.models import pico_gguf, pico_tuned, pico_tuned_gguf
from tests.support.sharded import contents, disk_bytes, write_sharded
from tests.support.web_server import Rule, Served, WebServer, cut, redirect, serving, status

NAME = "my-tune"
FOLDER = f"/models/{NAME}"
SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture(autouse=True)
def ranges(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges that are smaller than the embedding and larger than most weights."""
    del cache  # It sets smaller ones first.
    monkeypatch.setattr(reading, "RANGE_BYTES", 30_000)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tune of three shards."""
    return write_sharded(pico_tuned("llama"), tmp_path_factory.mktemp("tuned") / NAME)


@pytest.fixture(scope="module")
def whole(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The delta of the downloaded folder."""
    return converted(tuned, tmp_path_factory.mktemp("whole") / "x.dq.gguf")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files lie."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def used(cache: Path, temporary: Path) -> Callable[[], int]:
    """Bytes of the disk that the cache and temporary files take."""
    return lambda: disk_bytes(cache, temporary)


@pytest.fixture
def served(web: WebServer, tuned: Path) -> WebServer:
    serve(web, contents(tuned))
    return web


def serve(web: WebServer, files: dict[str, bytes], **options: Any) -> str:
    """Puts files into the folder of a web server; returns its address."""
    web.files |= {f"{FOLDER}/{name}": Served.of(data, **options) for name, data in files.items()}
    return web.url + FOLDER


def converted(source: str | Path, out: Path, kind: str = "llama", options: Options | None = None) -> bytes:
    convert(Job(pico_gguf(kind), source, out, n_threads=2, stream=True), options)
    return out.read_bytes()


def at_each_read(monkeypatch: pytest.MonkeyPatch, action: Callable[[int, Span], None]) -> list[Span]:
    """Has something happen before each read; returns what is read."""
    read, spans = Reader.read, []

    def acting(self: Reader, span: Span) -> Any:
        spans.append(span)
        action(len(spans), span)
        return read(self, span)

    monkeypatch.setattr(Reader, "read", acting)
    return spans


# --- the same bytes ---


def test_a_repository_of_the_hub(
    hub: HubServer, tuned: Path, whole: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    commit = hub.put(f"o/{NAME}", contents(tuned))
    assert converted(f"hf://o/{NAME}", tmp_path / "x.dq.gguf") == whole
    assert f"hf://o/{NAME}@{commit}: 3 files of weights" in capfd.readouterr().err
    assert {r.headers.get("range") for r in hub.requests if ".safetensors" in r.path} >= {"bytes=0-0", "bytes=0-7"}


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_of_a_web_server(served: WebServer, whole: bytes, tmp_path: Path, slash: str) -> None:
    assert converted(served.url + FOLDER + slash, tmp_path / "x.dq.gguf") == whole


def test_a_folder_of_a_bucket(tuned: Path, whole: bytes, tmp_path: Path, bucket: Any) -> None:
    others = {"optimizer.pt": b"states", "picture.png": b"png", "deeper/config.json": b"{}"}
    for name, data in (contents(tuned) | others).items():
        bucket.put_object(Bucket="models", Key=f"a/{NAME}/{name}", Body=data)
    assert converted(f"s3://models/a/{NAME}", tmp_path / "x.dq.gguf") == whole
    with pytest.raises(InputError, match="s3://models/nothing: is no folder in which something lies"):
        streamed("s3://models/nothing")
    bucket.put_object(Bucket="models", Key="b/config.json", Body=b"{}")
    bucket.put_object(Bucket="models", Key="b/pytorch_model.bin", Body=b"pickle")
    with pytest.raises(InputError, match=r"s3://models/b: --stream reads safetensors .* Leave out --stream"):
        streamed("s3://models/b")


def test_one_file_of_weights_and_experts(web: WebServer, tmp_path: Path) -> None:
    """Experts are read ahead of each other."""
    source = pico_tuned("mixtral")
    web.files |= {f"/{source.name}/{name}": Served.of(data) for name, data in contents(source).items()}
    plain = converted(source, tmp_path / "plain.dq.gguf", "mixtral")
    assert converted(f"{web.url}/{source.name}", tmp_path / "x.dq.gguf", "mixtral") == plain


def test_the_papers_method_and_a_selection(served: WebServer, tuned: Path, tmp_path: Path) -> None:
    options = Options(method="paper")
    plain = converted(tuned, tmp_path / "plain.dq.gguf", options=options)
    assert converted(served.url + FOLDER, tmp_path / "x.dq.gguf", options=options) == plain


def test_a_path_and_file_are_read_where_they_lie(tuned: Path, whole: bytes, tmp_path: Path, temporary: Path) -> None:
    assert streamed(tuned) == streamed(f"file://{tuned}") == streamed(str(tuned)) == tuned
    assert converted(f"file://{tuned}", tmp_path / "x.dq.gguf") == whole
    assert not list(temporary.glob("dqrelo-stream-*"))


def test_the_command(served: WebServer, whole: bytes, tmp_path: Path) -> None:
    out = tmp_path / "x.dq.gguf"
    args = [str(pico_gguf("llama")), served.url + FOLDER, "-o", str(out), "--stream"]
    assert command.main(args) == 0
    assert out.read_bytes() == whole
    assert DeltaReader(out).name == "My Tune"


def test_a_server_that_ends_early_and_is_busy(served: WebServer, tuned: Path, whole: bytes, tmp_path: Path) -> None:
    ours = Served.of((tuned / SHARD).read_bytes())
    served.rules += [Rule(SHARD, cut(ours, 300), times=2, skip=5), Rule(SHARD, status(503), times=2, skip=9)]
    assert converted(served.url + FOLDER, tmp_path / "x.dq.gguf") == whole


# --- what it takes ---


def test_the_disk_holds_the_delta_and_headers_alone(
    served: WebServer, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: Callable[[], int]
) -> None:
    weights = sum(p.stat().st_size for p in tuned.glob("*.safetensors"))
    small = sum(p.stat().st_size for p in tuned.iterdir() if p.suffix != ".safetensors")
    found: list[int] = []
    spans = at_each_read(monkeypatch, lambda _n, _span: found.append(used()))
    converted(served.url + FOLDER, tmp_path / "x.dq.gguf")
    headers = sum(s.n_bytes for s in spans if s.start <= 8)
    assert max(found) <= small + headers + 2000  # the notes of the cache
    assert max(found) - small < weights / 10
    gc.collect()
    assert used() <= small + 2000
    # Checked, measured and encoded: each tensor is read alone, and three times at most.
    assert max(s.n_bytes for s in spans) == 2 * 640 * 64
    assert sum(s.n_bytes for s in spans if s.start > 8) <= 3 * weights


def test_a_fine_tune_of_which_nothing_is_wanted_costs_headers(served: WebServer) -> None:
    directory = streamed(served.url + FOLDER)
    assert isinstance(directory, RemoteDirectory)
    asked = [r.headers["range"] for r in served.requests if r.path.endswith(".safetensors") and "range" in r.headers]
    ends = [int(text.rpartition("-")[2]) for text in asked]
    n_header = int.from_bytes(next(directory.path.glob("*.safetensors")).read_bytes()[:8], "little")
    assert max(ends) < 2 * (8 + n_header)


# --- interruptions ---


def begun(monkeypatch: pytest.MonkeyPatch, source: str, out: Path) -> None:
    """A conversion that ends after some weights."""
    with monkeypatch.context() as context:
        interrupt_after(context, 9)
        with pytest.raises(KilledError):
            resumed(source, out)


def resumed(source: str, out: Path) -> None:
    convert(Job(pico_gguf("llama"), source, out, n_threads=1, stream=True, resume=True))


def test_an_interrupted_one_goes_on(
    served: WebServer, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    out = tmp_path / "x.dq.gguf"
    begun(monkeypatch, served.url + FOLDER, out)
    assert out.with_name("x.dq.gguf.partial").exists()
    cache.rename(tmp_path / "gone")  # Neither times nor places of files here matter.
    resumed(served.url + FOLDER, out)
    assert out.read_bytes() == whole


def test_another_version_is_not_gone_on_with(
    served: WebServer, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.dq.gguf"
    begun(monkeypatch, served.url + FOLDER, out)
    serve(served, {SHARD: changed((tuned / SHARD).read_bytes())})
    with pytest.raises(InputError, match=r"was begun with another fine-tune \("):
        resumed(served.url + FOLDER, out)


def changed(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("n", [1, 4, 12, 30, 50])
def test_a_shard_that_changes_is_refused_by_name(
    served: WebServer, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    def change(number: int, _span: Span) -> None:
        if number == n:
            serve(served, {name: changed(data) for name, data in contents(tuned).items() if "safetensors" in name})

    at_each_read(monkeypatch, change)
    with pytest.raises(InputError, match=rf"{FOLDER}/model-0000\d.*: is another file than when the conversion") as e:
        converted(served.url + FOLDER, tmp_path / "x.dq.gguf")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("x*"))


def test_a_shard_that_becomes_shorter_is_refused(
    served: WebServer, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(number: int, _span: Span) -> None:
        if number == 12:
            served.files |= {f"{FOLDER}/{p.name}": Served(b"short", '"e"') for p in tuned.glob("*.safetensors")}

    at_each_read(monkeypatch, change)
    with pytest.raises(InputError, match="is another file than when the conversion began"):
        converted(served.url + FOLDER, tmp_path / "x.dq.gguf")


def test_a_branch_that_moves_is_read_at_its_commit(
    hub: HubServer, tuned: Path, whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put(f"o/{NAME}", contents(tuned))
    at_each_read(
        monkeypatch, lambda n, _span: hub.put(f"o/{NAME}", {"config.json": b"{}"}) and None if n == 9 else None
    )
    assert converted(f"hf://o/{NAME}", tmp_path / "x.dq.gguf") == whole


# --- what is refused ---


def refusal(address: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    """The command's one line."""
    capfd.readouterr()
    out = tmp_path / "x.dq.gguf"
    assert command.main([str(pico_gguf("llama")), address, "-o", str(out), "--stream"]) == 1
    err = capfd.readouterr().err
    line = err.splitlines()[-1]
    assert line.startswith("dqrelo-convert: error: ")
    assert "Traceback" not in err
    assert not list(tmp_path.glob("x*"))
    assert "dqrelo-stream-" not in err
    for secret in (SIGNATURE, "very-secret", "verysecret"):
        assert secret not in err
    return line


@pytest.mark.parametrize("options", [{"has_ranges": False}, {"etag": None}, {"etag": 'W/"weak"'}])
def test_a_server_without_ranges_or_versions(
    web: WebServer, tuned: Path, options: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    address = serve(web, contents(tuned))
    data = web.files[f"{FOLDER}/{SHARD}"].data
    web.files[f"{FOLDER}/{SHARD}"] = Served(data, **{"etag": '"e"', **options})
    line = refusal(address, capfd, tmp_path)
    assert f"{FOLDER}/{SHARD}: its server gives no ranges of a file, or no version (ETag)" in line
    assert "Leave out --stream: the file is then downloaded" in line


def test_other_forms_than_safetensors(
    hub: HubServer, web: WebServer, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hub.put("o/gguf", {"x.gguf": pico_tuned_gguf("llama").read_bytes()})
    hub.put("o/bin", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    hub.put("o/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x", "README.md": b""})
    for address, part in (
        ("hf://o/gguf", "hf://o/gguf: --stream reads safetensors by ranges, and here is x.gguf. Leave out --stream"),
        ("hf://o/bin", "--stream reads safetensors by ranges"),
        ("hf://o/lora", "hf://o/lora: is an adapter, which is small. Leave out --stream"),
        ("hf://o/nothing", "there is no such repository"),
        (f"{web.url}/x.gguf", "is a file, and --stream reads the folder of a model"),
        (f"{web.url}/nothing", "/nothing: has no model.safetensors and no model.safetensors.index.json"),
    ):
        assert part in refusal(address, capfd, tmp_path)


@pytest.mark.parametrize("variable", [settings.OFFLINE, settings.HUB_OFFLINE])
def test_without_network_it_is_refused(
    served: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    for address in (served.url + FOLDER, f"hf://o/{NAME}"):
        line = refusal(address, capfd, tmp_path)
        assert (
            f"{address}: --stream reads over the network, and there is none by DQRELO_OFFLINE or HF_HUB_OFFLINE" in line
        )
    assert served.requests == []


@pytest.mark.parametrize("code", [401, 403])
def test_what_may_not_be_read(served: WebServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], code: int) -> None:
    served.rules.append(Rule(SHARD, status(code)))
    assert f"{SHARD}: " in refusal(served.url + FOLDER, capfd, tmp_path)


def test_a_private_repository_and_a_redirect_tell_no_secret(
    hub: HubServer, tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.put(f"o/{NAME}", contents(tuned))
    hub.repositories[f"o/{NAME}"].is_private = True
    assert "there is no such repository, or it is private" in refusal(f"hf://o/{NAME}", capfd, tmp_path)
    hub.repositories[f"o/{NAME}"].is_private = False
    hub.rules.append(Rule("/cdn/", redirect(f"ftp://elsewhere/x?{SIGNATURE}"), skip=8))
    assert "is redirected from http to the scheme 'ftp'" in refusal(f"hf://o/{NAME}", capfd, tmp_path)
    hub.rules[:] = [Rule("/cdn/", status(404), skip=8)]
    assert f"hf://o/{NAME}/model-0000" in refusal(f"hf://o/{NAME}", capfd, tmp_path)


def test_a_missing_shard_is_named(served: WebServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    del served.files[f"{FOLDER}/{SHARD}"]
    assert f"{served.url}{FOLDER}/{SHARD}: is not there (404)" in refusal(served.url + FOLDER, capfd, tmp_path)


def test_a_listed_size_that_is_not_the_servers(hub: HubServer, tuned: Path) -> None:
    files = contents(tuned)
    hub.put(f"o/{NAME}", files)
    sibling = hub.sibling
    hub.sibling = lambda name, data: sibling(name, data + b"more" if name == SHARD else data)  # type: ignore[method-assign]
    with pytest.raises(InputError, match=rf"{SHARD}@.*: has \d+ bytes, and is listed with \d+"):
        streamed(f"hf://o/{NAME}")


# --- hostile files ---


def shard_of(header: Any, n_data: int = 0, n_header: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if n_header is None else n_header).to_bytes(8, "little") + text + bytes(n_data)


def entry(shape: list[int], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Truncated|no ranges"),
        (b"1234", "its header alone needs"),
        (shard_of(b"", n_header=1 << 62), "its header alone needs"),
        (shard_of(b"{}", n_header=100), "its header alone needs"),
        (shard_of(b"not json"), "its header cannot be read"),
        (shard_of([1]), "its header cannot be read"),
        (shard_of({"a.weight": entry([4], 16)}), "Truncated download"),
        (shard_of({"a.weight": entry([4], 16)}, 20), "It is damaged"),
        (shard_of({"a.weight": entry([1 << 61], 16)}, 16), "its shape"),
        (shard_of({"a.weight": entry([4], 16, "I3")}, 16), "has type I3"),
        (shard_of({"a.weight": {"dtype": "F32"}}), "lacks one of"),
    ],
    ids=[
        "empty",
        "no length",
        "huge length",
        "length beyond the end",
        "no JSON",
        "no object",
        "file too short",
        "file too long",
        "huge shape",
        "unknown type",
        "no shape",
    ],
)
def test_headers_are_checked_as_those_of_files_here(
    served: WebServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], data: bytes, message: str
) -> None:
    served.files[f"{FOLDER}/{SHARD}"] = Served.of(data)
    line = refusal(served.url + FOLDER, capfd, tmp_path)
    assert f"{served.url}{FOLDER}/{SHARD}" in line
    assert any(part in line for part in message.split("|"))


def test_a_header_that_is_too_large_is_not_read(served: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_HEADER_BYTES", 100)
    directory = streamed(served.url + FOLDER)
    assert isinstance(directory, RemoteDirectory)
    assert {p.stat().st_size for p in directory.path.glob("*.safetensors")} == {8}
    monkeypatch.setattr(stream, "MAX_HEADER_BYTES", 1 << 20)
    monkeypatch.setattr(stream, "MAX_HEADERS_BYTES", 1000)
    with pytest.raises(InputError, match=r"model-0000.*: the headers up to it have \d+ bytes, expected at most 1000"):
        streamed(served.url + FOLDER)


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/passwd", "a/b.safetensors", "x\\y.safetensors", "", 7])
def test_an_index_that_names_files_elsewhere(
    served: WebServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: Any
) -> None:
    index = json.dumps({"weight_map": {"a.weight": name, "b.weight": SHARD}}).encode()
    serve(served, {folders.INDEX: index})
    line = refusal(served.url + FOLDER, capfd, tmp_path)
    assert served.url + FOLDER in line
    assert not [r for r in served.requests if "passwd" in r.path or ".." in r.path]


@pytest.mark.parametrize("name", ["config.json", "README.md", "weights.bin"])
def test_an_index_that_names_what_is_no_shard(
    served: WebServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], cache: Path, name: str
) -> None:
    """Such a file is fetched into the cache; what stands for a shard is no link to it that would be written through."""
    before = b'{"in": "the cache"}' + bytes(100)
    index = json.dumps({"weight_map": {"a.weight": name, "b.weight": SHARD}}).encode()
    serve(served, {folders.INDEX: index, name: before})
    assert name in refusal(served.url + FOLDER, capfd, tmp_path)
    assert {path.read_bytes() for path in cache.rglob(name) if not path.is_symlink()} <= {before}


@pytest.mark.parametrize(
    "index",
    [b"", b"[]", b"{", b'{"weight_map": []}', b'{"weight_map": {"a": {}}}', b"[" * 100_000],
    ids=["empty", "list", "cut", "map is a list", "file is an object", "deep"],
)
def test_an_index_that_is_none(
    served: WebServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], index: bytes
) -> None:
    serve(served, {folders.INDEX: index})
    assert served.url + FOLDER in refusal(served.url + FOLDER, capfd, tmp_path)


def test_an_index_of_too_many_files(served: WebServer) -> None:
    index = {"weight_map": {f"{i}.weight": f"model-{i}.safetensors" for i in range(1001)}}
    serve(served, {folders.INDEX: json.dumps(index).encode()})
    with pytest.raises(InputError, match="its index names 1001 files, expected at most 1000"):
        streamed(served.url + FOLDER)


def test_two_sets_of_weights(served: WebServer, tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    serve(served, {"model.safetensors": (tuned / SHARD).read_bytes()})
    assert f"{served.url}{FOLDER}: has two sets of weights" in refusal(served.url + FOLDER, capfd, tmp_path)


def test_values_are_checked_as_ever(served: WebServer, tuned: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save

    weights = load_file(tuned / SHARD)
    weights[min(weights)].view(-1)[0] = np.nan
    serve(served, {SHARD: save(weights)})
    with pytest.raises(DqreloError, match="values are NaN or infinite"):
        converted(served.url + FOLDER, tmp_path / "x.dq.gguf")


def test_two_directories_do_not_disturb_each_other(
    served: WebServer, tuned: Path, whole: bytes, tmp_path: Path
) -> None:
    with serving(WebServer()) as other:
        served_too = serve(other, contents(tuned))
        first, second = streamed(served.url + FOLDER), streamed(served_too)
        assert converted(second, tmp_path / "a.dq.gguf") == whole
        assert not [r for r in served.requests if r.headers.get("range", "bytes=0-").split("=")[1].startswith("1")]
        assert converted(first, tmp_path / "b.dq.gguf") == whole

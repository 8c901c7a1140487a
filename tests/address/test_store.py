"""S3, against moto on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dqrelo_gguf.address.choose import Kind
from dqrelo_gguf.address.resolve import local
from dqrelo_gguf.errors import InputError
from tests.support.addresses import RANGE_BYTES

DATA = np.random.default_rng(3).bytes(5 * RANGE_BYTES + 3)


def put(bucket: Any, data: bytes) -> None:
    bucket.put_object(Bucket="models", Key="folder/x.gguf", Body=data)


def test_an_object_is_fetched_once_for_each_version(
    bucket: Any, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, DATA)
    path = local("s3://models/folder/x.gguf", Kind.MODEL)
    assert path.read_bytes() == DATA
    assert path.is_relative_to(cache)
    changed = path.stat().st_mtime_ns
    assert local("s3://models/folder/x.gguf", Kind.MODEL) == path
    assert path.stat().st_mtime_ns == changed
    put(bucket, DATA[::-1])
    second = local("s3://models/folder/x.gguf", Kind.MODEL)
    assert (second.read_bytes(), path.read_bytes()) == (DATA[::-1], DATA)
    captured = capfd.readouterr()
    assert "s3://models/folder/x.gguf (version" in captured.err
    assert "very-secret" not in captured.err + captured.out
    monkeypatch.setenv("DQRELO_OFFLINE", "1")
    assert local("s3://models/folder/x.gguf", Kind.MODEL) == second


def test_an_object_that_changes_between_ranges(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dqrelo_gguf.address.store import StoreSource

    put(bucket, DATA)
    read, calls = StoreSource.read, iter(range(1000))

    def change(self: StoreSource, *args: Any) -> Iterator[bytes]:
        if next(calls) == 2:
            put(bucket, DATA[::-1])
        return read(self, *args)

    monkeypatch.setattr(StoreSource, "read", change)
    assert local("s3://models/folder/x.gguf", Kind.MODEL).read_bytes() == DATA[::-1]


def test_what_is_not_there_is_one_line(bucket: Any) -> None:
    del bucket
    for address in ("s3://models/other.gguf", "s3://nothing-here/other.gguf"):
        with pytest.raises(InputError, match=f"{address}: is not there") as error:
            local(address, Kind.MODEL)
        assert "\n" not in str(error.value)
        assert "very-secret" not in str(error.value)


def test_an_endpoint_without_encryption_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore", reason="the extra `remote` is not installed")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://example.org")
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL: is not encrypted"):
        local("s3://models/x.gguf", Kind.MODEL)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_without_obstore_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(InputError, match=r"pip install 'dqrelo-gguf\[remote\]'"):
        local(f"{scheme}://models/x.gguf", Kind.MODEL)

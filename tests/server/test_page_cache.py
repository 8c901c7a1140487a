"""What the system keeps in its page cache of the files that a server loads, idle and while it decodes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.delta_server import CONTEXT, endless
from tests.support.server_fixtures import Server, serve
from tests.support.tiny_llama import Shape, base_weights, write_model, write_random_delta

SHAPE = Shape(n_embd=512, n_ff=1536, n_layer=3)
N_BYTES = 12 << 20  # at least; the system reads some MiB ahead of the header
NEW_SECONDS = 4  # A file that changed so lately is verified in every load.

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files are read past the page cache on Linux only")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose deltas are long enough."""
    return write_model(tmp_path_factory.mktemp("base") / "base.gguf", SHAPE, base_weights(SHAPE))


@pytest.fixture(scope="module")
def delta(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta of it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("deltas")
    path = write_random_delta(folder / "long.dq.gguf", base, SHAPE, 256)
    assert path.stat().st_size > N_BYTES
    drop(path)
    if is_cached(path):
        pytest.skip("the file system keeps all of a file in memory")
    time.sleep(NEW_SECONDS)
    return path


@pytest.fixture
def server(base: Path, delta: Path, tmp_path: Path) -> Iterator[Server]:
    """One that has not loaded it."""
    options = ("--deltas-dir", delta.parent, "--delta-admin", "--context-shift", *CONTEXT)
    with serve(base, tmp_path, *options) as running:
        yield running


def drop(path: Path) -> None:
    """Makes the next read of the file come from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_cached(path: Path) -> bool:
    """Whether the last quarter of the file is there, by its first byte. Asking may bring that in."""
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], path.stat().st_size * 3 // 4, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False


def can_be_read_past_it(path: Path) -> bool:
    """Whether the file system has such reads."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("is_decoding", [False, True])
def test_a_new_file_is_read_past_it_while_others_decode(server: Server, delta: Path, is_decoding: bool) -> None:
    if is_decoding and not can_be_read_past_it(delta):
        pytest.skip("the file system reads through the page cache only")
    with endless(server, "base") if is_decoding else nullcontext():
        drop(delta)
        assert server.ask("/deltas/load", name="long")["state"] == "loaded"
        assert is_cached(delta) != is_decoding

        # A file that comes again is kept.
        assert server.ask("/deltas/unload", name="long")["state"] == "unloaded"
        drop(delta)
        assert server.ask("/deltas/load", name="long")["state"] == "loaded"
        assert is_cached(delta)

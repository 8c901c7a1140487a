"""llama-server's arguments and variables: addresses become paths, all else stays."""

from __future__ import annotations

import pytest

from dqrelo_gguf.address.arguments import environment_with_paths, with_paths
from dqrelo_gguf.errors import InputError
from tests.support.hub_server import HubServer


@pytest.fixture
def filled(hub: HubServer) -> HubServer:
    hub.put("a/base", {"base.gguf": b"base", "mmproj-base.gguf": b"eye"})
    hub.put("a/math", {"math.dq.gguf": b"math"})
    return hub


def test_every_option_with_a_file(filled: HubServer) -> None:
    args = ["-m", "hf://a/base", "--mmproj", "hf://a/base/mmproj-base.gguf", "--delta", "hf://a/math", "--port", "1"]
    found = with_paths(args)
    assert [arg.rpartition("/")[2] for arg in found] == [
        "-m", "base.gguf", "--mmproj", "mmproj-base.gguf", "--delta", "math.dq.gguf", "--port", "1"
    ]  # fmt: skip
    assert filled.count("/cdn/") == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("math=hf://a/math", "math={}"),
        ("math=hf://a/math,plain=/x.dq.gguf", "math={},plain=/x.dq.gguf"),
        ('"b=/with,comma.dq.gguf",hf://a/math/math.dq.gguf@main', '"b=/with,comma.dq.gguf",{}'),
        ("/dir/a=b.dq.gguf,m=hf://a/math", "/dir/a=b.dq.gguf,m={}"),
        ('"/with,comma.dq.gguf"', '"/with,comma.dq.gguf"'),
        ("math=/x.dq.gguf", "math=/x.dq.gguf"),
    ],
)
def test_lists_of_deltas(filled: HubServer, text: str, expected: str) -> None:
    del filled
    found = with_paths(["--delta", text])[1]
    before, brace, after = expected.partition("{}")
    assert found.startswith(before)
    assert found.endswith(after)
    assert not brace or found[len(before) : len(found) - len(after)].endswith("/math.dq.gguf")
    assert brace or found == text


def test_variables(filled: HubServer) -> None:
    del filled
    found = environment_with_paths(
        {"LLAMA_ARG_MODEL": "hf://a/base", "LLAMA_ARG_DELTA": "m=hf://a/math", "A": "hf://a/base"}
    )
    assert found["LLAMA_ARG_MODEL"].endswith("/base.gguf")
    assert found["LLAMA_ARG_DELTA"].endswith("/math.dq.gguf")
    assert found["A"] == "hf://a/base"


def test_what_is_no_address_of_an_option_stays() -> None:
    args = ["--alias", "hf://a/base", "-m", "/x.gguf", "--delta", "a=/b.dq.gguf", "hf://a/base", "-m"]
    assert with_paths(args) == args


def test_an_address_that_cannot_be_had_is_an_error_before_the_server(filled: HubServer) -> None:
    del filled
    with pytest.raises(InputError, match="has no delta"):
        with_paths(["--delta", "hf://a/base"])

"""--load-from and what belongs to it: taken out of llama-server's arguments, checked before anything starts."""

from __future__ import annotations

import socket

import pytest

from dqrelo_gguf.address import wire
from dqrelo_gguf.address.loading import Loading, start_resolver, take_loading
from dqrelo_gguf.errors import InputError


def test_without_the_option_nothing_is_loaded_and_all_arguments_stay() -> None:
    args = ["-m", "x.gguf", "--delta", "a=b"]
    assert take_loading(args, {}) == (args, None)
    assert take_loading(["--load-max-size", "3"], {}) == ([], None)


def test_options_are_taken_out() -> None:
    args = ["-m", "x", "--load-from", "hf://a/,s3://b/", "--load-timeout", "7", "--load-from", "https://h/", "-c", "1"]
    left, loading = take_loading(args, {"LLAMA_ARG_LOAD_FROM": "hf://other/", "LLAMA_ARG_LOAD_MAX_SIZE": "2"})
    assert left == ["-m", "x", "-c", "1"]
    assert loading == Loading(("hf://a/", "s3://b/", "https://h/"), max_gib=2, timeout_seconds=7)


def test_variables() -> None:
    assert take_loading([], {"LLAMA_ARG_LOAD_FROM": "hf://a/"}) == ([], Loading(("hf://a/",), 16, 600))
    assert take_loading([], {"LLAMA_ARG_LOAD_FROM": ""}) == ([], None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--load-from"], "--load-from: expected a value"),
        (["--load-from", "x"], "--load-from x: expected hf://OWNER/"),
        (["--load-from", "hf://a/,"], "--load-from : expected hf://OWNER/"),
        (["--load-from", "hf://a/", "--load-max-size", "0"], "--load-max-size 0: expected a whole number from 1"),
        (["--load-from", "hf://a/", "--load-max-size", "1.5"], "--load-max-size 1.5: expected"),
        (["--load-from", "hf://a/", "--load-timeout", "86401"], "--load-timeout 86401: expected"),
        (["--load-from", "hf://a/", "--load-timeout", "\u0663"], "expected a whole number"),
    ],
)
def test_what_makes_no_sense_stops_the_start(args: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        take_loading(args, {})


def test_the_resolver_answers_over_a_socket_without_a_name() -> None:
    descriptor, _, seconds = start_resolver(Loading(("hf://a/",), timeout_seconds=30)).partition(":")
    assert seconds == "30"
    with socket.socket(fileno=int(descriptor)) as channel:
        assert channel.family == socket.AF_UNIX
        assert channel.getsockname() == ""
        asking, theirs = socket.socketpair()
        with asking:
            with theirs:
                socket.send_fds(channel, [b"x"], [theirs.fileno()])
            asking.sendall(b"hf://b/c\n")
            asking.settimeout(60)
            answer = b""
            while piece := asking.recv(1000):
                answer += piece
            assert answer.startswith(f"{wire.NOT_ALLOWED}\n".encode())

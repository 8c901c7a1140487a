"""--model_args: what each value becomes, and one line for what is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.harness.arguments import AUTO_SEQUENCES, Arguments


def read(**values: Any) -> Arguments:
    return Arguments.read({"base": "b.gguf", **values})


def test_values_become_fields() -> None:
    found = read(delta="d.dq.gguf", max_length=512, n_threads="2", scale="0.5", allow_other_base=True, batch_size="8")
    assert found == Arguments(
        Path("b.gguf"), Path("d.dq.gguf"), n_ctx=512, n_threads=2, scale=0.5, allow_other_base=True, n_seq=8
    )
    assert read(delta=None, device="cuda:0") == Arguments(Path("b.gguf"))


def test_a_file_may_be_called_like_a_number() -> None:
    assert Arguments.read({"base": 7}).base == Path("7")


@pytest.mark.parametrize(
    ("values", "n_seq"),
    [
        ({"batch_size": "auto"}, AUTO_SEQUENCES),
        ({"batch_size": "auto:4"}, AUTO_SEQUENCES),
        ({"batch_size": "auto", "max_batch_size": 4}, 4),
        ({"batch_size": 32, "max_batch_size": 4}, 32),
    ],
)
def test_batch_sizes(values: dict[str, Any], n_seq: int) -> None:
    assert read(**values).n_seq == n_seq


def test_the_cpu_gets_no_layers_on_a_gpu() -> None:
    assert read(device="cpu").n_gpu_layers == 0
    assert read(device="cpu", n_gpu_layers=3).n_gpu_layers == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base": None}, "base is missing, expected base=FILE.gguf"),
        ({"base": ""}, "base=: expected a file"),
        ({"base": True}, "base=True: expected a file"),
        ({"pretrained": "x"}, "pretrained is unknown, expected some of: base, delta"),
        ({"trust_remote_code": True}, "trust_remote_code is unknown"),
        ({"n_ctx": 0}, "n_ctx=0: expected a whole number from 8"),
        ({"n_ctx": 1e9}, "n_ctx=1000000000.0: expected a whole number"),
        ({"n_ctx": True}, "n_ctx=True: expected a whole number"),
        ({"n_ctx": 1 << 40}, "n_ctx=1099511627776: expected a whole number"),
        ({"n_ctx": "9" * 5000}, "expected a whole number"),
        ({"n_threads": -1}, "n_threads=-1: expected a whole number from 1 to 1024"),
        ({"n_gpu_layers": -2}, "n_gpu_layers=-2: expected a whole number from -1"),
        ({"max_gen_toks": 0}, "max_gen_toks=0: expected"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number from 1 to 256"),
        ({"batch_size": "many"}, "batch_size=many: expected a whole number from 1 to 256"),
        ({"batch_size": "auto", "max_batch_size": 0}, "max_batch_size=0: expected"),
        ({"scale": "much"}, "scale=much: expected a number from -4 to 4"),
        ({"scale": float("nan")}, "scale=nan: expected a number from -4 to 4"),
        ({"scale": [1]}, "expected a number from -4 to 4"),
        ({"allow_other_base": "yes"}, "allow_other_base=yes: expected true or false"),
    ],
)
def test_a_bad_value_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(**values)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400

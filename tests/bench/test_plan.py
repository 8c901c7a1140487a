"""bench/plan.py: which tests, rows and contexts a command line means."""

from __future__ import annotations

import itertools

import pytest

from dqrelo_gguf.bench.plan import DeltaFile, Plan, Settings, Workload, delta_files, make_tests, numbers, rows_of
from dqrelo_gguf.errors import InputError


def test_each_delta_has_a_row_alone_and_all_have_one_together() -> None:
    assert rows_of(Workload(8, 0), 2) == [(None,), (0,), (1,)]
    assert rows_of(Workload(0, 8, 3), 2) == [(None, None, None), (0, 1, 0)]
    assert rows_of(Workload(0, 8, 2), 3) == [(None, None), (0, 1)]
    assert rows_of(Workload(0, 8, 2), 0) == [(None, None)]


def test_tests_are_named_as_in_llama_bench() -> None:
    tests = make_tests([512, 0], [128, 0, 128], [(64, 16), (0, 0)], [1, 4])
    assert [test.name for test in tests] == ["pp512", "tg128", "pp64+tg16", "tg128 x4"]
    assert [test.n_tokens for test in tests] == [512, 128, 80, 512]


def test_a_context_serves_all_numbers_of_threads() -> None:
    settings = tuple(Settings(n_ubatch=ub, n_threads=t) for t, ub in itertools.product((1, 2), (256, 512)))
    plan = Plan("base", (), (Workload(8, 0), Workload(0, 8, 4)), settings)
    assert list(plan.contexts()) == [
        (Settings(n_ubatch=256), 1, [1, 2]),
        (Settings(n_ubatch=256), 4, [1, 2]),
        (Settings(n_ubatch=512), 1, [1, 2]),
        (Settings(n_ubatch=512), 4, [1, 2]),
    ]


def test_deltas_have_the_names_of_their_files() -> None:
    assert delta_files(["a/math.dq.gguf", "x=b/math.dq.gguf", "./k=v.gguf"]) == (
        DeltaFile("math", "a/math.dq.gguf"),
        DeltaFile("x", "b/math.dq.gguf"),
        DeltaFile("k=v", "./k=v.gguf"),
    )
    with pytest.raises(InputError, match=r"the name 'math' is taken by 'a/math\.dq\.gguf'"):
        delta_files(["a/math.dq.gguf", "b/math.dq.gguf"])


def test_numbers_come_in_lists_and_repeated() -> None:
    assert numbers("-t", ["1,2", "4"], 1) == [1, 2, 4]

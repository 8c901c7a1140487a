"""bench/plan.py: which tests, rows and contexts a command line means."""

from __future__ import annotations

import itertools

import pytest

from dqrelo_gguf.bench.plan import (
    DeltaFile,
    Plan,
    Settings,
    Subject,
    Workload,
    blends,
    delta_files,
    make_tests,
    numbers,
    rows_of,
)
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


def test_blends_follow_the_deltas() -> None:
    files = (DeltaFile("a", "a.gguf"), DeltaFile("b*2", "b.gguf"))
    mixes = blends(["mix=b*2*0.5+a*-1", "half=a*.5"], files)
    assert mixes == (Subject("mix", ((1, 0.5), (0, -1.0))), Subject("half", ((0, 0.5),)))
    plan = Plan("base", files, (Workload(0, 8),), (Settings(),), blends=mixes)
    assert [subject.name for subject in plan.subjects] == ["a", "b*2", "mix", "half"]
    assert plan.subjects[1].parts == ((1, 1.0),)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["mix"], "expected NAME=DELTA"),
        (["=a*1"], "expected NAME=DELTA"),
        (["mix=a"], "expected NAME=DELTA"),
        (["mix=a*1e3"], "expected NAME=DELTA"),
        (["mix=a*nan"], "expected NAME=DELTA"),
        (["mix=a*1+"], "expected NAME=DELTA"),
        (["mix=c*1"], "there is no delta 'c'"),
        (["mix=a*1+a*2"], "'a' is there twice"),
        (["a=a*1"], "the name 'a' is taken"),
        (["mix=a*1", "mix=a*2"], "the name 'mix' is taken"),
        (["mix=" + "+".join(f"d{i}*1" for i in range(9))], "9 deltas, expected at most 8"),
    ],
)
def test_blends_are_refused_in_a_line(texts: list[str], message: str) -> None:
    files = [DeltaFile(name, name) for name in ("a", *(f"d{i}" for i in range(9)))]
    with pytest.raises(InputError, match=message) as caught:
        blends(texts, files)
    assert "\n" not in str(caught.value)


def test_numbers_come_in_lists_and_repeated() -> None:
    assert numbers("-t", ["1,2", "4"], 1) == [1, 2, 4]

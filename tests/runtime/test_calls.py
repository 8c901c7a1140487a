"""Calls on a runtime: tokens, logits, log-likelihoods and text, what is refused, and how calls end."""

from __future__ import annotations

import contextlib
import math
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import numpy.typing as npt
import pytest

from dqrelo_gguf.cli import convert
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.runtime.deltas import Delta
from dqrelo_gguf.runtime.session import Runtime
from tests.support.greedy import assert_greedy, generate_tokens
from tests.support.logits import nmse
from tests.support.tiny_llama import BOS, EOS, NARROW, Type, base_weights, tuned_weights, write_model

TEXT = "the dog sees a cat and makes two?"
# Sums in another order, and keys and values in F16.
MAX_NMSE = 1e-5


# --- tokens


def test_tokenize_returns_int32_with_bos(runtime: Runtime) -> None:
    tokens = runtime.tokenize(TEXT)
    assert tokens.dtype == np.int32
    assert tokens.ndim == 1
    assert tokens[0] == BOS
    assert np.array_equal(tokens[1:], runtime.tokenize(TEXT, add_special=False))
    assert runtime.detokenize(tokens).strip() == TEXT


def test_tokenize_reads_special_tokens_unless_told_not_to(runtime: Runtime) -> None:
    assert runtime.tokenize("a</s>")[-1] == EOS
    assert EOS not in runtime.tokenize("a</s>", parse_special=False)
    assert runtime.detokenize([EOS]) == ""
    assert runtime.detokenize([EOS], special=True) == "</s>"


def test_pieces_are_the_bytes_of_each_token(runtime: Runtime) -> None:
    text = "the dog żółw 🐢 sees</s>"
    tokens = runtime.tokenize(text)
    pieces = runtime.pieces(tokens)
    assert len(pieces) == len(tokens)
    assert b"".join(pieces[1:]) == f" {text}".encode()
    assert pieces[0] == b"<s>"
    assert "żółw".encode()[:1] in pieces  # A token of one byte of a character.
    assert runtime.pieces([]) == []


@pytest.mark.parametrize("text", ["", "żółw 🐢", "a\x00b", "x" * 5000])
def test_tokenize_keeps_any_text(runtime: Runtime, text: str) -> None:
    assert runtime.detokenize(runtime.tokenize(text)).strip() == text


# --- logits


def test_logits_shapes(runtime: Runtime, delta: Delta) -> None:
    tokens = runtime.tokenize(TEXT)
    one = runtime.logits(tokens, delta)
    assert one.dtype == np.float32
    assert one.shape == (len(tokens), runtime.n_vocab)
    assert runtime.logits(tokens.tolist()).shape == one.shape
    assert runtime.logits(TEXT).shape == one.shape
    many = runtime.logits([tokens, tokens[:3].astype(np.int64), TEXT], [None, delta, None])
    assert [rows.shape[0] for rows in many] == [len(tokens), 3, len(tokens)]
    assert runtime.logits([]) == []
    assert len(runtime.logits([tokens])) == 1


def test_logits_from_a_token_on(runtime: Runtime, delta: Delta) -> None:
    tokens = runtime.tokenize(TEXT)
    whole = runtime.logits(tokens, delta)
    late = runtime.logits(tokens, delta, first=3)
    assert late.shape == (len(tokens) - 3, whole.shape[1])
    assert nmse(late, whole[3:]) <= MAX_NMSE
    last, all_of = runtime.logits([tokens, tokens[:4]], [None, delta], first=[len(tokens) - 1, 0])
    assert nmse(last, runtime.logits(tokens)[-1:]) <= MAX_NMSE
    assert nmse(all_of, whole[:4]) <= MAX_NMSE


@pytest.mark.parametrize(
    ("first", "message"), [(4, "sequence 0"), (-1, "first of sequence 0"), ([0, 0], "first: got a list of 2")]
)
def test_logits_from_no_token_are_refused(runtime: Runtime, first: int | list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        runtime.logits([[BOS, 5, 6, 7]], first=first)


def test_logits_own_their_memory(runtime: Runtime) -> None:
    first = runtime.logits([BOS, 5, 6])
    copy = first.copy()
    runtime.logits([BOS, 9, 9, 9])
    assert np.array_equal(first, copy)


def test_logits_of_a_prefix_do_not_see_what_follows(runtime: Runtime, delta: Delta) -> None:
    tokens = runtime.tokenize(TEXT)
    assert nmse(runtime.logits(tokens[:5], delta), runtime.logits(tokens, delta)[:5]) <= MAX_NMSE


def test_more_sequences_than_fit_are_run_in_turns(base: Path, delta_path: Path, runtime: Runtime, delta: Delta) -> None:
    rng = np.random.default_rng(0)
    batch = [rng.integers(3, runtime.n_vocab, n) for n in (1, 90, 7, 200, 33, 2, 150, 64, 5, 1, 120)]
    has_delta = [False, True, False, True, True, False, False, True, True, False, True]
    expected = [runtime.logits(tokens, delta if has else None) for tokens, has in zip(batch, has_delta, strict=True)]
    for options in ({"n_ctx": 256}, {"n_ctx": 1024, "kv_unified": False}, {"n_seq_max": 1}):
        with Runtime(base, n_threads=1, n_ubatch=16, n_batch=48, **({"n_seq_max": 3} | options)) as rt:
            loaded = rt.load_delta(delta_path)
            rows = rt.logits(batch, [loaded if has else None for has in has_delta])
        for got, want in zip(rows, expected, strict=True):
            assert nmse(got, want) <= MAX_NMSE


@pytest.mark.parametrize("options", [{"type_k": "f32", "type_v": "f32", "flash_attn": "off"}, {"use_mmap": False}])
def test_options_keep_the_result(base: Path, runtime: Runtime, options: dict[str, object]) -> None:
    with Runtime(base, n_threads=1, **options) as rt:  # type: ignore[arg-type]
        assert nmse(rt.logits(TEXT), runtime.logits(TEXT)) <= MAX_NMSE


# --- log-likelihoods


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def test_loglikelihood_is_the_sum_of_log_softmax(runtime: Runtime, delta: Delta) -> None:
    tokens = runtime.tokenize(TEXT)
    pairs = [(tokens[:4], tokens[4:]), (tokens[:9], tokens[9:10]), (tokens[:1], tokens[1:])]
    row_deltas = [delta, None, delta]
    for (total, _), (context, continuation), row_delta in zip(
        runtime.loglikelihood(pairs, row_deltas), pairs, row_deltas, strict=True
    ):
        scores = log_softmax(runtime.logits(tokens, row_delta))
        positions = np.arange(len(context), len(context) + len(continuation))
        assert total == pytest.approx(scores[positions - 1, tokens[positions]].sum(), rel=1e-4)


def test_loglikelihood_of_what_is_most_probable_is_greedy(runtime: Runtime, delta: Delta) -> None:
    context = runtime.tokenize(TEXT)
    best = int(runtime.logits(context, delta)[-1].argmax())
    worst = int(runtime.logits(context, delta)[-1].argmin())
    scores = runtime.loglikelihood([(context, [best]), (context, [worst]), (context, [best, worst])], delta)
    assert [is_greedy for _, is_greedy in scores] == [True, False, False]
    assert scores[0][0] > scores[1][0]


def test_loglikelihood_of_texts_cuts_them_where_running_text_would(runtime: Runtime) -> None:
    whole = runtime.tokenize("the dog sees a cat")
    n_context = len(runtime.tokenize("the dog"))
    expected = runtime.loglikelihood([(whole[:n_context], whole[n_context:])])
    assert runtime.loglikelihood([("the dog", " sees a cat")]) == expected
    assert runtime.loglikelihood([("the dog ", "sees a cat")]) == expected


def test_loglikelihood_of_an_empty_context_starts_from_bos(runtime: Runtime) -> None:
    tokens = runtime.tokenize(TEXT)
    expected = runtime.loglikelihood([(tokens[:1], tokens[1:])])
    assert runtime.loglikelihood([("", TEXT)]) == expected
    assert runtime.loglikelihood([([], tokens[1:])]) == expected


def test_loglikelihood_refuses_a_pair_with_nothing_to_score(runtime: Runtime) -> None:
    for pair in (("a", ""), ([1, 5], []), ("", "")):
        with pytest.raises(InputError, match="pair 1: its continuation has no tokens"):
            runtime.loglikelihood([("a", " b"), pair])
    with pytest.raises(InputError, match="two texts or two token arrays"):
        runtime.loglikelihood([("a", [5])])


# --- generation


def test_generate_is_greedy_by_default(runtime: Runtime, delta: Delta) -> None:
    prompt = runtime.tokenize(TEXT)
    for row_delta, tokens in zip((None, delta), generate_tokens(runtime, prompt, [None, delta], 12), strict=True):
        assert_greedy(runtime, prompt, tokens, row_delta)


def test_generate_takes_text_or_tokens(runtime: Runtime, delta: Delta) -> None:
    text = runtime.generate(TEXT, delta, max_tokens=6)
    assert runtime.generate(runtime.tokenize(TEXT), delta, max_tokens=6) == text
    assert runtime.generate([TEXT, TEXT], delta, max_tokens=6) == [text, text]
    assert runtime.generate([], delta) == []


def test_generate_runs_many_prompts_in_shared_batches(runtime: Runtime, delta: Delta) -> None:
    prompts = [TEXT, "a cat", "three dogs and two cats"] * 5
    row_deltas = [None, delta, delta, None, delta] * 3
    together = runtime.generate(prompts, row_deltas, max_tokens=1)
    alone = [runtime.generate(p, o, max_tokens=1) for p, o in zip(prompts, row_deltas, strict=True)]
    assert together == alone


def test_generate_draws_with_a_seed(runtime: Runtime, delta: Delta) -> None:
    def draw(seed: int, **options: float) -> list[str]:
        return runtime.generate([TEXT] * 4, delta, max_tokens=12, temperature=1.0, seed=seed, **options)  # type: ignore[arg-type]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert len(set(draw(1))) == 4
    assert draw(1)[1] == draw(2)[0]  # Prompt i draws with seed + i.
    greedy = runtime.generate(TEXT, delta, max_tokens=12)
    assert draw(1, top_k=1)[0] == greedy
    assert draw(1, top_p=1e-6)[0] == greedy


def test_generate_ends_before_a_stop_text(runtime: Runtime, delta: Delta) -> None:
    full = runtime.generate(TEXT, delta, max_tokens=30, temperature=1.0, seed=7)
    words = re.findall("[ -~]{2,}", full)  # Such words are away from broken UTF-8.
    for stop in (words[-1], words[-1][0]):
        expected = full[: full.index(stop)]
        assert runtime.generate(TEXT, delta, max_tokens=30, temperature=1.0, seed=7, stop=stop) == expected
        assert runtime.generate(TEXT, delta, max_tokens=30, temperature=1.0, seed=7, stop=["@@", stop]) == expected


def test_generated_tokens_end_with_a_stop_text(runtime: Runtime) -> None:
    [full] = runtime.generate_tokens([TEXT], max_tokens=30, temperature=1.0, seed=7)
    stop = re.findall("[ -~]{2,}", runtime.detokenize(full))[-1]
    [found] = runtime.generate_tokens([TEXT], max_tokens=30, temperature=1.0, seed=7, stop=stop)
    assert found.tolist() == full.tolist()[: len(found)]
    assert stop in runtime.detokenize(found)
    assert stop not in runtime.detokenize(found[:-1])


def test_generation_ends_when_it_is_enough(base: Path) -> None:
    """What runs then ends as it is, and what has not begun stays empty."""
    told: dict[int, int] = {}

    def ended(i: int, n_generated: int) -> bool:
        told[i] = n_generated
        return len(told) < 3

    with Runtime(base, n_seq_max=2, n_threads=1) as rt:
        prompts = [rt.tokenize(TEXT)[:n] for n in (1, 2, 3, 4, 5, 6, 7)]
        whole = rt.generate_tokens(prompts, max_tokens=9, temperature=1.0, seed=1)
        found = rt.generate_tokens(prompts, max_tokens=9, temperature=1.0, seed=1, ended=ended)
        assert [len(tokens) for tokens in found[4:]] == [0, 0, 0]
        for i, tokens in enumerate(found[:4]):
            assert tokens.tolist() == whole[i].tolist()[: len(tokens)]
            assert i not in told or told[i] == len(tokens) == len(whole[i])
        with pytest.raises(ValueError, match="of the caller"):
            rt.generate_tokens(prompts, max_tokens=9, ended=_fails)
        again = rt.generate_tokens(prompts, max_tokens=9, temperature=1.0, seed=1)
        assert [tokens.tolist() for tokens in again] == [tokens.tolist() for tokens in whole]


def _fails(i: int, n_generated: int) -> bool:
    raise ValueError(f"of the caller: {i}, {n_generated}")


def test_generate_ends_at_the_deltas_own_end_token(tmp_path: Path, base: Path, runtime: Runtime, delta: Delta) -> None:
    prompt = runtime.tokenize(TEXT)
    tokens = generate_tokens(runtime, prompt, [delta], 8)[0]
    tuned = tuned_weights(base_weights(NARROW), 1)
    write_model(tmp_path / "tuned.gguf", NARROW, tuned, Type.F32, "other end", eos=int(tokens[3]), add_bos=False)
    path = tmp_path / "end.dq.gguf"
    assert convert.main([str(base), str(tmp_path / "tuned.gguf"), "-o", str(path), "--rank", "8"]) == 0
    with runtime.load_delta(path) as ending:
        assert tokens[3] in ending.eog_tokens
        outputs = generate_tokens(runtime, prompt, [delta, ending, None], 8)
        assert runtime.tokenize(TEXT, delta=ending)[0] != BOS  # It has its own way to begin, too.
    n = list(tokens).index(tokens[3])
    assert np.array_equal(outputs[1], tokens[:n])
    assert np.array_equal(outputs[0], tokens)


# --- what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rt, _: rt.logits([[]]), "sequence 0: has no tokens"),
        (lambda rt, _: rt.logits([5, 99999]), "sequence 0: token 99999 at 1, expected 0 to"),
        (lambda rt, _: rt.logits([[5], [-1]]), "sequence 1: token -1 at 0"),
        (lambda rt, _: rt.logits(np.array([2**40])), "is no token id"),
        (lambda rt, _: rt.logits([1.5]), "expected integers"),
        (lambda rt, _: rt.logits(np.ones((2, 2, 2), int)), "expected \\[n_tokens\\]"),
        (lambda rt, _: rt.logits(np.full(4097, 5)), "has 4097 tokens, the context holds 4096"),
        (lambda rt, d: rt.logits([[5], [5]], [d]), "delta: got a list of 1, expected one for each of 2"),
        (lambda rt, d: rt.logits([[5]], d, scale=[1, 2]), "scale: got a list of 2"),
        (lambda rt, d: rt.logits([5], d, scale=math.nan), "scale: got nan"),
        (lambda rt, _: rt.detokenize([-3]), "token -3 at 0"),
        (lambda rt, _: rt.generate("a", max_tokens=0), "max_tokens: got 0"),
        (lambda rt, _: rt.generate("a", max_tokens=4096), "and 4095 to generate, the context holds 4096"),
        (lambda rt, _: rt.generate("a", temperature=-1), "temperature: got -1"),
        (lambda rt, _: rt.generate("a", top_p=1.5), "top_p: got 1.5"),
        (lambda rt, _: rt.generate("a", stop=""), "stop: got an empty text"),
    ],
)
def test_bad_arguments_are_refused(
    runtime: Runtime, delta: Delta, call: Callable[[Runtime, Delta], object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call(runtime, delta)
    assert "\n" not in str(caught.value)
    assert runtime.logits([BOS], delta).shape == (1, runtime.n_vocab)  # The runtime is still in order.


# --- threads and signals


def test_calls_release_the_gil(runtime: Runtime, delta: Delta) -> None:
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        runtime.logits(np.full(3000, 5), delta)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    n_turns = 0
    while not done.is_set():
        n_turns += 1
        time.sleep(0.001)
    thread.join()
    # With the lock held, this thread has one turn before the call and one after it.
    assert n_turns > 3


def test_threads_wait_for_each_other(runtime: Runtime, delta: Delta) -> None:
    expected = [runtime.generate(TEXT, row_delta, max_tokens=16) for row_delta in (None, delta)]
    results: dict[int, str] = {}

    def work(i: int) -> None:
        results[i] = runtime.generate(TEXT, delta if i % 2 else None, max_tokens=16)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[i] for i in range(6)] == expected * 3


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer on this system")
def test_a_signal_ends_a_long_call(runtime: Runtime, delta: Delta) -> None:
    class Interrupted(Exception):  # noqa: N818 - stands for KeyboardInterrupt
        pass

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    before = runtime.generate(TEXT, delta, max_tokens=4)
    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Interrupted):
            runtime.generate(["a"] * 64, delta, max_tokens=2000, temperature=1.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    with contextlib.closing(runtime.load_delta(delta.path)) as again:
        assert runtime.generate(TEXT, again, max_tokens=4) == before

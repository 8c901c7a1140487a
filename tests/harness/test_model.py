"""The model `dqrelo` counts as lm-evaluation-harness's own `hf` does, sample by sample, on the weights that a delta stands for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from dqrelo_gguf.errors import DqreloError, InputError
from tests.support.harness_tasks import ANSWER, CHOICE, TASKS, TEXT, Answers, answers, apart, documents, evaluated
from tests.support.server_fixtures import TINY, Artefacts

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from dqrelo_gguf.harness.model import DqreloLM
    from dqrelo_gguf.harness.resident import Resident

# Both sum some hundred terms in F32 in another order: 1e-4 was seen.
SAME_WEIGHTS = 1e-3
# The base is F16, and a delta's signs multiply activations of 8 bits: each token's log-probability is off by some 1e-3, and 3e-2
# was seen over the 160 tokens of a text.
DELTA = 0.1
# Kernels differ by the number of rows, and an activation between two of its 8-bit steps then falls to the other one: 7e-3 was seen.
OTHER_BATCH = 0.05


def test_a_delta_answers_as_transformers_with_the_merged_weights(
    of_delta: dict[str, Any], of_transformers: Answers
) -> None:
    most = apart(answers(of_delta), of_transformers)
    assert most.keys() == {CHOICE, TEXT}
    assert max(most.values()) < DELTA
    assert of_delta["results"][ANSWER]["exact_match,none"] > 0.5  # It knows the problems: the texts are no accident.


def test_a_model_without_a_delta_counts_to_the_last_digits(
    artefacts: Artefacts, manager: TaskManager, model_args: dict[str, Any], of_transformers: Answers
) -> None:
    from dqrelo_gguf.harness.model import DqreloLM

    model = DqreloLM.create_from_arg_string(
        ",".join(
            f"{name}={value}"
            for name, value in {**model_args, "base": artefacts.merged}.items()
            if name != "batch_size"
        ),
        {"batch_size": "3", "device": "cuda:0", "max_batch_size": None},
    )
    assert max(apart(answers(evaluated(model, manager)), of_transformers).values()) < SAME_WEIGHTS


def test_the_tasks_have_what_is_easily_counted_wrong(words: DqreloLM, of_transformers: Answers) -> None:
    greedy = [is_greedy for problem in of_transformers[CHOICE] for _, is_greedy in problem]
    assert True in greedy
    assert False in greedy
    docs = documents()
    assert max(len(words.tok_encode(doc["text"])) for doc in docs[TEXT]) > 2 * words.max_length
    n_context = [len(words.tok_encode(doc["context"])) for doc in docs[CHOICE]]
    assert min(n_context) <= 1
    assert max(n_context) > words.max_length


def test_a_delta_that_is_scaled_to_nothing_is_the_base(
    resident: Resident, artefacts: Artefacts, manager: TaskManager, of_delta: dict[str, Any]
) -> None:
    from dqrelo_gguf.harness.model import DqreloLM

    base = answers(evaluated(DqreloLM(resident), manager))
    assert base[ANSWER] != answers(of_delta)[ANSWER]
    arguments = dataclasses.replace(resident.arguments, scale=0.0)
    with mock.patch.object(resident, "arguments", arguments):
        nothing = DqreloLM(resident, artefacts.words)
    assert max(apart(answers(evaluated(nothing, manager)), base).values()) < SAME_WEIGHTS


def test_answers_do_not_depend_on_how_many_problems_there_are(
    words: DqreloLM, manager: TaskManager, of_delta: dict[str, Any]
) -> None:
    some = answers(evaluated(words, manager, limit=2))
    assert {task: len(problems) for task, problems in some.items()} == dict.fromkeys(TASKS, 2)
    first = {task: problems[:2] for task, problems in answers(of_delta).items()}
    assert max(apart(some, first).values()) < OTHER_BATCH


def test_what_was_answered_once_is_not_asked_again(words: DqreloLM, manager: TaskManager, tmp_path: Path) -> None:
    cache = {"use_cache": str(tmp_path / "cache"), "limit": 4}
    first = answers(evaluated(words, manager, **cache))
    with mock.patch.object(words, "_loglikelihood_tokens"), mock.patch.object(words, "_prompt"):  # Neither is asked.
        assert answers(evaluated(words, manager, **cache)) == first


def test_results_say_which_delta_answered(of_delta: dict[str, Any], words: DqreloLM, artefacts: Artefacts) -> None:
    from dqrelo_gguf.file.reader import DeltaReader

    info = words.get_model_info()
    assert info["delta_content_hash"] == DeltaReader(artefacts.words).content_hash
    assert info["base"] == "base.gguf"
    assert of_delta["config"].items() >= info.items()


# --- chat templates ---

CHAT = [{"role": "user", "content": "Say it: a b"}, {"role": "assistant", "content": " a"}]


def test_a_conversation_is_as_transformers_renders_it(words: DqreloLM) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY / "ft-words")
    assert words.apply_chat_template(CHAT[:1]) == tokenizer.apply_chat_template(
        CHAT[:1], tokenize=False, add_generation_prompt=True
    )
    assert words.apply_chat_template(CHAT, add_generation_prompt=False) == tokenizer.apply_chat_template(
        CHAT, tokenize=False, continue_final_message=True
    )
    assert words.chat_template(True) == tokenizer.chat_template
    assert words.chat_template(False) is None


def test_each_model_has_its_own_template(resident: Resident, artefacts: Artefacts, words: DqreloLM) -> None:
    from dqrelo_gguf.harness.model import DqreloLM

    loud = DqreloLM(resident, artefacts.loud)
    assert loud.apply_chat_template(CHAT[:1]) == f"<<Say it: a b|{resident.token_text(artefacts.loud_eos)}>>"
    assert loud.eot_token_id == artefacts.loud_eos
    assert loud.tokenizer_name != words.tokenizer_name
    loud.close()
    with pytest.raises(InputError, match=r"base\.gguf: has no chat template. Leave out --apply_chat_template"):
        DqreloLM(resident).apply_chat_template(CHAT)


def test_tasks_run_through_the_template(words: DqreloLM, manager: TaskManager) -> None:
    found = evaluated(words, manager, limit=1, apply_chat_template=True)
    prompt = found["samples"][ANSWER][0]["arguments"][0][0]
    assert prompt == words.apply_chat_template([{"role": "user", "content": documents()[ANSWER][0]["question"]}])


# --- what cannot be answered ---


def request(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_a_text_that_begins_with_bos_gets_no_other(words: DqreloLM) -> None:
    assert words.tok_encode("<s>a b")[:2] != [1, 1]
    assert words.tok_encode("a b")[0] == 1
    assert words.tok_encode("a b", add_special_tokens=False)[0] != 1


@pytest.mark.parametrize(
    ("call", "args", "message"),
    [
        ("loglikelihood", ("a b", ""), "the probability of a continuation without tokens"),
        (
            "loglikelihood",
            ("a b", " a b" * 60),
            r"a continuation of \d+ tokens does not fit into the 48 that the model reads",
        ),
        ("generate_until", ("a b", {"until": ["\n"]}), "max_gen_toks=256 leaves no room for a prompt in the 48 tokens"),
        ("generate_until", ("a b", {"num_beams": 4, "max_gen_toks": 4}), "num_beams=4 is not supported"),
    ],
)
def test_a_request_that_cannot_be_answered_is_one_line(
    words: DqreloLM, call: str, args: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        getattr(words, call)([request(*args)], disable_tqdm=True)


def test_drawn_answers_differ_and_can_be_repeated(words: DqreloLM) -> None:
    asked = [request("the dog", {"do_sample": True, "temperature": 2.0, "max_gen_toks": 6, "until": []})] * 64
    drawn = words.generate_until(asked, disable_tqdm=True)
    assert len(set(drawn)) > 32
    assert drawn[:32] != drawn[32:]  # They are asked for in two calls.
    assert words.generate_until(asked, disable_tqdm=True) == drawn


def test_the_choices_of_a_question_read_it_once(words: DqreloLM, resident: Resident) -> None:
    contexts = ["the dog sees a cat and makes two", "three dogs and five cats see a dog"]
    before = resident.runtime.n_evaluated
    words.loglikelihood(
        [request(contexts[i % 2], f" {letter}") for i, letter in enumerate("abcdefgh")], disable_tqdm=True
    )
    n_context = sum(len(words.tok_encode(context)) for context in contexts)
    assert resident.runtime.n_evaluated - before < n_context + 2 * 8  # A choice has a token or two.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "nowhere.gguf"}, "nowhere.gguf: no such file"),
        ({"delta": "nowhere.dq.gguf"}, "nowhere.dq.gguf: no such file"),
        ({"flash_attn": "maybe"}, "flash_attn: got 'maybe', expected auto, on or off"),
        ({"type_k": "f8"}, "type_k: got 'f8', expected one of f32"),
        ({"n_ctx": 2_000_000_000}, "a context of 2000000000 tokens needs .* of memory"),
    ],
)
def test_a_model_that_cannot_be_opened_is_one_line(
    artefacts: Artefacts, model_args: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    from dqrelo_gguf.harness.model import DqreloLM

    with pytest.raises(DqreloError, match=message):
        DqreloLM.create_from_arg_obj({**model_args, "base": artefacts.base, **change})


def test_a_delta_of_another_base_is_refused(narrow_deltas: list[Path], resident: Resident) -> None:
    from dqrelo_gguf.harness.model import DqreloLM

    with pytest.raises(DqreloError, match="base"):
        DqreloLM(resident, narrow_deltas[0])

"""The harness's own `local-completions` asks dqrelo-server for a delta by its name, and finds what the model `dqrelo` does in process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.harness_tasks import ANSWER, CHOICE, TEXT, Answers, answers, apart, evaluated
from tests.support.server_fixtures import TINY, Artefacts, Server, serve

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from dqrelo_gguf.harness.model import DqreloLM

# As in test_model.py.
DELTA = 0.1
OTHER_BATCH = 0.05


@pytest.fixture(scope="module")
def server(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    exact = ("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off")
    models = ("--alias", "base", "--delta", f"words={artefacts.words}", "--delta", f"json={artefacts.json}")
    with serve(
        artefacts.base, tmp_path_factory.mktemp("http"), *models, "--parallel", "4", "-c", "512", *exact
    ) as found:
        yield found


@pytest.fixture(scope="module")
def over_http(server: Server, manager: TaskManager, model_args: dict[str, Any]) -> Answers:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="words",
        tokenizer_backend="huggingface",
        tokenizer=str(TINY / "ft-words"),
        add_bos_token=True,
        max_length=model_args["n_ctx"] + 2,  # It counts the last token, which is not read, and one that is generated.
        batch_size=4,
    )
    return answers(evaluated(model, manager))


def test_http_finds_what_the_process_does(
    over_http: Answers, of_delta: dict[str, Any], of_transformers: Answers
) -> None:
    # The server leaves the space in an answer that sentencepiece puts before every text.
    plain = {**over_http, ANSWER: [[text.removeprefix(" ") for text in texts] for texts in over_http[ANSWER]]}
    assert plain[ANSWER] != over_http[ANSWER]
    in_process = apart(plain, answers(of_delta))
    assert in_process.keys() == {CHOICE, TEXT}
    assert max(in_process.values()) < OTHER_BATCH
    assert max(apart(plain, of_transformers).values()) < DELTA


def test_the_server_makes_tokens_for_the_harness_without_bos(server: Server, words: DqreloLM) -> None:
    from lm_eval.utils import RemoteTokenizer, check_remote_tokenizer_support

    url = f"{server.url}/v1/completions"
    assert check_remote_tokenizer_support(url)
    tokenizer = RemoteTokenizer(url)
    assert tokenizer.encode("the dog sees 35") == words.tok_encode("the dog sees 35", add_special_tokens=False)
    assert tokenizer.bos_token_id == words.prefix_token_id
    assert tokenizer.eos_token_id == words.eot_token_id

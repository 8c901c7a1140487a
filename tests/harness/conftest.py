"""Tasks and models of lm-evaluation-harness, which asks nothing of the network here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dqrelo_gguf.harness.arguments import Arguments
from dqrelo_gguf.harness.resident import Resident
from tests.support.harness_tasks import Answers, answers, evaluated, offline, write_tasks
from tests.support.plain_checkpoint import write_checkpoint
from tests.support.server_fixtures import TINY, Artefacts

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from dqrelo_gguf.harness.model import DqreloLM


@pytest.fixture(scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module", autouse=True)
def _no_network(datasets_cache: Path) -> Iterator[None]:
    """Ends with each module: tests of other folders, which the process may run next, use the network of this machine."""
    with offline(datasets_cache):
        yield


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("harness") / "tasks")


@pytest.fixture(scope="session")
def manager(task_folder: Path, datasets_cache: Path) -> TaskManager:
    with offline(datasets_cache):  # What lasts longer than a module is made before `_no_network`.
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=str(task_folder), include_defaults=False)


@pytest.fixture(scope="session")
def model_args() -> dict[str, Any]:
    """Rounds as little as the runtime can, and is short, so that contexts and windows are cut."""
    return {"n_threads": 1, "n_ctx": 48, "type_k": "f32", "type_v": "f32", "batch_size": 8}


@pytest.fixture(scope="session")
def resident(artefacts: Artefacts, model_args: dict[str, Any]) -> Iterator[Resident]:
    with Resident(Arguments.read({**model_args, "base": str(artefacts.base)})) as found:
        yield found


@pytest.fixture(scope="session")
def words(resident: Resident, artefacts: Artefacts) -> Iterator[DqreloLM]:
    from dqrelo_gguf.harness.model import DqreloLM

    model = DqreloLM(resident, artefacts.words)
    yield model
    model.close()


@pytest.fixture(scope="session")
def of_delta(words: DqreloLM, manager: TaskManager, datasets_cache: Path) -> dict[str, Any]:
    """The results of a delta, in process."""
    with offline(datasets_cache):
        return evaluated(words, manager)


@pytest.fixture(scope="session")
def of_transformers(
    artefacts: Artefacts,
    manager: TaskManager,
    model_args: dict[str, Any],
    datasets_cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Answers:
    """What the harness's own model `hf` answers with the merged weights."""
    with offline(datasets_cache):
        import torch
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(1)
        path = write_checkpoint(artefacts.merged, TINY / "ft-words", tmp_path_factory.mktemp("merged") / "hf")
        model = HFLM(
            pretrained=str(path),
            dtype="float32",
            device="cpu",
            batch_size=4,
            max_length=model_args["n_ctx"],
            logits_cache=False,  # It mixes up requests whose tokens are the same and whose contexts end elsewhere.
        )
        return answers(evaluated(model, manager))

"""directory: no program that a fine-tune brings along, or names, is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.model.base import GgufModel
from dqrelo_gguf.model.checkpoint import HfCheckpoint
from dqrelo_gguf.model.directory import ModelDirectory
from tests.support.models import edit_json, pico_gguf, pico_tuned

# The conversion of Llama loads a tokenizer of this class with trust_remote_code.
CLASS = "HybridDNATokenizer"


def with_code(folder: Path, config: str, ran: Path) -> Path:
    """A fine-tune with a program, which a description names and which leaves a file when it is run."""
    path = folder / "ft"
    shutil.copytree(pico_tuned("llama"), path)
    (path / "theirs.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Theirs:\n    pass\n")
    edit_json(path / "tokenizer_config.json", tokenizer_class=CLASS)
    edit_json(path / config, auto_map={"AutoTokenizer": ["theirs.Theirs", None], "AutoConfig": "theirs.Theirs"})
    return path


@pytest.mark.parametrize("config", ["tokenizer_config.json", "config.json"])
def test_a_program_of_the_fine_tune_is_not_run(tmp_path: Path, config: str) -> None:
    ran = tmp_path / "ran"
    checkpoint = HfCheckpoint(with_code(tmp_path, config, ran), GgufModel(pico_gguf("llama")))
    with pytest.raises(InputError, match=r"cannot read the hyperparameters and the tokenizer .* not run here"):
        checkpoint.field_names()
    assert not ran.exists()


def test_the_conversion_sees_no_program(tmp_path: Path) -> None:
    """Neither a file of one nor a name of one: a name may be of another repository, which transformers would download."""
    path = with_code(tmp_path, "tokenizer_config.json", tmp_path / "ran")
    for name in ("generation_config.json", "config.99.0.0.json"):
        (path / name).write_text(json.dumps({"auto_map": {"AutoConfig": "o/theirs--theirs.Theirs"}, "other": 1}))
    (tmp_path / "view").mkdir()
    view = ModelDirectory.open(path).make_view(tmp_path / "view")
    assert not list(view.glob("*.py"))
    for name in ("generation_config.json", "config.99.0.0.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((view / name).read_text())
    assert json.loads((view / "config.99.0.0.json").read_text()) == {"other": 1}
    assert "auto_map" in json.loads((path / "tokenizer_config.json").read_text())  # The fine-tune's own stays.

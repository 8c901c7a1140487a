"""The card of a delta whose texts are hostile."""

from __future__ import annotations

from pathlib import Path

import yaml

from dqrelo_gguf.file.container import GGUFValue, ValueType
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.publish.card import model_card
from tests.support.delta_files import meta, write_delta

HOSTILE = "x](http://example.org) <script>alert(1)</script> `a` \n---\nlicense: mit\n---\n# y"


def card_of(path: Path, base: Path, licence: str, repo_url: str) -> str:
    general = {
        "general.license": GGUFValue(licence, ValueType.STRING),
        "general.base_model.0.repo_url": GGUFValue(repo_url, ValueType.STRING),
    }
    write_delta(path, about=meta(base_identity(base), name=HOSTILE, base_name=HOSTILE, general=general))
    return model_card(DeltaReader(path), "o/delta")


def test_texts_of_the_file_mark_nothing_up(small_base: Path, tmp_path: Path) -> None:
    card = card_of(tmp_path / "x.dq.gguf", small_base, HOSTILE, f"https://huggingface.co/{HOSTILE}")
    _, front, body = card.split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"library_name", "tags"}
    assert "<script>" not in body
    assert "](http" not in body
    assert not any(line.startswith("---") for line in body.splitlines())


def test_base_and_licence_are_those_of_the_file(small_base: Path, tmp_path: Path) -> None:
    card = card_of(tmp_path / "x.dq.gguf", small_base, "Apache-2.0", "https://huggingface.co/o/base")
    front = yaml.safe_load(card.split("---\n", 2)[1])
    assert (front["base_model"], front["base_model_relation"], front["license"]) == ("o/base", "adapter", "apache-2.0")

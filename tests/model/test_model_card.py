"""model_card: descriptions are typed, converted or left out with a note; none of them raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dqrelo_gguf.model.model_card import is_sampling_default, model_card, read_object, sampling_defaults


def card(tmp_path: Path, front: str | bytes) -> tuple[dict[str, Any], list[str]]:
    notes: list[str] = []
    raw = front if isinstance(front, bytes) else f"---\n{front}\n---\n# Title\n".encode()
    (tmp_path / "README.md").write_bytes(raw)
    return model_card(tmp_path / "README.md", notes.append), notes


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("version: 1.0", {"version": "1.0"}),
        ("tags: [chat, 2024, yes]", {"tags": ["chat", "2024", "yes"]}),
        ("license: mit\nlanguage: no", {"license": "mit", "language": ["no"]}),
        ("license: [mit, apache-2.0]", {"license": "mit, apache-2.0"}),
        ("name: 2024-13-45", {"name": "2024-13-45"}),
        ("author: .nan\nlicense: ~", {"author": ".nan"}),
        ("base_model: [a/b, {name: c, version: 2}]", {"base_model": ["a/b", {"name": "c", "version": "2"}]}),
        ("widget: [{text: x}]", {}),
        ('tags: ["😀\\t"]', {"tags": ["😀\t"]}),
    ],
)
def test_values_become_texts(front: str, expected: dict[str, Any], tmp_path: Path) -> None:
    assert card(tmp_path, front) == (expected, [])


@pytest.mark.parametrize(
    "front",
    [
        "version: {major: 1}",
        "tags: [[nested]]",
        "base_model: [{name: [a]}]",
        'author: "\\ud800"',
        "tags: {a: b}",
        "a: b: c",
        "- a list",
        "{[1]: 2}: 3",
        "*nowhere",
        "tags: &a [*a]",
        "!!python/object/apply:os.system [x]",
        b"---\nname: \xff\xfe\n---\n",
        "[" * 100000,
        "\x00",
    ],
)
def test_what_has_no_place_is_left_out_with_a_note(front: str | bytes, tmp_path: Path) -> None:
    found, notes = card(tmp_path, front)
    assert found == {}
    assert len(notes) == 1
    assert "README.md" in notes[0]
    assert "\n" not in notes[0]


@pytest.mark.parametrize("raw", [b"", b"# Title\n", b"---\n"])
def test_card_without_front_matter(raw: bytes, tmp_path: Path) -> None:
    assert card(tmp_path, raw)[0] == {}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"top_k": 50.0}, {"top_k": 50}),
        ({"temperature": 1, "top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}),
        ({"sequence": "top_k;temperature"}, {"sequence": "top_k;temperature"}),
        ({"do_sample": True, "eos_token_id": [1, 2], "top_k": None}, {}),
    ],
)
def test_sampling_defaults_get_their_types(config: dict[str, Any], expected: dict[str, Any]) -> None:
    notes: list[str] = []
    found = sampling_defaults(config, notes.append)
    assert found == expected
    assert [type(v) for v in found.values()] == [type(v) for v in expected.values()]
    assert notes == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top_k", 50.5),
        ("top_k", "many"),
        ("top_k", True),
        ("top_k", 1 << 40),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 1.5),
        ("top_p", [0.5]),
        ("repetition_penalty", 0),
        ("mirostat", 3),
        ("sequence", 5),
        ("sequence", ";".join(["top_k"] * 33)),
    ],
)
def test_sampling_default_that_cannot_be_is_left_out_with_a_note(key: str, value: Any) -> None:
    notes: list[str] = []
    assert sampling_defaults({key: value}, notes.append) == {}
    assert len(notes) == 1
    assert key in notes[0]


def test_sampling_default_of_a_gguf() -> None:
    assert is_sampling_default("temp", 0.5)
    assert not is_sampling_default("temp", float("nan"))
    assert not is_sampling_default("top_k", "many")
    assert is_sampling_default("something_new", "x")


@pytest.mark.parametrize("raw", [b"", b"[1]", b"{", b"\xff", b"[" * 100000, b"9" * 5000])
def test_file_that_is_no_object(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_bytes(raw)
    notes: list[str] = []
    assert read_object(tmp_path / "generation_config.json", notes.append) == {}
    assert len(notes) == 1

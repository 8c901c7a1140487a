"""model_file.py: split files, and files that are no model; seen through the base identity, which reads every tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dqrelo_gguf.errors import FormatError, InputError
from dqrelo_gguf.file.fingerprint import base_identity
from dqrelo_gguf.file.model_file import ModelFile, shards
from tests.support.delta_files import Edited, split_base, write_base

# --- split files ---


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_split_base_is_the_same_base(small_base: Path, tmp_path: Path, n: int) -> None:
    paths = split_base(small_base, tmp_path, n)
    whole = base_identity(small_base)
    for path in paths:  # Any shard stands for the model.
        identity = base_identity(path)
        assert identity.digest == whole.digest
        assert np.array_equal(identity.samples, whole.samples)
    assert ModelFile(paths[-1]).name == "base"


def test_shards_are_listed_in_order(small_base: Path, tmp_path: Path) -> None:
    paths = split_base(small_base, tmp_path, 3)
    assert shards(paths[1]) == paths
    assert shards(small_base) == [small_base]


def test_the_missing_shard_is_named(small_base: Path, tmp_path: Path) -> None:
    paths = split_base(small_base, tmp_path, 3)
    paths[1].unlink()
    with pytest.raises(
        InputError, match=r"base-00002-of-00003.gguf: no such file or directory \(3 shards belong to this model\)"
    ):
        base_identity(paths[0])


def test_a_renamed_shard_is_noticed(small_base: Path, tmp_path: Path) -> None:
    paths = split_base(small_base, tmp_path, 2)
    paths[1].rename(tmp_path / "alone.gguf")
    with pytest.raises(FormatError, match=r"is shard 2 of 2, expected 1 of 1. Was it renamed\?"):
        base_identity(tmp_path / "alone.gguf")


def test_swapped_shards_are_noticed(small_base: Path, tmp_path: Path) -> None:
    first, second = split_base(small_base, tmp_path, 2)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(FormatError, match="is shard 2 of 2, expected 1 of 2"):
        base_identity(first)


def test_a_tensor_in_two_shards_is_noticed(small_base: Path, tmp_path: Path) -> None:
    first, second = split_base(small_base, tmp_path, 2)
    edited = Edited(second)
    edited.tensors[0].name = "token_embd.weight"
    edited.save(second)
    with pytest.raises(FormatError, match=r"'token_embd.weight' is in .*/base-00001-of-00002.gguf too"):
        base_identity(first)


def test_a_lost_tensor_is_noticed(small_base: Path, tmp_path: Path) -> None:
    first, second = split_base(small_base, tmp_path, 2)
    edited = Edited(second)
    edited.tensors.pop()
    edited.save(second)
    with pytest.raises(FormatError, match="its shards have 7 tensors, expected 8"):
        base_identity(first)


# --- what is no base ---


def test_an_adapter_is_no_base(small_delta: Path) -> None:
    with pytest.raises(InputError, match="is an adapter, expected a model"):
        base_identity(small_delta)


def test_a_file_without_architecture_is_no_base(tmp_path: Path) -> None:
    edited = Edited(write_base(tmp_path / "a.gguf"))
    del edited.fields["general.architecture"]
    with pytest.raises(InputError, match=r"has no general\.architecture"):
        base_identity(edited.save(tmp_path / "b.gguf"))


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.gguf: no such file or directory$"):
        base_identity(tmp_path / "none.gguf")


def test_a_name_of_zero_shards_is_a_plain_name(small_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "base-00000-of-00000.gguf"
    path.write_bytes(small_base.read_bytes())
    assert base_identity(path).digest == base_identity(small_base).digest

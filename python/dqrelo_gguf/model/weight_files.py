"""Which files of a Hugging Face directory hold its weights: transformers' rules, and a refusal where two sets could be meant."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file.lfs import refuse_lfs_pointer
from dqrelo_gguf.file.open_file import require_file

# In the order in which transformers looks for them.
_FORMATS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
# What holds weights in some program's form.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
# Names that end so and hold none: the states of a training run.
_STATES = re.compile(r"(optimizer|scheduler|scaler|rng_state|training_args|trainer_state).*")
_MAX_SHOWN = 4

# What a directory without weights may be instead: a pattern of its entries' names, and what to do with it.
_INSTEAD = (
    (
        r"global_step\d+|zero_pp_rank_.*",
        "is a DeepSpeed checkpoint. Run its zero_to_fp32.py and load and save the result",
    ),
    (r".*\.distcp|pytorch_model_fsdp_\d+", "is a distributed checkpoint (FSDP). Run accelerate merge-weights first"),
    (r"checkpoint-\d+", "is the output of a training run. Give one of its checkpoints"),
    (r".*\.gguf", "is no Hugging Face directory. Give the GGUF itself"),
    (
        r"consolidated.*\.(safetensors|pth)",
        "has the weights in the form of their author. Use the model's Hugging Face form",
    ),
    (
        r"(pytorch_)?model.*\.(safetensors|bin)",
        "is not the name that transformers loads. Name it model.safetensors if it is meant",
    ),
    (
        r".*\.(pt|pth|ckpt|h5|msgpack|onnx)",
        "is no format that is read here. Load the model and save it with save_pretrained",
    ),
)


@dataclass(frozen=True)
class WeightFiles:
    """The files that count.

    Args:
        names: of the files with weights, sorted.
        index: the file of each weight, by the weight's name; empty where there is no index.
        index_name: of the index, or None.
        ignored: other files with weights, which nobody reads.
    """

    names: list[str]
    index: dict[str, str]
    index_name: str | None
    ignored: list[str]


def find_weight_files(path: Path) -> WeightFiles:
    """Finds the files that transformers would load.

    Raises:
        InputError: there are none, one is missing, or more than one set could be meant.
    """
    entries = sorted(p.name for p in path.iterdir())
    for name in entries:
        refuse_lfs_pointer(path / name)
    if "adapter_config.json" in entries:
        _refuse_adapter(path, entries)
    for stem, suffix in _FORMATS:
        found = _of_format(path, entries, stem, suffix)
        if found is not None:
            return found
    raise InputError(f"{path}: {_what_instead(entries)}")


def _refuse_adapter(path: Path, entries: list[str]) -> None:
    whole = [name for name in entries if re.fullmatch(r"(pytorch_)?model.*\.(safetensors|bin)", name)]
    if whole:
        raise InputError(
            f"{path}: has two sets of weights, the adapter of adapter_config.json and {_some(whole)}. Move away the one "
            "that is not meant; an adapter has to be merged into its base first"
        )
    raise InputError(f"{path}: is a LoRA adapter, expected a full fine-tune. Merge it into its base first")


def _of_format(path: Path, entries: list[str], stem: str, suffix: str) -> WeightFiles | None:
    """The files that count if the directory has weights in this format."""
    single, index_name = stem + suffix, f"{stem}{suffix}.index.json"
    families = _shard_families(entries, stem, suffix)
    index = _read_index(path / index_name) if index_name in entries else {}
    indexed = sorted(set(index.values()))
    if single in entries:
        others = {name for names in (indexed, *families.values()) for name in names} - {single}
        present = sorted(name for name in others if name in entries)
        _refuse_second_set(path, single, index_name, [n for n in indexed if n != single], present)
        indexed = [single]
    elif not indexed:
        indexed = _only_family(path, families)
    if not indexed:
        return None
    missing = [name for name in indexed if name not in entries]
    if missing:
        raise InputError(f"{path}: {_missing_text(missing[0], len(indexed), index_name if index else None, families)}")
    ignored = [n for n in entries if n.endswith(_WEIGHT_SUFFIXES) and n not in indexed and not _STATES.fullmatch(n)]
    return WeightFiles(indexed, index, index_name if index else None, ignored)


def _refuse_second_set(path: Path, single: str, index_name: str, indexed: list[str], present: list[str]) -> None:
    """Beside the one file that transformers loads there must be no shards, and no index of others.

    Args:
        path: the directory.
        single: that file's name.
        index_name: the index's.
        indexed: other files that it names.
        present: other files that are there, by the index or by their names.
    """
    if indexed and not any(name in present for name in indexed):
        raise InputError(
            f"{path}: {index_name} is stale: of the {len(indexed)} files that it names beside {single}, none is there. "
            f"transformers loads {single}; remove the index if that is meant"
        )
    if present:
        raise InputError(
            f"{path}: has two sets of weights, {single} and {_some(present)}. transformers loads {single}; "
            f"move away the one that is not meant, and {index_name} with the shards"
        )


def _shard_families(entries: list[str], stem: str, suffix: str) -> dict[str, list[str]]:
    """The whole list of shards of each `model-*-of-N`, by N, of which at least one is there."""
    pattern = re.compile(rf"{stem}-(\d{{5}})-of-(\d{{5}}){re.escape(suffix)}")
    numbers = sorted({m[2] for m in map(pattern.fullmatch, entries) if m is not None})
    return {n: [f"{stem}-{i + 1:05d}-of-{n}{suffix}" for i in range(int(n))] for n in numbers}


def _only_family(path: Path, families: dict[str, list[str]]) -> list[str]:
    if len(families) > 1:
        sets = " and ".join(names[0] for names in families.values())
        raise InputError(
            f"{path}: has {len(families)} sets of weights ({sets}) and no index. Move away those not meant"
        )
    return next(iter(families.values()), [])


def _missing_text(name: str, n_files: int, index_name: str | None, families: dict[str, list[str]]) -> str:
    text = f"shard '{name}' is missing, expected {n_files} files. Incomplete download?"
    others = [names[0] for names in families.values() if name not in names]
    if index_name is not None and others:
        text += f" Or {index_name} is stale: beside it lies another set, {others[0]}"
    return text


def _read_index(index: Path) -> dict[str, str]:
    """The file of each weight.

    Raises:
        InputError: it is no index, or names files elsewhere.
    """
    require_file(index)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(PurePosixPath(file)) for name, file in weight_map.items()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as e:
        raise InputError(f"{index}: is not an index of weight files. Truncated download?") from e
    for file in files.values():
        if PurePosixPath(file).name != file or "\\" in file:
            raise InputError(f"{index}: names the file '{file}', expected one beside it")
    if not files:
        raise InputError(f"{index}: is not an index of weight files, it names none")
    return files


def _what_instead(entries: list[str]) -> str:
    for pattern, advice in _INSTEAD:
        found = [name for name in entries if re.fullmatch(pattern, name)]
        if found:
            return f"has no model.safetensors; {_some(found)}: {advice}"
    return "has no model.safetensors, expected a Hugging Face model directory"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more

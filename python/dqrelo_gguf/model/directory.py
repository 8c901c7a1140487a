"""A Hugging Face directory as llama.cpp's conversion is to see it: the files that count, and descriptions that it can take.

The conversion decides by itself which files hold weights, and it takes descriptions as they are. So it is given another
directory of the same name, with links to the files that count and with descriptions that were checked.

Some of its tokenizers are loaded with trust_remote_code: then a program that a description names is run, one of the directory or
of any repository of the Hub. The other directory names none and has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from dqrelo_gguf.errors import InputError, printable
from dqrelo_gguf.model.base import EndTokens
from dqrelo_gguf.model.model_card import SAMPLING_KEYS, model_card, read_object, sampling_defaults
from dqrelo_gguf.model.weight_files import WeightFiles, find_weight_files
from dqrelo_gguf.model.weight_headers import check_weight_headers

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
_CARD = "README.md"
# The key by which a description names a program, and the descriptions that transformers looks for it in: some choose others by name.
_CODE = "auto_map"
_CONFIGS = "*config*.json"
# The files that describe a tokenizer of Hugging Face's, of any class; and of them those that have the vocabulary, or make it.
_TOKENIZER = re.compile(r"(special_tokens|added_tokens|token|.*vocab|merges|tekken).*|.*\.(model|tiktoken)")
_VOCABULARY = re.compile(r"tokenizer\.jsonl?|.*vocab.*|merges\.txt|tekken\.json|.*\.(model|tiktoken)")


@dataclass
class ModelDirectory:
    """What a directory holds.

    Args:
        path: the directory.
        config: its config.json; empty where it has none.
        generation_config: its generation_config.json; empty where it has none.
        files: with its weights.
        tensor_names: of all tensors in them.
        end_tokens: what generation_config.json states, or else config.json; None where neither does.
        notes: what of it is left out.
        has_code: a description names a program of the fine-tune's own.
    """

    path: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    files: WeightFiles
    tensor_names: list[str]
    end_tokens: EndTokens | None = None
    notes: list[str] = field(default_factory=list)
    has_code: bool = False

    @classmethod
    def open(cls, path: Path, sizes: Mapping[str, int] = MappingProxyType({})) -> ModelDirectory:
        """Checks a directory by the headers of its files.

        Args:
            path: of it.
            sizes: bytes of files of which the headers alone are here, by name.

        Raises:
            InputError: it is no whole model in a form that is read.
        """
        files = find_weight_files(path)
        notes: list[str] = []
        config = _read_config(path / CONFIG)
        generation_config = read_object(path / GENERATION_CONFIG, notes.append)
        tensor_names = check_weight_headers(path, files, config, sizes)
        named = config.get("transformers_weights")
        if named is not None and named not in (*files.names, files.index_name):
            raise InputError(
                f"{path / CONFIG}: names {printable(str(named))[:100]} as the weights (transformers_weights), beside "
                f"{files.names[0]}. Leave one set, as model.safetensors"
            )
        if files.ignored:
            notes.append(f"{path.name}: {', '.join(files.ignored)} not read, as in transformers")
        end_tokens = _end_tokens((generation_config, config, config.get("text_config")), notes)
        return cls(path, config, generation_config, files, tensor_names, end_tokens, notes)

    def make_view(self, folder: Path) -> Path:
        """Makes another directory in an empty folder, as the conversion is to see this one; returns it."""
        target = folder / (self.path.name if self.path.name not in ("", "..") else self.path.resolve().name)
        target.mkdir()
        own = self._descriptions()
        hidden = {*self.files.ignored, *own, _CARD, GENERATION_CONFIG}
        indices = {"model.safetensors.index.json", "pytorch_model.bin.index.json"} - {self.files.index_name}
        for entry in self.path.iterdir():
            if entry.name not in hidden | indices and entry.suffix != ".py":
                (target / entry.name).symlink_to(entry.absolute())
        for name, text in own.items():
            (target / name).write_text(text, encoding="utf-8")
        return target

    def fault(self) -> str | None:
        """What the conversion may have failed for: a description that is missing or damaged; None where all look whole."""
        configs = [c for c in (self.config, self.config.get("text_config")) if isinstance(c, dict)]
        if "ssm_cfg" not in self.config and not any(c.get("architectures") for c in configs):
            return (
                f"{self.path / CONFIG}: names no class (architectures), expected one such as LlamaForCausalLM. "
                "Take the file that was saved with the weights"
            )
        files = sorted(p for p in self.path.iterdir() if _TOKENIZER.fullmatch(p.name) and p.is_file())
        for file in files:
            if file.stat().st_size == 0:
                return f"{file}: is empty. Truncated download?"
            try:
                if file.suffix == ".json":
                    json.loads(file.read_bytes().decode("utf-8"))
            except (ValueError, RecursionError) as e:
                return not_json(file, e)
        if not any(_VOCABULARY.fullmatch(file.name) for file in files):
            return (
                f"{self.path}: has no tokenizer (tokenizer.json, tokenizer.model, vocab.json, ...). Copy the files of the one that "
                "it was tuned with, mostly the base's, from its Hugging Face directory"
            )
        return None

    def _descriptions(self) -> dict[str, str]:
        """The descriptions that are not taken as they are, by file name."""
        texts = {}
        card = model_card(self.path / _CARD, self.notes.append)
        if card:
            texts[_CARD] = f"---\n{yaml.safe_dump(card, allow_unicode=True)}---\n"
        sampling = sampling_defaults(self.generation_config, self.notes.append)
        if self.generation_config:
            others = {key: value for key, value in self.generation_config.items() if key not in SAMPLING_KEYS}
            texts[GENERATION_CONFIG] = json.dumps(others | sampling)
        origin = self.config.get("_name_or_path")
        if origin is not None and not isinstance(origin, str):
            self.notes.append(f"{CONFIG}: _name_or_path is {printable(repr(origin))[:40]}, and is left out")
            texts[CONFIG] = json.dumps({key: value for key, value in self.config.items() if key != "_name_or_path"})
        for path in self.path.glob(_CONFIGS):
            own = texts.get(path.name)
            described = json.loads(own) if own is not None else read_object(path, lambda _: None)
            if _CODE in described:
                self.has_code = True
                texts[path.name] = json.dumps({key: value for key, value in described.items() if key != _CODE})
        return texts


def _end_tokens(sources: Sequence[Any], notes: list[str]) -> EndTokens | None:
    """The first of the sources that says something decides."""
    for source in sources:
        value = source.get("eos_token_id") if isinstance(source, dict) else None
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            known = [i for i in ids if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 1 << 31]
            if len(known) < len(ids):
                notes.append("eos_token_id: has values that are no token ids, which are left out")
            return EndTokens(tuple(dict.fromkeys(known)), isinstance(value, list)) if known else None
    return None


def not_json(path: object, error: Exception) -> str:
    """That a file is not JSON, and why."""
    return f"{path}: is not JSON ({printable(str(error))[:100]}). Truncated download?"


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent}: has no {CONFIG}, expected a Hugging Face model directory")
    try:
        config = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise InputError(not_json(path, e)) from e
    if not isinstance(config, dict):
        raise InputError(f"{path}: is no JSON object, expected a model's configuration")
    return config

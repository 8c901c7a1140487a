"""What lies in a folder elsewhere: a store lists it, and of a web server the names that model directories have are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from dqrelo_gguf.address import cache, hub, settings
from dqrelo_gguf.address.choose import SHARDS, Kind, choose, no_shards
from dqrelo_gguf.address.parse import HubAddress, UrlAddress, is_inside
from dqrelo_gguf.address.remote import RemoteFile
from dqrelo_gguf.address.store import StoreSource
from dqrelo_gguf.errors import InputError, NotThereError

_MAX_SHARDS = 1000
_SINGLE = "model.safetensors"
INDEX = f"{_SINGLE}.index.json"
# A web server does not list its folders. These are all that llama.cpp's conversion, and this package, look for beside the weights.
_KNOWN = (
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "params.json",
    "rwkv_vocab_v20230424.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "hf_quant_config.json",
    "modules.json",
    "adapter_config.json",
    "README.md",
)


@dataclass(frozen=True)
class Folder:
    """A model directory elsewhere.

    Args:
        label: its address, with its version where it has one as a whole.
        name: of the folder or the repository, from which a fine-tune without another name has its own.
        small: files that were fetched into the cache, by name.
        shards: files of weights, which stay where they are.
    """

    label: str
    name: str
    small: Mapping[str, Path]
    shards: Mapping[str, RemoteFile]


def open_folder(address: HubAddress | UrlAddress) -> Folder:
    """Fetches what is small of a model directory, and looks at the rest.

    Raises:
        InputError, DiskFullError: it cannot be had, or has no safetensors.
    """
    if hub.is_offline() if isinstance(address, HubAddress) else settings.is_offline():
        raise InputError(
            f"{address.label}: --stream reads over the network, and there is none by {settings.OFFLINE} or {settings.HUB_OFFLINE}. "
            "Leave out --stream: what is in the cache is then taken"
        )
    if isinstance(address, HubAddress):
        label, small, sources = hub.fetch_small(address)
        _refuse_adapter(address.label, small)
        name = (address.path or address.repo).rpartition("/")[2]
        return Folder(label, name, small, {n: RemoteFile(source, n_bytes) for n, (source, n_bytes) in sources.items()})
    if address.name.endswith((".gguf", ".safetensors", ".bin")):
        raise InputError(
            f"{address.label}: is a file, and --stream reads the folder of a model in safetensors. "
            "Give the folder, or leave out --stream"
        )
    small, shards = _known(address) if address.scheme in ("http", "https") else _listed(address)
    return Folder(address.label, address.name, small, shards)


def _known(address: UrlAddress) -> tuple[dict[str, Path], dict[str, RemoteFile]]:
    small = {name: path for name in _KNOWN for path in _fetched(address, name)}
    _refuse_adapter(address.label, small)
    wanted = dict.fromkeys([*_indexed(small.get(INDEX), address.label), _SINGLE])
    shards: dict[str, RemoteFile] = {}
    for name in wanted:
        try:
            shards[name] = cache.remote(_inside(address, name))
        except NotThereError:
            if name != _SINGLE:
                raise
    if not shards:
        raise InputError(
            f"{address.label}: has no {_SINGLE} and no {INDEX}, expected the folder of a model. "
            "Give what lies elsewhere by another address, or download it"
        )
    return small, shards


def _listed(address: UrlAddress) -> tuple[dict[str, Path], dict[str, RemoteFile]]:
    prefix = f"{address.path}/"
    names = [prefix + name for name in StoreSource(address).names_inside()]
    if not names:
        raise InputError(f"{address.label}: is no folder in which something lies")
    chosen, is_directory = choose(names, address.path, Kind.TUNED, address.label)
    chosen = [name.removeprefix(prefix) for name in chosen]
    if not is_directory or not any(name.endswith(SHARDS) for name in chosen):
        raise InputError(no_shards(address.label, chosen))
    small = {n: path for n in chosen if not n.endswith(SHARDS) for path in _fetched(address, n)}
    _refuse_adapter(address.label, small)
    return small, {n: cache.remote(_inside(address, n)) for n in chosen if n.endswith(SHARDS)}


def _refuse_adapter(label: str, small: Mapping[str, Path]) -> None:
    if "adapter_config.json" in small:
        raise InputError(f"{label}: is an adapter, which is small. Leave out --stream: it is then downloaded")


def _inside(address: UrlAddress, name: str) -> UrlAddress:
    written = quote(name) if address.scheme in ("http", "https") else name
    return replace(address, path=f"{address.path}/{written}")


def _fetched(address: UrlAddress, name: str) -> Iterator[Path]:
    """A small file in the cache; nothing where there is none."""
    try:
        yield cache.fetch(_inside(address, name))[0]
    except NotThereError:
        return


def _is_shard(name: str) -> bool:
    return name.endswith(SHARDS) and is_inside(name) and "/" not in name


def _indexed(index: Path | None, label: str) -> list[str]:
    """The shards that an index names; what is no index, or names other files, is refused when the directory is opened."""
    if index is None:
        return []
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted({name for name in named if isinstance(name, str) and _is_shard(name)})
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return []
    if len(names) > _MAX_SHARDS:
        raise InputError(f"{label}: its index names {len(names)} files, expected at most {_MAX_SHARDS}")
    return names

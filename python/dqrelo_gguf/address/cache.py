"""Files from web servers and object stores: where they are kept, by address and version.

    CACHE/files/KEY/address           what the folder is of, without a query
    CACHE/files/KEY/current           the version that was seen last, for times without network
    CACHE/files/KEY/VERSION/NAME      a file, or all parts of a split model
    CACHE/files/KEY/VERSION.used      who uses the version, and when it was last resolved (marks.py)

KEY and VERSION are hashes: neither a query nor a server decides a path. What lies there is listed by kept.py and removed by prune.py.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dqrelo_gguf.address import marks, settings
from dqrelo_gguf.address.choose import shard_names
from dqrelo_gguf.address.download import download, require_room
from dqrelo_gguf.address.kept import ADDRESS, CURRENT, KEY, files_folder
from dqrelo_gguf.address.parse import UrlAddress, is_inside
from dqrelo_gguf.address.prune import keep_within_limit
from dqrelo_gguf.address.reading import ask
from dqrelo_gguf.address.remote import RemoteFile
from dqrelo_gguf.address.source import FileFacts, Source
from dqrelo_gguf.address.store import StoreSource
from dqrelo_gguf.address.turn import turn
from dqrelo_gguf.address.web import HttpSource
from dqrelo_gguf.errors import InputError, raise_os_error


def fetch(address: UrlAddress) -> tuple[Path, str]:
    """A file in the cache, with all parts of a split model; fetched where it is missing, or has another version by now.

    Returns:
        Its path, and its address with its version.

    Raises:
        InputError, DiskFullError: it cannot be had.
    """
    parts = _parts(address)
    first = min(parts, key=lambda part: part.path)
    folder = files_folder() / _key(first.url)
    settings.cache_max_bytes()  # A value that is none is refused before the download.
    try:
        if settings.is_offline():
            return _cached(address, folder, parts), f"{address.label} (from the cache)"
        return _fetch(address, folder, parts)
    except OSError as e:
        raise_os_error(e, str(folder))


def remote(address: UrlAddress) -> RemoteFile:
    """A file that stays where it is.

    Raises:
        InputError: as RemoteFile.
    """
    return RemoteFile(_source(address))


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _parts(address: UrlAddress) -> list[UrlAddress]:
    """The address, or those of all parts of a split model, the given one first."""
    folder, slash, name = address.path.rpartition("/")
    names = shard_names(name, address.label)
    if len(names) > 1 and address.query:
        raise InputError(
            f"{address.label}: is a part of {len(names)}, and its query belongs to this part alone. Fetch them yourself"
        )
    return [replace(address, path=f"{folder}{slash}{n}") for n in names]


def _name(address: UrlAddress) -> str:
    """What the file is called here."""
    name = address.name
    if not is_inside(name) or "/" in name or len(name.encode()) > 200:
        raise InputError(f"{address.label}: the name of the file is none that a file can have here")
    return name


def _cached(address: UrlAddress, folder: Path, parts: Sequence[UrlAddress]) -> Path:
    try:
        version = (folder / CURRENT).read_text().strip()
    except (OSError, UnicodeDecodeError):
        version = ""
    paths = [folder / version / _name(part) for part in parts]
    if KEY.fullmatch(version) and paths[0].parent.is_dir():
        marks.use(folder, version)
    if not KEY.fullmatch(version) or not all(path.is_file() for path in paths):
        raise InputError(
            f"{address.label}: is not in the cache, and there is no network by {settings.OFFLINE} or HF_HUB_OFFLINE"
        )
    return paths[0]


def _fetch(address: UrlAddress, folder: Path, parts: Sequence[UrlAddress]) -> tuple[Path, str]:
    sources = [_source(part) for part in parts]
    facts = [ask(source) for source in sources]
    if len(parts) > 1 and any(fact.n_bytes is None for fact in facts):
        raise InputError(
            f"{address.label}: is a part of {len(parts)}, and the server does not say how large each is. Fetch them yourself"
        )
    in_order = sorted(range(len(parts)), key=lambda i: parts[i].path)
    version = _version([facts[i] for i in in_order])
    paths = [folder / version / _name(part) for part in parts]
    folder.mkdir(parents=True, exist_ok=True)
    marks.use(folder, version)  # From here on nothing of this version is removed.
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    if missing:
        require_room(sum(facts[i].n_bytes or 0 for i in missing), folder, address.label)
        _note(folder, {ADDRESS: address.without_query})
    for i in missing:
        download(sources[i], facts[i], paths[i])
    _note(folder, {ADDRESS: address.without_query, CURRENT: version})
    if missing:
        marks.use(folder, version)
        keep_within_limit()
    return paths[0], address.label if facts[0].version is None else f"{address.label} (version {facts[0].version})"


def _note(folder: Path, notes: Mapping[str, str]) -> None:
    """Writes small files about an address, each as a whole."""
    with turn(folder / CURRENT):
        for name, text in notes.items():
            made = folder / f".{name}.{secrets.token_hex(4)}"
            made.write_text(f"{text}\n", encoding="utf-8")
            made.replace(folder / name)


def _source(address: UrlAddress) -> Source:
    if address.scheme in ("s3", "gs"):
        return StoreSource(address)
    return HttpSource(address.url, address.label)


def _version(facts: Sequence[FileFacts]) -> str:
    """Of all parts together; a new one each time where the server does not tell versions apart."""
    return _key("\n".join(f"{fact.n_bytes} {fact.version or secrets.token_hex(16)}" for fact in facts))

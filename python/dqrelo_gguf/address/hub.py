"""Files of the Hugging Face Hub, kept where huggingface_hub keeps them: a download of either serves both.

The cache's layout is documented by huggingface_hub: `blobs/` has the files by their digests, `snapshots/COMMIT/` links to them
by their names, `refs/` has the commit of a branch or a tag as it was last seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dqrelo_gguf.address import settings
from dqrelo_gguf.address.choose import SHARDS, Kind, choose, no_shards
from dqrelo_gguf.address.download import download, require_room
from dqrelo_gguf.address.parse import HubAddress, is_inside
from dqrelo_gguf.address.reading import with_tries
from dqrelo_gguf.address.source import Digest, FileFacts
from dqrelo_gguf.address.turn import turn
from dqrelo_gguf.address.web import HttpSource, body, open_url, require_ok
from dqrelo_gguf.errors import InputError, NotThereError, raise_os_error

_DEFAULT = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_LISTING_BYTES = 64 << 20
_PROBLEMS = {
    "RepoNotFound": "there is no such repository, or it is private: log in with `hf auth login`, or set HF_TOKEN",
    "GatedRepo": "has to be asked for on its page, and then needs `hf auth login` or HF_TOKEN",
    "RevisionNotFound": "has no such revision; it stands last, as in hf://owner/repo/file@revision",
}
_NO_ACCESS = frozenset({401, 403})


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at a commit.

    Args:
        name: its path there.
        n_bytes: of it.
        digest: of its bytes.
    """

    name: str
    n_bytes: int
    digest: Digest


@dataclass(frozen=True)
class _Repository:
    """A repository at a commit, and its folder in the cache."""

    address: HubAddress
    commit: str
    files: dict[str, HubFile]
    folder: Path

    def path(self, name: str) -> Path:
        """Where a file lies, by its name."""
        return self.folder / "snapshots" / self.commit / name

    def is_here(self, name: str) -> bool:
        return self.path(name).exists()


def fetch(address: HubAddress, kind: Kind) -> tuple[Path, str]:
    """The files of an address in the cache, fetched where they are missing.

    Args:
        address: of a repository, a folder or a file.
        kind: what it is wanted for.

    Returns:
        The path of the file, or of a directory of links to the files; and the address at its commit.

    Raises:
        InputError, DiskFullError: they cannot be had.
    """
    constants = _constants()
    folder = Path(constants.HF_HUB_CACHE) / f"models--{address.repo.replace('/', '--')}"
    repository = _cached(address, folder) if is_offline() else _listed(address, folder, constants.ENDPOINT)
    names, is_directory = choose(repository.files, address.path, kind, address.label)
    missing = [repository.files[name] for name in names if not repository.is_here(name)]
    if missing:
        _fetch_all(repository, missing, constants.ENDPOINT)
    path = _directory(repository, names) if is_directory else repository.path(names[0])
    return path, address.at(repository.commit, None if is_directory else names[0])


def fetch_small(address: HubAddress) -> tuple[str, dict[str, Path], dict[str, tuple[HttpSource, int]]]:
    """A model directory without its weights.

    Args:
        address: of a repository or a folder.

    Returns:
        The address at its commit; the path of each small file in the cache, by name; where each file of safetensors lies, and its bytes.

    Raises:
        InputError, DiskFullError: it cannot be had, or is no directory with safetensors.
    """
    constants = _constants()
    folder = Path(constants.HF_HUB_CACHE) / f"models--{address.repo.replace('/', '--')}"
    repository = _listed(address, folder, constants.ENDPOINT)
    names, is_directory = choose(repository.files, address.path, Kind.TUNED, address.label)
    shards = [name for name in names if name.endswith(SHARDS)]
    if not is_directory or not shards:
        raise InputError(no_shards(address.label, names))
    small = [repository.files[name] for name in names if name not in shards]
    _fetch_all(repository, [file for file in small if not repository.is_here(file.name)], constants.ENDPOINT)
    # Their versions are those that the server states, and not the digests of the list, which nothing is compared with here.
    sources = {Path(n).name: (_source(repository, n, constants.ENDPOINT), repository.files[n].n_bytes) for n in shards}
    return address.at(repository.commit), {Path(f.name).name: repository.path(f.name) for f in small}, sources


def is_offline() -> bool:
    """True if nothing may be asked for, or not of the Hub: huggingface_hub has a variable of its own for that."""
    return settings.is_offline() or bool(_constants().HF_HUB_OFFLINE)


def _source(repository: _Repository, name: str, endpoint: str, digest: Digest | None = None) -> HttpSource:
    url = f"{endpoint}/{repository.address.repo}/resolve/{repository.commit}/{quote(name)}"
    return HttpSource(url, repository.address.at(repository.commit, name), _headers(), digest)


def _constants() -> Any:
    """What huggingface_hub takes from the environment: folders, the Hub's address, whether it may be asked."""
    try:
        from huggingface_hub import constants
    except ImportError as e:
        raise InputError("hf:// addresses need the package huggingface_hub: pip install 'dqrelo-gguf[remote]'") from e
    return constants


def endpoint() -> str:
    """Where the Hub is."""
    return str(_constants().ENDPOINT)


def require_user(label: str) -> None:
    """Makes sure that the Hub can be reached and knows the user's token.

    Args:
        label: what for, in the message.

    Raises:
        InputError: it cannot, or does not.
    """
    url = f"{endpoint()}/api/whoami-v2"
    if is_offline():
        raise InputError(f"{label}: there is no network by {settings.OFFLINE} or HF_HUB_OFFLINE")
    if "authorization" not in _headers():
        raise InputError(f"{label}: needs a token: log in with `hf auth login`, or set HF_TOKEN")
    with_tries(lambda: _read_user(url, label))


def _read_user(url: str, label: str) -> None:
    with open_url(url, label, _headers()) as response:
        if response.status_code in _NO_ACCESS:
            raise InputError(f"{label}: the Hub does not know the token that is set. Log in with `hf auth login`")
        require_ok(response, label)


def _headers() -> dict[str, str]:
    """With the user's token, where there is one: as huggingface_hub finds it."""
    utils: Any = importlib.import_module("huggingface_hub.utils")
    made: dict[str, str] = utils.build_hf_headers(library_name="dqrelo-gguf")
    return made


def _listed(address: HubAddress, folder: Path, endpoint: str) -> _Repository:
    """The repository as the Hub lists it. The revision's commit is noted for times without network."""
    revision = address.revision or _DEFAULT
    answer = _ask(f"{endpoint}/api/models/{address.repo}/revision/{quote(revision, safe='')}?blobs=true", address.label)
    commit = answer.get("sha")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise InputError(f"{address.label}: the Hub names no commit of it")
    siblings = answer.get("siblings")
    files = [_file(entry, address.label) for entry in (siblings if isinstance(siblings, list) else [])]
    if revision != commit:
        _note_commit(folder / "refs" / revision, commit)
    return _Repository(address, commit, {file.name: file for file in files}, folder)


def _ask(url: str, label: str) -> dict[str, Any]:
    """The Hub's answer, a JSON object.

    Raises:
        InputError: there is none.
    """
    raw = bytearray()

    def read() -> None:
        raw.clear()
        with open_url(url, label, _headers()) as response:
            code = response.headers.get("X-Error-Code", "")
            if code not in _PROBLEMS and response.status_code in _NO_ACCESS:
                code = "RepoNotFound"
            if code in _PROBLEMS:
                kind = InputError if code == "GatedRepo" else NotThereError
                raise kind(f"{label}: {_PROBLEMS[code]}")
            require_ok(response, label)
            for piece in body(response, label):
                raw.extend(piece)
                if len(raw) > _MAX_LISTING_BYTES:
                    raise InputError(f"{label}: its list of files has over {_MAX_LISTING_BYTES} bytes")

    with_tries(read)
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise InputError(f"{label}: the Hub's answer is no JSON object. Is HF_ENDPOINT right?")
    return answer


def _file(entry: Any, label: str) -> HubFile:
    """A file out of the Hub's list, of which nothing is believed."""
    entry = entry if isinstance(entry, dict) else {}
    name, n_bytes, blob, lfs = (entry.get(key) for key in ("rfilename", "size", "blobId", "lfs"))
    if not isinstance(name, str) or not is_inside(name):
        raise InputError(f"{label}: the Hub lists a file that does not lie inside of the repository")
    sha256 = lfs.get("sha256", lfs.get("oid")) if isinstance(lfs, dict) else None
    if isinstance(lfs, dict):
        n_bytes = lfs.get("size", n_bytes)
    if not isinstance(n_bytes, int) or isinstance(n_bytes, bool) or not 0 <= n_bytes < 1 << 63:
        raise InputError(f"{label}: the Hub does not say how large {name} is")
    if isinstance(sha256, str) and _SHA256.fullmatch(sha256):
        return HubFile(name, n_bytes, Digest("sha256", sha256))
    if sha256 is None and isinstance(blob, str) and _COMMIT.fullmatch(blob):
        return HubFile(name, n_bytes, Digest("git-sha1", blob))
    raise InputError(f"{label}: the Hub gives no digest of {name}")


def _note_commit(path: Path, commit: str) -> None:
    """Keeps the commit of a branch; a cache that cannot be written is no reason to stop."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        made.write_text(commit)
        made.replace(path)


def _cached(address: HubAddress, folder: Path) -> _Repository:
    """The repository as far as it is in the cache."""
    revision = address.revision or _DEFAULT
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text().strip()
        except (OSError, UnicodeDecodeError):
            commit = ""
    snapshot = folder / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not snapshot.is_dir():
        raise InputError(
            f"{address.label}: is not in the cache, and there is no network by {settings.OFFLINE} or HF_HUB_OFFLINE"
        )
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    unknown = Digest("sha256", "")
    return _Repository(address, commit, {name: HubFile(name, 0, unknown) for name in names}, folder)


def _fetch_all(repository: _Repository, files: Sequence[HubFile], endpoint: str) -> None:
    """Downloads files into the cache and links them by their names."""
    label = repository.address.label
    blobs, locks = repository.folder / "blobs", repository.folder.parent / ".locks" / repository.folder.name
    try:
        for folder in (blobs, locks):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise_os_error(e, f"{label}: the cache {repository.folder.parent}")
    require_room(sum(file.n_bytes for file in files), blobs, label)
    for file in files:
        source = _source(repository, file.name, endpoint, file.digest)
        blob = blobs / file.digest.value
        facts = FileFacts(file.n_bytes, file.digest.value, has_ranges=file.n_bytes > 0, digest=file.digest)
        download(source, facts, blob, locks / f"{file.digest.value}.lock")  # huggingface_hub takes the same lock.
        _link(repository.path(file.name), blob)


def _link(path: Path, blob: Path) -> None:
    """Gives a file of the cache a name; a copy where the system has no links."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            made.symlink_to(os.path.relpath(blob, path.parent))
        except (OSError, NotImplementedError):
            shutil.copyfile(blob, made)
        made.replace(path)
    except OSError as e:
        raise_os_error(e, str(path))


def _directory(repository: _Repository, names: Sequence[str]) -> Path:
    """A directory of links to these files, with the repository's name: messages and the delta's name come from it."""
    address = repository.address
    key = hashlib.sha256(address.path.encode()).hexdigest()[:8]
    folder = settings.cache_folder() / "hub" / address.repo.replace("/", "--") / repository.commit / key
    target = folder / (address.path or address.repo).rpartition("/")[2]
    links = {Path(name).name: repository.path(name).absolute() for name in names}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with turn(target):
            if not target.is_dir() or {p.name for p in target.iterdir() if p.exists()} != set(links):
                _make_directory(target, links)
    except OSError as e:
        raise_os_error(e, str(target))
    return target


def _make_directory(target: Path, links: Mapping[str, Path]) -> None:
    """Makes a directory of links, in the place of one with others."""
    made = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    made.mkdir()
    for name, path in links.items():
        (made / name).symlink_to(path)
    if target.exists():
        shutil.rmtree(target)
    made.replace(target)

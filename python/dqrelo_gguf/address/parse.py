"""What an address is: `hf://owner/repo[/file][@revision]`, `s3://`, `gs://`, `https://`, `http://` and `file://`.

Nothing here opens a file or a connection. What is shown of an address never holds a query string, which may be a signature.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import url2pathname

from dqrelo_gguf.address import settings
from dqrelo_gguf.errors import InputError, shown

SCHEMES = ("hf", "s3", "gs", "https", "http", "file")
_FORM = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
# What is left of an address that went through pathlib.
_COLLAPSED = re.compile(rf"(?:{'|'.join(SCHEMES)}):/(?!/)")
# Owners, repositories and buckets, as the services allow them; none begins with a dot.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}")
_TOKEN = re.compile(
    r"hf_[A-Za-z0-9]{8,}"
)  # of a user of the Hub; one in an address is a mistake that no message repeats
_MAX_CHARACTERS = 4096
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_HF_FORM = "expected hf://owner/repo, hf://owner/repo/file or hf://owner/repo/file@revision"


@dataclass(frozen=True)
class HubAddress:
    """A repository of the Hugging Face Hub, or something in it.

    Args:
        repo: owner/name.
        path: of a file or a folder in it; empty for the repository.
        revision: a branch, a tag or a commit; None for the default branch.
    """

    repo: str
    path: str = ""
    revision: str | None = None

    @property
    def label(self) -> str:
        """As messages show it."""
        return str(self)

    def at(self, commit: str, path: str | None = None) -> str:
        """The address of a file of it, by default of itself, at a commit."""
        return str(HubAddress(self.repo, self.path if path is None else path, commit))

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"hf://{self.repo}{'/' if self.path else ''}{self.path}{revision}"


@dataclass(frozen=True)
class UrlAddress:
    """A file of a web server or an object store.

    Args:
        scheme: https, http, s3 or gs.
        host: with its port; the bucket of an object store.
        path: without the first slash, as it is written.
        query: what follows the question mark. It is never shown.
    """

    scheme: str
    host: str
    path: str
    query: str = ""

    @property
    def label(self) -> str:
        """As messages show it: without the query."""
        return shown(self.without_query)

    @property
    def without_query(self) -> str:
        """All that is no secret."""
        return f"{self.scheme}://{self.host}/{self.path}"

    @property
    def url(self) -> str:
        """All of it."""
        return f"{self.without_query}{'?' if self.query else ''}{self.query}"

    @property
    def name(self) -> str:
        """Of the file."""
        return unquote(self.path.rpartition("/")[2])


Address = HubAddress | UrlAddress


def is_address(path: str | os.PathLike[str]) -> bool:
    """True for a text that begins with a scheme."""
    return isinstance(path, str) and _FORM.match(path) is not None


def parse(path: str | os.PathLike[str]) -> Address | Path:
    """Reads an address; what has no scheme is a path, and so is what `file://` names.

    Raises:
        InputError: it is no address of a form that is read.
    """
    text = os.fspath(path)
    if not text:  # As a Path it would be the current folder, and a shell makes it of a variable that is not set.
        raise InputError("'': is an empty name, expected a path or an address")
    found = _FORM.match(text)
    if found is None:
        if _COLLAPSED.match(text) and not Path(text).exists():
            raise InputError(
                f"{shown(text)}: is an address that was made a Path, which drops a slash. Give it as a text"
            )
        return Path(path)
    scheme = found["scheme"].lower()
    if scheme not in SCHEMES:
        raise InputError(f"{shown(found[0])}: is no scheme that is read, expected one of {', '.join(SCHEMES)}")
    if len(text) > _MAX_CHARACTERS or not text.isprintable() or " " in text or "\\" in text:
        where = shown(text.partition("?")[0].rpartition("@")[2])
        raise InputError(
            f"{where}: is no address: it has spaces, controls or backslashes, or over {_MAX_CHARACTERS} characters"
        )
    if scheme == "hf":
        return _hub(text[found.end() :])
    return _local_file(text) if scheme == "file" else _url(scheme, text)


def require_allowed(scheme: str, host: str, label: str) -> None:
    """Refuses a connection that anyone on the way could read and change.

    Args:
        scheme: of the connection.
        host: without a port.
        label: where, for the message.

    Raises:
        InputError: it is HTTP to another machine, and that was not allowed.
    """
    if scheme == "https" or (scheme == "http" and (host in _LOOPBACK or settings.allows_http())):
        return
    if scheme == "http":
        raise InputError(
            f"{label}: is not encrypted. Use https, or set {settings.ALLOW_HTTP}=1 in a network that you trust"
        )
    raise InputError(f"{label}: leads to the scheme '{shown(scheme)}', expected https")


def _hub(rest: str) -> HubAddress:
    where = f"hf://{shown(_TOKEN.sub('hf_...', rest))}"
    if "?" in rest or "#" in rest:
        raise InputError(f"{where.partition('?')[0]}: has a query or a fragment. {_HF_FORM}")
    body, at, revision = rest.partition("@")
    parts = body.split("/")
    if len(parts) < 2 or (at and not _is_revision(revision)):
        raise InputError(f"{where}: is no address of the Hub, {_HF_FORM}")
    if parts[0] in ("datasets", "spaces", "buckets") and len(parts) > 2:
        raise InputError(f"{where}: is not in a model repository, {_HF_FORM}")
    path = [part for part in parts[2:] if part or len(parts) > 3]  # A slash at the end is the repository itself.
    if not all(map(_NAME.fullmatch, parts[:2])) or not all(map(_is_segment, path)):
        raise InputError(f"{where}: is no address of the Hub, {_HF_FORM}")
    return HubAddress("/".join(parts[:2]), "/".join(path), revision or None)


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and all(map(_is_segment, text.split("/")))


def _is_segment(text: str) -> bool:
    return text not in ("", ".", "..") and ":" not in text


def is_inside(path: str) -> bool:
    """True for the path of a file that lies below a folder wherever that is: relative, and without a way out."""
    return bool(path) and path.isprintable() and "\\" not in path and all(map(_is_segment, path.split("/")))


def _url(scheme: str, text: str) -> UrlAddress:
    where = shown(text.partition("?")[0].partition("#")[0])
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as e:
        raise InputError(f"{scheme}://...: is no address") from e
    if "@" in parts.netloc:
        raise InputError(
            f"{scheme}://{shown(host)}/...: has a user or a password. Leave it out: anyone who sees the command reads it"
        )
    path = parts.path.removeprefix("/")
    if not host or not path or path.endswith("/") or parts.fragment or not is_inside(unquote(path)):
        raise InputError(
            f"{where}: expected {scheme}://{'BUCKET' if scheme in ('s3', 'gs') else 'HOST'}/PATH of a file"
        )
    if scheme in ("http", "https"):
        require_allowed(scheme, host, where)
    elif parts.query or port is not None or not _NAME.fullmatch(host):
        raise InputError(f"{where}: expected {scheme}://BUCKET/PATH of a file, without a port or a query")
    return UrlAddress(scheme, _authority(parts), path, parts.query)


def _authority(parts: SplitResult) -> str:
    return parts.netloc if parts.scheme in ("http", "https") else str(parts.hostname)


def _local_file(text: str) -> Path:
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or not parts.path.startswith("/"):
        raise InputError(f"{shown(text.partition('?')[0])}: expected file:///PATH, of this machine")
    return Path(url2pathname(parts.path))

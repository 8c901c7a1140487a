"""Files over HTTP(S): each redirect is looked at, each range is compared with what was asked for."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from dqrelo_gguf.address.parse import require_allowed
from dqrelo_gguf.address.reach import REACH
from dqrelo_gguf.address.source import Digest, FileFacts, SourceChangedError, UnreachableError
from dqrelo_gguf.errors import InputError, NotThereError, shown

if TYPE_CHECKING:
    import requests

MAX_REDIRECTS = 8
TIMEOUT_SECONDS = (10, 60)  # to connect, and between two pieces
PIECE_BYTES = 1 << 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_REASONS = {
    401: "asks for credentials (401)",
    403: "may not be read (403)",
    404: "is not there (404)",
    410: "is not there any more (410)",
}

_NOT_THERE = frozenset({404, 410})


@contextmanager
def open_url(url: str, label: str, headers: Mapping[str, str]) -> Iterator[requests.Response]:
    """The answer to a GET, whose body has not been read. Redirects are followed, the headers' credentials to the first host alone.

    Args:
        url: where.
        label: for messages: the URL without what it may hold of credentials.
        headers: of the request.

    Raises:
        InputError: it leads to another scheme, in a circle, or to where this process does not go (reach.py).
        UnreachableError: the server did not answer.
    """
    import requests
    from urllib3.exceptions import HTTPError

    sent = {"Accept-Encoding": "identity", **headers}  # Ranges count the bytes of the file, not of its compressed form.
    first = urlsplit(url).netloc
    try:
        with requests.Session() as session:
            for _ in range(MAX_REDIRECTS + 1):
                parts = urlsplit(url)
                require_allowed(parts.scheme, parts.hostname or "", label)
                REACH.require(url, label)
                if parts.netloc != first:
                    sent.pop("authorization", None)
                response = session.get(
                    url, headers=sent, auth=_no_netrc, stream=True, allow_redirects=False, timeout=TIMEOUT_SECONDS
                )
                if response.status_code not in _REDIRECTS or "Location" not in response.headers:
                    yield response
                    return
                target = urljoin(url, response.headers["Location"])
                response.close()
                url = _checked_redirect(parts.scheme, target, label)
    except (requests.RequestException, HTTPError) as e:
        raise UnreachableError(f"{label}: {_reason(e)}") from None  # Its text holds the URL, and so may be a signature.
    raise InputError(f"{label}: leads through more than {MAX_REDIRECTS} redirects, which may be a circle")


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """What requests calls for credentials, and would otherwise take from ~/.netrc in place of ours."""
    return request


def require_ok(response: requests.Response, label: str) -> None:
    """Refuses an answer that is no success.

    Raises:
        InputError: asking again would not help.
        UnreachableError: it may.
    """
    status = response.status_code
    if status in _BUSY:
        why = " (too many requests)" if status == 429 else ""
        after = response.headers.get("Retry-After", "")
        pause = int(after) if after.isascii() and after.isdigit() and len(after) < 4 else 0
        raise UnreachableError(f"{label}: the server answers {status}{why}", pause)
    if status >= 300:
        kind = NotThereError if status in _NOT_THERE else InputError
        raise kind(f"{label}: {_REASONS.get(status, f'cannot be read: the server answers {status}')}")


def body(response: requests.Response, label: str) -> Iterator[bytes]:
    """The body in pieces.

    Raises:
        UnreachableError: it ended early.
    """
    import requests
    from urllib3.exceptions import HTTPError

    try:
        yield from response.iter_content(PIECE_BYTES)
    except (requests.RequestException, HTTPError) as e:
        raise UnreachableError(f"{label}: {_reason(e)}") from None


class HttpSource:
    """A file of a web server.

    Args:
        url: where it lies.
        label: for messages.
        headers: such as an authorization, which other hosts are not sent.
        digest: of the file, where something else than the server's answer says it.
    """

    def __init__(
        self, url: str, label: str, headers: Mapping[str, str] | None = None, digest: Digest | None = None
    ) -> None:
        self._url, self._label, self._headers, self._digest = url, label, dict(headers or {}), digest

    @property
    def label(self) -> str:
        return self._label

    def facts(self) -> FileFacts:
        """A range of one byte is asked for: signatures of object stores hold for GET alone."""
        with open_url(self._url, self.label, {**self._headers, "Range": "bytes=0-0"}) as response:
            if response.status_code == 416:  # An empty file has no first byte.
                return FileFacts(0, self._version(response), has_ranges=False)
            require_ok(response, self.label)
            self._require_plain(response)
            digest = self._digest or _digest(response)
            version = self._version(response)
            if response.status_code == 206:
                total = self._range(response, 0, 1)
                return FileFacts(total, version, has_ranges=version is not None, digest=digest)
            length = response.headers.get("Content-Length", "")
            n_bytes = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
            return FileFacts(n_bytes, version, has_ranges=False, digest=digest)

    def read(self, start: int, end: int | None, version: str | None) -> Iterator[bytes]:
        headers = self._headers if end is None else {**self._headers, "Range": f"bytes={start}-{end - 1}"}
        with open_url(self._url, self.label, headers) as response:
            if response.status_code == 416:  # It has become shorter.
                raise SourceChangedError
            require_ok(response, self.label)
            self._require_plain(response)
            if version is not None and self._version(response) != version:
                raise SourceChangedError
            is_whole = response.status_code == 200 and (start, str(end)) == (0, response.headers.get("Content-Length"))
            if end is not None and not is_whole:
                self._range(response, start, end)
            yield from body(response, self.label)

    def _version(self, response: requests.Response) -> str | None:
        """A text that changes when the file does: a known digest, a strong ETag, or else when it was last changed."""
        if self._digest is not None:
            return self._digest.value
        etag = response.headers.get("ETag", "")
        strong = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
        return shown(strong) or None

    def _require_plain(self, response: requests.Response) -> None:
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":
            raise InputError(f"{self.label}: is sent compressed ({shown(encoding)}) though that was not asked for")

    def _range(self, response: requests.Response, start: int, end: int) -> int:
        """The size of the whole file, from an answer that must hold [start, end) of it."""
        text = response.headers.get("Content-Range", "")
        found = _RANGE.fullmatch(text)
        if found is None or (int(found[1]), int(found[2])) != (start, end - 1) or int(found[3]) < end:
            raise InputError(
                f"{self.label}: was asked for the bytes {start}-{end - 1}, and answers with '{shown(text)}'"
            )
        return int(found[3])


def _digest(response: requests.Response) -> Digest | None:
    """Of the whole file, in the manners of S3 and of Google's Cloud Storage."""
    sha256 = _from_base64(response.headers.get("x-amz-checksum-sha256", ""), 32)
    if sha256 is not None:
        return Digest("sha256", sha256)
    for item in response.headers.get("x-goog-hash", "").split(","):
        name, _, value = item.strip().partition("=")
        md5 = _from_base64(value, 16) if name == "md5" else None
        if md5 is not None:
            return Digest("md5", md5)
    return None


def _from_base64(text: str, n_bytes: int) -> str | None:
    """In hexadecimal digits; None for what has another length, such as S3's checksum of the checksums of parts."""
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return raw.hex() if len(raw) == n_bytes else None


def _checked_redirect(scheme: str, target: str, label: str) -> str:
    """Where a redirect leads.

    Raises:
        InputError: to another scheme, out of the encryption too.
    """
    found = urlsplit(target).scheme.lower()
    if found not in ("https", scheme):
        raise InputError(f"{label}: is redirected from {scheme} to the scheme '{shown(found)}', which is refused")
    return target


def _reason(error: Exception) -> str:
    """Why a connection failed, in words that hold nothing of the URL."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate could not be verified"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy could not be reached"
    if isinstance(error, requests.exceptions.Timeout):
        return "the server did not answer in time"
    if isinstance(error, requests.exceptions.ConnectionError) and "NewConnectionError" in repr(error):
        return "the server could not be reached"
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)):
        return "is no address that can be asked"
    return "the connection ended early"

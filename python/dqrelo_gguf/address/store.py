"""Files of S3 and of Google's Cloud Storage, by obstore: credentials, regions and endpoints come from where its users have them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from dqrelo_gguf.address.parse import UrlAddress, is_inside, require_allowed
from dqrelo_gguf.address.reading import with_tries
from dqrelo_gguf.address.source import FileFacts, SourceChangedError, UnreachableError
from dqrelo_gguf.errors import InputError, NotThereError

_RETRY = {"max_retries": 2}


def _import_obstore() -> Any:
    try:
        import obstore
    except ImportError as e:
        raise InputError("s3:// and gs:// addresses need the package obstore: pip install 'dqrelo-gguf[remote]'") from e
    return obstore


class StoreSource:
    """An object of a bucket.

    Args:
        address: of it.

    Raises:
        InputError: obstore is missing, or its configuration is none.
    """

    def __init__(self, address: UrlAddress) -> None:
        obstore = _import_obstore()
        self._label, self._key = address.label, address.path
        try:
            self._store = _open_store(address)
        except (obstore.exceptions.BaseError, ValueError) as e:
            raise InputError(f"{self.label}: the settings of its store are not complete. See docs/addresses.md") from e

    @property
    def label(self) -> str:
        return self._label

    def facts(self) -> FileFacts:
        import obstore

        try:
            meta = obstore.head(self._store, self._key)
        except (obstore.exceptions.BaseError, OSError) as e:
            raise self._problem(e) from None
        version = meta["e_tag"]
        return FileFacts(meta["size"], version, has_ranges=version is not None)

    def read(self, start: int, end: int | None, version: str | None) -> Iterator[bytes]:
        import obstore

        options: dict[str, Any] = {} if end is None else {"range": (start, end)}
        if version is not None:
            options["if_match"] = version
        try:
            answer = obstore.get(self._store, self._key, options=options)
            if end is not None and tuple(answer.range) != (start, end):
                raise UnreachableError(f"{self.label}: gave other bytes than it was asked for")
            for piece in answer:
                yield bytes(piece)
        except obstore.exceptions.PreconditionError:
            raise SourceChangedError from None
        except (obstore.exceptions.BaseError, OSError) as e:
            raise self._problem(e) from None

    def names_inside(self) -> list[str]:
        """The names of the objects that lie in this address as in a folder; not of those in folders of it.

        Raises:
            InputError: it may not be listed, or the store did not answer.
        """
        import obstore

        found: list[Any] = []

        def read() -> None:
            found.clear()
            try:
                found.extend(obstore.list_with_delimiter(self._store, prefix=f"{self._key}/")["objects"])
            except (obstore.exceptions.BaseError, OSError) as e:
                raise self._problem(e) from None

        with_tries(read)
        names = [str(meta["path"]).removeprefix(f"{self._key}/") for meta in found]
        return [name for name in names if "/" not in name and is_inside(name)]

    def _problem(self, error: Exception) -> InputError | UnreachableError:
        """In words of our own: those of the library hold URLs and answers."""
        from obstore import exceptions

        if isinstance(error, (exceptions.NotFoundError, FileNotFoundError)):
            return NotThereError(f"{self.label}: is not there")
        if isinstance(error, (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)):
            return InputError(f"{self.label}: may not be read with the credentials that are set")
        return UnreachableError(
            f"{self.label}: the store did not answer, or ended early. Are its region and endpoint right?"
        )


def _open_store(address: UrlAddress) -> Any:
    from obstore.store import GCSStore, S3Store

    if address.scheme == "gs":
        return GCSStore(address.host, retry_config=_RETRY)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return S3Store(address.host, retry_config=_RETRY)
    parts = urlsplit(endpoint)
    require_allowed(parts.scheme, parts.hostname or "", "AWS_ENDPOINT_URL")
    client = {"allow_http": parts.scheme == "http"}
    return S3Store(address.host, endpoint=endpoint, client_options=client, retry_config=_RETRY)

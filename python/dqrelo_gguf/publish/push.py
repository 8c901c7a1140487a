"""Uploads a delta with its card. huggingface_hub does the transfer, and finds the user's token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqrelo_gguf.address import hub
from dqrelo_gguf.address.parse import HubAddress, parse
from dqrelo_gguf.errors import InputError
from dqrelo_gguf.file import format as fmt
from dqrelo_gguf.file.reader import DeltaReader
from dqrelo_gguf.publish.card import model_card

CARD = "README.md"
_LIBRARIES = ("httpx", "httpcore", "requests", "huggingface_hub", "hf_xet")


@dataclass(frozen=True)
class Target:
    """Where a delta goes.

    Args:
        repo: owner/name.
        is_private: make the repository a private one, if it is not there yet.
        base_model: owner/name of the base, for the card; None for what the delta says.
    """

    repo: str
    is_private: bool = False
    base_model: str | None = None

    def __post_init__(self) -> None:
        for repo in (self.repo, *([] if self.base_model is None else [self.base_model])):
            found = parse(f"hf://{repo}")
            if not isinstance(found, HubAddress) or found != HubAddress(repo):
                raise InputError(f"{repo}: expected OWNER/REPO")


def require_login(target: Target) -> None:
    """Makes sure that the Hub can be reached and knows the user, before long work.

    Raises:
        InputError: it does not.
    """
    hub.require_user(f"hf://{target.repo}")


def push(path: Path, target: Target) -> str:
    """Uploads a delta, with a card where the repository has none.

    Args:
        path: the delta; its digests are checked first.
        target: where to.

    Returns:
        The address of the file at its commit.

    Raises:
        DqreloError: it is no sound delta, or cannot be uploaded.
    """
    reader = DeltaReader(path)
    if not reader.path.name.endswith(fmt.SUFFIX):
        raise InputError(f"{reader.path}: expected a name that ends in {fmt.SUFFIX}")
    parse(f"hf://{target.repo}/{reader.path.name}")  # The name has to be one that an address can have.
    reader.verify()
    require_login(target)
    with _in_one_line(target.repo):
        commit = _upload(reader, target)
    return HubAddress(target.repo, reader.path.name, commit).label


def _upload(reader: DeltaReader, target: Target) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=hub.endpoint(), library_name="dqrelo-gguf")
    api.create_repo(target.repo, private=target.is_private, exist_ok=True)
    there = api.model_info(target.repo, revision="main").siblings or []
    operations: list[Any] = [CommitOperationAdd(reader.path.name, str(reader.path))]
    if CARD not in {sibling.rfilename for sibling in there}:
        card = model_card(reader, target.repo, target.base_model)
        operations.append(CommitOperationAdd(CARD, card.encode()))
    made = api.create_commit(target.repo, operations, commit_message=f"Add {reader.path.name}")
    return str(made.oid)


@contextmanager
def _in_one_line(repo: str) -> Iterator[None]:
    """Turns what the transfer raises into a line of our own: its texts hold URLs."""
    try:
        yield
    except Exception as e:
        library = type(e).__module__.partition(".")[0].rstrip("0123456789")  # httpx2 is a httpx, too.
        if library not in _LIBRARIES and not isinstance(e, (OSError, RuntimeError, ValueError)):
            raise
        status = _status(e)
        if status in (401, 403):
            raise InputError(f"hf://{repo}: may not be written with the token that is set ({status})") from None
        why = f"the Hub answers {status}" if status is not None else type(e).__name__
        raise InputError(f"hf://{repo}: the upload failed ({why}). Run again: what is there already is kept") from None


def _status(error: BaseException | None) -> int | None:
    """The status of the answer behind an error, or behind what caused it; None where there is none."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None

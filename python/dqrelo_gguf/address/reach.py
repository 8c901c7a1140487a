"""What may be asked: everything where a user gives the address, and what `--load-from` names where a client of the server does.

A prefix and an address are compared part by part, after both were read by the same parser: a part is equal or it is not, so nothing
is decided by how a text is written. What cannot be compared for certain is refused.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from dqrelo_gguf.address.parse import Address, HubAddress, UrlAddress, parse
from dqrelo_gguf.errors import InputError, NotAllowedError, shown

_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
# In a part of a path: what servers decode a second time, or cut off before they look for a way up.
_TWICE = re.compile(rb"[%/\\\x00-\x1f\x7f]")
# Revisions of the Hub that anybody may make in a repository of somebody else.
_PULL_REQUEST = re.compile(r"(refs/)?pr/.*")

Rule = Callable[[str, str], None]


@dataclass(frozen=True)
class Place:
    """An address, or the beginning of many, in a form that can be compared.

    Args:
        scheme: hf, s3, gs, https or http.
        owner: of the Hub's repository; the bucket; or the host, with its port.
        parts: of the path below, decoded where the scheme has an encoding.
    """

    scheme: str
    owner: str
    parts: tuple[bytes, ...]

    def allows(self, other: Place) -> bool:
        """True if the other is this one, or lies below it."""
        is_same = (self.scheme, self.owner) == (other.scheme, other.owner)
        return is_same and other.parts[: len(self.parts)] == self.parts


@dataclass(frozen=True)
class AllowList:
    """The prefixes of `--load-from`.

    Args:
        prefixes: each allows itself, and what lies below it.
    """

    prefixes: tuple[Place, ...]

    def require(self, address: Address) -> None:
        """Refuses an address that no prefix allows.

        Raises:
            NotAllowedError: none does.
        """
        if isinstance(address, HubAddress) and _PULL_REQUEST.fullmatch(address.revision or ""):
            raise NotAllowedError(f"{address.label}: is a pull request, which anybody may open, so it is not loaded")
        place = place_of(address)
        if not any(prefix.allows(place) for prefix in self.prefixes):
            raise NotAllowedError(f"{address.label}: is not below a prefix of --load-from, so it is not loaded")

    def allows_url(self, url: str) -> bool:
        """True for the URL of a file that a prefix allows."""
        try:
            found = parse(url)
            return isinstance(found, UrlAddress) and any(prefix.allows(place_of(found)) for prefix in self.prefixes)
        except InputError:
            return False


def prefix_of(text: str) -> Place:
    """Reads a prefix: `hf://owner`, `hf://owner/repo`, `s3://bucket/folder`, `https://host/folder`; a slash at its end means the same.

    Raises:
        InputError: it is none.
    """
    form = "expected hf://OWNER/, hf://OWNER/REPO/, s3://BUCKET/FOLDER/, gs://BUCKET/FOLDER/ or https://HOST/FOLDER/"
    try:
        found = parse(f"{text.removesuffix('/')}/x")  # So it is the address of a file, and that file's folder is meant.
        if isinstance(found, HubAddress | UrlAddress):
            place = place_of(found)
            extra = found.revision if isinstance(found, HubAddress) else found.query
            if not extra and place.parts[-1:] == (b"x",):
                return Place(place.scheme, place.owner, place.parts[:-1])
    except InputError as e:
        raise InputError(f"--load-from: {e}. A prefix: {form}") from e
    raise InputError(f"--load-from {shown(text.partition('?')[0])}: {form}, without a query or a revision")


def place_of(address: Address) -> Place:
    """An address in the form that is compared.

    Raises:
        NotAllowedError: it has no such form.
    """
    if isinstance(address, HubAddress):
        owner, repo = address.repo.split("/")
        return Place("hf", owner, tuple(part.encode() for part in (repo, *address.path.split("/")) if part))
    if address.scheme not in _PORTS:
        if "%" in address.path:  # Who decodes it, and who does not, differs.
            raise NotAllowedError(f"{address.label}: has a percent sign, which no prefix of --load-from allows")
        return Place(address.scheme, address.host, tuple(part.encode() for part in address.path.split("/")))
    parts = tuple(unquote_to_bytes(part) for part in address.path.split("/"))
    # A part such as "..;x" is a way up for servers that cut off what follows the semicolon.
    if any(_TWICE.search(part) or part.partition(b";")[0] in (b"", b".", b"..") for part in parts):
        raise NotAllowedError(
            f"{address.label}: its path can be read in two ways, which no prefix of --load-from allows"
        )
    return Place(address.scheme, _host(address), parts)


def _host(address: UrlAddress) -> str:
    """The host in one form, with its port."""
    found = urlsplit(f"//{address.host}")
    host, port = found.hostname or "", _PORTS[address.scheme] if found.port is None else found.port
    if ":" in host:
        try:
            host = ipaddress.IPv6Address(host).compressed
        except ValueError:
            host = ""
    elif not _HOST.fullmatch(host):
        host = ""
    if not host:
        raise NotAllowedError(f"{address.label}: its host is written in a way that no prefix of --load-from allows")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Reach:
    """Which URLs this process asks, redirects included: all of them, until it is confined."""

    def __init__(self) -> None:
        self._rule: Rule | None = None

    def confine(self, rule: Rule | None) -> None:
        """Lets a rule decide from here on; None: everything again."""
        self._rule = rule

    def require(self, url: str, label: str) -> None:
        """Refuses a URL before it is asked.

        Args:
            url: of a request.
            label: of the address that led to it, for the message.

        Raises:
            NotAllowedError: the rule does not allow it.
        """
        if self._rule is not None:
            self._rule(url, label)


REACH = Reach()


def rule_for(address: Address, allowed: AllowList, endpoint: Callable[[], str]) -> Rule:
    """What may be asked for one address that is allowed.

    A web server may redirect to what is allowed itself. The Hub may redirect to other hosts, where its files lie, with their digests
    in its own answer; but to none of this machine or of its networks, and to no other repository.

    Args:
        address: what is fetched.
        allowed: the prefixes.
        endpoint: where the Hub is.
    """
    if isinstance(address, HubAddress):
        return _hub_rule(address, allowed, endpoint())

    def rule(url: str, label: str) -> None:
        if not allowed.allows_url(url):
            raise NotAllowedError(
                f"{label}: is redirected to {_site(url)}, to what is not below a prefix of --load-from"
            )

    return rule


def _hub_rule(address: HubAddress, allowed: AllowList, endpoint: str) -> Rule:
    hub = urlsplit(endpoint)
    # The Hub's paths of a repository begin with it, or with /api/models/ or /api/resolve-cache/models/ before it. Behind that lie names
    # that whoever asks has chosen.
    of_repository = re.compile(
        rf"{re.escape(hub.path.rstrip('/'))}(/api(/[a-z-]+)?/models)?/{re.escape(address.repo)}/"
    )

    def rule(url: str, label: str) -> None:
        target = urlsplit(url)
        if (target.scheme, target.netloc) == (hub.scheme, hub.netloc):
            if of_repository.match(unquote(target.path)) is None:
                raise NotAllowedError(f"{label}: has moved to another repository. Load it by its present name")
        elif not allowed.allows_url(url) and not _is_outside(target.hostname or "", hub.hostname or ""):
            raise NotAllowedError(
                f"{label}: is redirected to {_site(url)}, which is not known here, or not outside of this network"
            )

    return rule


def _is_outside(host: str, hub: str) -> bool:
    """True for a host of the open internet; for one of this machine, where the Hub is on this machine as well."""
    addresses = _addresses(host)
    if not addresses:
        return False
    if all(address.is_global and not address.is_multicast for address in addresses):
        return True
    of_hub = _addresses(hub)
    return bool(of_hub) and all(address.is_loopback for address in [*addresses, *of_hub])


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Where a host is; nothing where its name is not known here."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    addresses = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]


def _site(url: str) -> str:
    """Scheme and host, for messages."""
    try:
        found = urlsplit(url)
        return shown(f"{found.scheme}://{found.hostname or ''}")
    except ValueError:
        return "what is no address"

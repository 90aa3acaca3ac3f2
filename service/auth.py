"""Who is asking: API keys as bearer tokens, in two roles.

Clients annotate, upload and export; reviewers settle. Keys are compared by their sha256, all of them, in constant time.
Without any key the service answers on loopback only, and whoever asks there is `local` and may do everything; since
every web page that the same person opens can ask there too, a request must then name a loopback host (a rebound DNS
name does not) and may not come from another origin.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Forbidden, Invalid, Unauthorized
from service.settings import Settings

SHORTEST_KEY = 16
GUARDED = ("/v1/", "/metrics", "/review", "/adjudicate", "/quality", "/accounts")


class Role(StrEnum):
    client = "client"
    reviewer = "reviewer"
    lead = "lead"  # sees everybody's work, settles what people disagree on
    admin = "admin"  # says who may do what


@dataclass(frozen=True, slots=True)
class Caller:
    """name: what is recorded with batches and reviews."""

    name: str
    roles: frozenset[Role]


@dataclass(frozen=True, slots=True)
class _Key:
    digest: bytes
    caller: Caller


LOCAL = Caller("local", frozenset(Role))


class Keys:
    """The callers that the settings name. Raises Invalid where the service would stand open, or a key is weak."""

    def __init__(self, settings: Settings) -> None:
        self._keys = _merged(_entries(settings))
        if not self._keys and not is_loopback(settings.host):
            raise Invalid(
                f"without API keys the service listens on loopback only, not on {settings.host!r}: "
                "set CONCORD_CLIENT_KEYS and CONCORD_REVIEWER_KEYS, or CONCORD_HOST=127.0.0.1"
            )

    def identify(self, headers: Headers) -> Caller:
        """Who sent these headers. Raises Unauthorized; Forbidden for what another web page sends to an open service."""
        if not self._keys:
            _check_own_page(headers)
            return LOCAL
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthorized("this needs an API key: Authorization: Bearer <key>")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, so that the time taken says nothing about which one matched.
        found = [key.caller for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not found:
            raise Unauthorized("unknown API key")
        return found[0]


class Guard:
    """Refuses who is not known before a byte of the body is read; each route checks the role."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(GUARDED):
            scope.setdefault("state", {})["caller"] = self.keys.identify(Headers(scope=scope))
        await self.app(scope, receive, send)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_own_page(headers: Headers) -> None:
    host = headers.get("host", "")
    origin = headers.get("origin")
    if not is_loopback(urlsplit(f"//{host}").hostname or ""):
        raise Forbidden(f"without API keys the service answers to 127.0.0.1 and localhost only, not as {host!r}")
    if origin is not None and urlsplit(origin).netloc != host:
        raise Forbidden("without API keys the service answers to no other web page")
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise Forbidden("without API keys the service answers to no other web page")


def _entries(settings: Settings) -> Iterator[tuple[Role, str | None, str]]:
    """(role, name, key) of each entry, `name:key` or a key alone."""
    for role, entries in ((Role.client, settings.client_keys), (Role.reviewer, settings.reviewer_keys)):
        for number, entry in enumerate(entries, start=1):
            where = f"CONCORD_{role.upper()}_KEYS, entry {number}"
            name, colon, key = entry.partition(":")
            if not colon:
                name, key = "", entry
            if len(key) < SHORTEST_KEY or not (key.isascii() and key.isprintable()):
                raise Invalid(f"{where}: a key has at least {SHORTEST_KEY} printable ASCII characters")
            if colon and not (0 < len(name) <= 100 and name.isprintable()):
                raise Invalid(f"{where}: a name has 1 to 100 printable characters")
            yield role, name or None, key


def _merged(entries: Iterator[tuple[Role, str | None, str]]) -> list[_Key]:
    """One caller a key: the same key in both lists has both roles. One without a name is named after its hash."""
    names: dict[bytes, str] = {}
    roles: dict[bytes, frozenset[Role]] = {}
    for role, name, key in entries:
        digest = hashlib.sha256(key.encode()).digest()
        roles[digest] = roles.get(digest, frozenset()) | {role}
        if name is not None and names.setdefault(digest, name) != name:
            raise Invalid(f"one API key has two names: {names[digest]!r} and {name!r}")
    return [_Key(digest, Caller(names.get(digest, f"key-{digest.hex()[:8]}"), roles[digest])) for digest in roles]

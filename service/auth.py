"""Who is asking: a bearer key, a session's cookie, or on an open service whoever it is.

Keys stand in the settings or belong to accounts. Those of the settings are compared by their sha256, all of them, in
constant time; those of accounts are looked up by it. A session is a signed cookie, which a browser sends whoever has it
ask: so what changes anything must name the session's token and come from a page of this very host. Without any key in
the settings a service that listens on loopback is open, and whoever asks there is `local` and may do everything; since
every web page that the same person opens can ask there too, a request must then name a loopback host (a rebound DNS
name does not) and may not come from another origin. A service that listens elsewhere is closed to who is not known.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from sqlalchemy import Engine as Database
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import accounts, db
from service.errors import Forbidden, Invalid, TooLarge, Unauthorized
from service.models import Account, Role
from service.sessions import Sessions
from service.settings import Settings

__all__ = [
    "LOCAL",
    "Caller",
    "Door",
    "Forms",
    "Guard",
    "Role",
    "check_same_site",
    "expanded",
    "is_loopback",
    "leads",
    "own_path",
]

SHORTEST_KEY = 16
API = ("/v1/", "/metrics")
PAGES = ("/review", "/adjudicate", "/quality", "/evaluations", "/accounts", "/password", "/signed-in", "/sign-out")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
FORM = "application/x-www-form-urlencoded"
LARGEST_FORM = 1_000_000  # bytes
IMPLIED = {Role.lead: {Role.reviewer}, Role.admin: set(Role)}


@dataclass(frozen=True, slots=True)
class Caller:
    """name: what is recorded with batches and reviews. roles: with those that they imply.

    token: of the session, which its pages send back; empty without a session. must_change: the password, before
    anything else is allowed.
    """

    name: str
    roles: frozenset[Role]
    token: str = field(default="", repr=False)
    must_change: bool = False


@dataclass(frozen=True, slots=True)
class _Key:
    digest: str
    caller: Caller


LOCAL = Caller("local", frozenset(Role))


def expanded(roles: Iterable[str]) -> frozenset[Role]:
    """The roles with those that they imply."""
    given = {Role(role) for role in roles}
    return frozenset(given.union(*(IMPLIED.get(role, ()) for role in given)))


def leads(session: Session) -> set[str]:
    """Names of the accounts that may settle what readers disagree on."""
    able = (account for account in accounts.listing(session) if account.disabled_at is None)
    return {account.name for account in able if Role.lead in expanded(account.roles)}


class Door:
    """Knows who is asking. Raises Invalid where a key of the settings is weak."""

    def __init__(self, settings: Settings) -> None:
        self._keys = _merged(_entries(settings))
        self._open = not self._keys and is_loopback(settings.host)
        self._settings = settings
        self._database: Database | None = None
        self._sessions: Sessions | None = None

    def unlock(self, database: Database) -> None:
        """Have accounts and sessions known as well, which are in the database. Raises Unavailable, Invalid."""
        with db.begin(database) as session:
            secret = accounts.secret(session, self._settings)
        self._sessions = Sessions(secret, max(1, round(self._settings.session_hours * 3600)))
        self._database = database

    @property
    def sessions(self) -> Sessions:
        if self._sessions is None:
            raise RuntimeError("the service is not running: its lifespan has not begun")
        return self._sessions

    async def identify(self, request: HTTPConnection) -> Caller:
        """Who sent this request, of which only the headers are looked at.

        Raises Unauthorized; Forbidden for what another web page sends to an open service or in a session's name.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return await self._by_key(token.strip())
        signed = self._sessions.read(request) if self._sessions else None
        if signed is not None:
            account = await self._look(lambda session: accounts.by_session(session, signed.account, signed.epoch))
            if account is None:
                raise Unauthorized("the session is over: sign in again")
            caller = Caller(account.name, expanded(account.roles), signed.token, account.must_change)
            _check_own_form(request, caller)
            return caller
        if self._open:
            _check_own_page(request.headers)
            return LOCAL
        raise Unauthorized("this needs an API key, as Authorization: Bearer <key>, or a session")

    async def _by_key(self, token: str) -> Caller:
        digest = accounts.digest_of(token)
        # Every key is compared, so that the time taken says nothing about which one matched.
        found = [key.caller for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if found:
            return found[0]
        account = await self._look(lambda session: accounts.by_key(session, digest)) if token else None
        if account is None:
            raise Unauthorized("unknown API key")
        return Caller(account.name, expanded(account.roles))

    async def _look(self, find: Callable[[Session], Account | None]) -> Account | None:
        """One indexed read, away from the event loop."""
        return await run_in_threadpool(self._read, find) if self._database is not None else None

    def _read(self, find: Callable[[Session], Account | None]) -> Account | None:
        if self._database is None:
            return None
        with db.read(self._database) as session:
            return find(session)


class Guard:
    """Refuses who is not known before a byte of the body is read; each route checks the role.

    Who asks for a page without a session is sent to sign in; who must change the password is sent there.
    """

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app = app
        self.door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"].startswith(API + PAGES) or scope["path"] == "/"):
            await self.app(scope, receive, send)
            return
        asks_for_page = scope.get("method") in ("GET", "HEAD") and not scope["path"].startswith(API)
        try:
            caller = await self.door.identify(HTTPConnection(scope))
        except Unauthorized:
            if not asks_for_page:
                raise
            await RedirectResponse(_sign_in(scope), 303)(scope, receive, send)
            return
        if caller.must_change and scope["path"] not in ("/password", "/signed-in", "/sign-out"):
            if not asks_for_page:
                raise Forbidden("the password must be changed first")
            await RedirectResponse("/password", 303)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, send)


class Forms:
    """Looks for the session's token in a form, before its route does; what a script sends has it in a header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller | None = scope.get("state", {}).get("caller") if scope["type"] == "http" else None
        if caller is None or not caller.token or scope["method"] in SAFE_METHODS or _named(scope, caller):
            await self.app(scope, receive, send)
            return
        body = await _whole(receive)
        if not _same(_tokens(body), caller.token):
            raise Forbidden("the form is not of this session: open the page again")
        unread = True

        async def again() -> Message:
            nonlocal unread
            if not unread:
                return await receive()
            unread = False
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


def check_same_site(headers: Headers) -> None:
    """Raises Forbidden for what no page of this host has sent. Browsers say where every form and script comes from."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is None and site is None:
        raise Forbidden("this needs an Origin header, as browsers send it")
    own = origin is None or (origin != "null" and _place(origin) == headers.get("host", "").lower())
    if not own or site not in (None, "same-origin"):
        raise Forbidden("another web page sent this")


def own_path(value: str) -> str:
    """A path of this service to go on to; `/` for whatever may lead elsewhere."""
    plain = all("!" <= character <= "~" and character != "\\" for character in value)
    return value if plain and value.startswith("/") and not value.startswith("//") else "/"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _sign_in(scope: Scope) -> str:
    query = scope.get("query_string", b"").decode("latin-1")
    wanted = quote(scope["path"]) + (f"?{query}" if query else "")
    return "/sign-in" if wanted == "/" else "/sign-in?" + urlencode({"next": wanted})


def _check_own_form(request: HTTPConnection, caller: Caller) -> None:
    """What a session's cookie alone must not do. A form's token is in its body, which `Forms` looks into."""
    if request.scope["method"] in SAFE_METHODS:
        return
    check_same_site(request.headers)
    if _named(request.scope, caller):
        return
    form = request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM
    if "x-csrf-token" in request.headers or not form or request.scope["path"].startswith(API):
        raise Forbidden("this needs the session's token, as X-CSRF-Token")


def _named(scope: Scope, caller: Caller) -> bool:
    """Whether the headers name the session's token."""
    return _same(Headers(scope=scope).getlist("x-csrf-token"), caller.token)


def _same(given: list[str], token: str) -> bool:
    return len(given) == 1 and hmac.compare_digest(given[0].encode("utf-8", "replace"), token.encode())


def _tokens(form: bytes) -> list[str]:
    try:
        return parse_qs(form.decode("utf-8", "replace"), max_num_fields=1000).get("csrf", [])
    except ValueError:
        return []


async def _whole(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > LARGEST_FORM:
            raise TooLarge(f"a form has at most {LARGEST_FORM:,} bytes")
    return body


def _place(url: str) -> str:
    """Host and port; empty where there are none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _check_own_page(headers: Headers) -> None:
    host = headers.get("host", "")
    origin = headers.get("origin")
    try:
        named = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        named = ""
    if not is_loopback(named):
        raise Forbidden(f"without API keys the service answers to 127.0.0.1 and localhost only, not as {host!r}")
    if origin is not None and _place(origin) != host.lower():
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
    names: dict[str, str] = {}
    roles: dict[str, frozenset[Role]] = {}
    for role, name, key in entries:
        digest = hashlib.sha256(key.encode()).hexdigest()
        roles[digest] = roles.get(digest, frozenset()) | {role}
        if name is not None and names.setdefault(digest, name) != name:
            raise Invalid(f"one API key has two names: {names[digest]!r} and {name!r}")
    return [_Key(digest, Caller(names.get(digest, f"key-{digest[:8]}"), expanded(roles[digest]))) for digest in roles]

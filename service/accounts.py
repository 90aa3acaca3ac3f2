"""Accounts: who may sign in, in which roles, and the keys they ask with. Functions over a Session that never commit.

Passwords are kept as argon2 hashes, keys as sha256 digests (they are long and random), and both are told once. Whoever
changes something here has it written into the ledger, as the last statement.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import unicodedata
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import cache
from typing import Any

from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from sqlalchemy import literal
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, col, select

from service import db, ledger
from service.errors import Conflict, Invalid, NotFound, Paused, Unavailable
from service.models import Account, ApiKey, Role, Secret, now
from service.settings import Settings

FIRST = "admin"  # the account that is made where there is none
LONGEST_NAME = 100
SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 200  # characters
SHORTEST_SECRET = 32
RESERVED = frozenset({"local", "service", "command line"})  # recorded for those who have no account
FREE_FAILURES = 4  # in a row, before there is a pause
LONGEST_PAUSE = timedelta(minutes=15)
# An argon2 hash takes 64 MB and a core; whoever has no account can ask for one.
HASHES_AT_ONCE = 4
HASH_SECONDS = 2.0  # how long a hash waits for its turn

_hashing = threading.BoundedSemaphore(HASHES_AT_ONCE)
_passwords = PasswordHash.recommended()


def secret(session: Session, settings: Settings) -> str:
    """What sessions are signed with: that of the settings, else the one in the database, made when first asked for.

    Raises Invalid for one that is too short.
    """
    if settings.secret:
        if len(settings.secret) < SHORTEST_SECRET:
            raise Invalid(f"CONCORD_SECRET: expected at least {SHORTEST_SECRET} characters, random ones")
        return settings.secret
    _insert_once(session, Secret, {"id": 1, "value": secrets.token_urlsafe(48)})
    return session.get_one(Secret, 1).value


def first_admin(session: Session) -> str | None:
    """Make the account `admin` where there is no account at all, and return its password; None where there are some.

    Of several processes that start at once one is told the password.
    """
    if session.exec(select(Account.id).limit(1)).first() is not None:
        return None
    password = _generated()
    row = {
        "name": FIRST,
        "password": hashed(password),
        "roles": [Role.admin],
        "created_at": now(),
        "epoch": 0,
        "failures": 0,
        "must_change": True,
    }
    if not _insert_once(session, Account, row):
        return None
    _note(session, "service", "account.add", FIRST, None, state(find(session, FIRST)))
    return password


def add(session: Session, name: str, roles: Iterable[Role], *, who: str) -> tuple[Account, str]:
    """A new account and its password, which must be changed at the first sign-in.

    Raises Invalid for a name or roles that cannot be, Conflict for a name that is taken.
    """
    name = _checked_name(name)
    if session.exec(select(Account.id).where(Account.name == name)).first() is not None:
        raise Conflict(f"there is an account {name!r} already")
    password = _generated()
    account = Account(name=name, password=hashed(password), roles=_checked_roles(roles), must_change=True)
    session.add(account)
    session.flush()
    _note(session, who, "account.add", name, None, state(account))
    return account, password


def listing(session: Session) -> list[Account]:
    """All accounts, by name."""
    return list(session.exec(select(Account).order_by(col(Account.name))))


def keys(session: Session) -> dict[int, list[ApiKey]]:
    """The keys that are good, by their account's id, the oldest first."""
    found: dict[int, list[ApiKey]] = {}
    for key in session.exec(select(ApiKey).where(col(ApiKey.revoked_at).is_(None)).order_by(col(ApiKey.id))):
        found.setdefault(key.account_id, []).append(key)
    return found


def find(session: Session, name: str) -> Account:
    """Raises NotFound."""
    account = session.exec(select(Account).where(Account.name == name)).first() if name.isprintable() else None
    if account is None:
        raise NotFound(f"no account {name!r}")
    return account


def set_roles(session: Session, name: str, roles: Iterable[Role], *, who: str) -> Account:
    """Raises NotFound, Invalid; Conflict where nobody would be left who says who may do what."""
    wanted = _checked_roles(roles)

    def change(account: Account) -> None:
        account.roles = wanted

    return _changed(session, name, "account.roles", who, change, keep_an_admin=Role.admin not in wanted)


def disable(session: Session, name: str, *, who: str) -> Account:
    """End its sessions and keep its keys from asking, from the next request on. Raises NotFound; Conflict as above."""

    def change(account: Account) -> None:
        account.disabled_at = account.disabled_at or db.clock(session)
        account.epoch += 1

    return _changed(session, name, "account.disable", who, change, keep_an_admin=True)


def enable(session: Session, name: str, *, who: str) -> Account:
    """Let it in again, with its keys. Raises NotFound."""

    def change(account: Account) -> None:
        account.disabled_at = None

    return _changed(session, name, "account.enable", who, change)


def reset_password(session: Session, name: str, *, who: str) -> str:
    """A new password, which must be changed at the next sign-in; all sessions end. Raises NotFound."""
    password = _generated()
    set_password(session, name, hashed(password), who=who, must_change=True)
    return password


def set_password(session: Session, name: str, hash_of_it: str, *, who: str, must_change: bool = False) -> Account:
    """Keep the hash of a new password; all sessions end, and a pause after failed sign-ins. Raises NotFound."""

    def change(account: Account) -> None:
        account.password, account.must_change = hash_of_it, must_change
        account.failures, account.paused_until = 0, None
        account.epoch += 1

    return _changed(session, name, "account.password", who, change)


def end_sessions(session: Session, name: str, *, who: str) -> Account:
    """Sign out everywhere. Raises NotFound."""

    def change(account: Account) -> None:
        account.epoch += 1

    return _changed(session, name, "account.end_sessions", who, change)


def attempt(session: Session, name: str) -> Account | None:
    """Count a sign-in under this name before its password is looked at; None where there is no such account.

    It counts as failed until `signed_in` says otherwise, so that guesses made at once are counted as well. After
    FREE_FAILURES in a row each has to wait, twice as long as the one before, up to LONGEST_PAUSE. Raises Paused.
    """
    name = unicodedata.normalize("NFC", name)
    if not name.isprintable() or len(name) > LONGEST_NAME:
        return None
    account = session.exec(select(Account).where(Account.name == name).with_for_update()).first()
    if account is None:
        return None
    clock = db.clock(session)
    if account.paused_until is not None and account.paused_until > clock:
        seconds = max(1, round((account.paused_until - clock).total_seconds()))
        raise Paused(f"too many failed sign-ins; wait {seconds} s before the next", {"seconds": seconds})
    account.failures = min(account.failures + 1, 100)
    beyond = account.failures - FREE_FAILURES
    if beyond > 0:
        account.paused_until = clock + min(timedelta(seconds=2 ** min(beyond, 20)), LONGEST_PAUSE)
    session.add(account)
    session.flush()
    return account


def matches(account: Account | None, password: str) -> bool:
    """Whether this is the account's password. Takes as long where there is no such account, or a disabled one.

    Raises Unavailable while too many are being looked at.
    """
    known = account is not None and account.password is not None and account.disabled_at is None
    kept = account.password if account is not None and account.password is not None else _nobodys()
    if len(password) > LONGEST_PASSWORD:
        return False
    with _Turn():
        try:
            return _passwords.verify(password, kept) and known
        except UnknownHashError:
            return False


def signed_in(session: Session, name: str, epoch: int) -> Account | None:
    """Forget the failures of an account whose password was given; None where it was disabled or changed meanwhile."""
    account = session.exec(select(Account).where(Account.name == name).with_for_update()).one()
    if account.disabled_at is not None or account.epoch != epoch:
        return None
    account.failures, account.paused_until = 0, None
    session.add(account)
    _note(session, name, "account.sign_in", name, None, state(account))
    return account


def signed_out(session: Session, name: str) -> None:
    """Have it in the ledger; the session ends where its cookie is dropped."""
    _note(session, name, "account.sign_out", name, None, None)


def hashed(password: str) -> str:
    """The argon2 hash. Raises Unavailable while too many are being made."""
    with _Turn():
        return _passwords.hash(password)


def check_new_password(password: str, name: str) -> None:
    """Raises Invalid."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise Invalid(f"new password: expected {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    if name.casefold() in password.casefold() and len(password) < len(name) + SHORTEST_PASSWORD:
        raise Invalid("new password: expected one that is not made of the name")


def add_key(session: Session, name: str, label: str, *, who: str) -> tuple[ApiKey, str]:
    """A new key of the account, and what is to be sent as the bearer token. Raises NotFound, Invalid."""
    if len(label) > LONGEST_NAME or not label.isprintable():
        raise Invalid(f"label: expected at most {LONGEST_NAME} printable characters", {"field": "label"})
    account = find(session, name)
    token = f"concord_{secrets.token_urlsafe(32)}"
    key = ApiKey(account_id=account.id or 0, digest=digest_of(token), label=label)
    session.add(key)
    session.flush()
    _note(session, who, "account.key", name, None, {"key": key.id, "digest": key.digest, "label": label})
    return key, token


def revoke(session: Session, key_id: int, *, who: str) -> ApiKey:
    """Have a key open nothing from the next request on; again is no error. Raises NotFound."""
    key = session.get(ApiKey, key_id, with_for_update=True)
    if key is None:
        raise NotFound(f"no key {key_id}")
    if key.revoked_at is None:
        before = {"key": key.id, "digest": key.digest, "label": key.label}
        key.revoked_at = db.clock(session)
        session.add(key)
        session.flush()
        _note(session, who, "account.revoke", session.get_one(Account, key.account_id).name, before, None)
    return key


def by_key(session: Session, digest: str) -> Account | None:
    """The account whose key has this digest, unless either is out of use."""
    query = select(Account).join(ApiKey, col(ApiKey.account_id) == col(Account.id))
    good = (col(ApiKey.revoked_at).is_(None), col(Account.disabled_at).is_(None))
    return session.exec(query.where(ApiKey.digest == digest, *good)).first()


def by_session(session: Session, account_id: int, epoch: int) -> Account | None:
    """The account of a session that was made in this epoch, unless it is over or the account is out of use."""
    account = session.get(Account, account_id)
    return account if account is not None and account.epoch == epoch and account.disabled_at is None else None


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def state(account: Account) -> dict[str, Any]:
    """What the ledger keeps the hash of."""
    return {
        "name": account.name,
        "roles": account.roles,
        "disabled": account.disabled_at is not None,
        "epoch": account.epoch,
        "must_change": account.must_change,
    }


class _Turn:
    """One of HASHES_AT_ONCE."""

    def __enter__(self) -> None:
        if not _hashing.acquire(timeout=HASH_SECONDS):
            raise Unavailable("too many sign in at once; try again in a moment")

    def __exit__(self, *_: object) -> None:
        _hashing.release()


def _changed(
    session: Session,
    name: str,
    action: str,
    who: str,
    change: Callable[[Account], None],
    *,
    keep_an_admin: bool = False,
) -> Account:
    """The account after the change, with a line in the ledger."""
    found = find(session, name)
    if keep_an_admin:
        _check_another_admin(session, found)
    account = session.get_one(Account, found.id, with_for_update=True, populate_existing=True)
    before = state(account)
    change(account)
    session.add(account)
    session.flush()
    _note(session, who, action, name, before, state(account))
    return account


def _check_another_admin(session: Session, account: Account) -> None:
    """All accounts are locked, by id, so that two admins who disable each other at once are not both heard."""
    everybody = session.exec(
        select(Account).order_by(col(Account.id)).with_for_update().execution_options(populate_existing=True)
    )
    admins = [one.id for one in everybody if Role.admin in one.roles and one.disabled_at is None]
    if admins == [account.id]:
        raise Conflict(f"{account.name} is the last admin; make another one first")


def _note(session: Session, who: str, action: str, name: str, before: Any, after: Any) -> None:
    ledger.append(session, who=who, action=action, subject=f"account:{name}", before=before, after=after)


def _checked_name(name: str) -> str:
    name = unicodedata.normalize("NFC", name)
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or name != name.strip():
        expected = f"expected 1 to {LONGEST_NAME} printable characters, none of them blank at either end"
        raise Invalid(f"name: {expected}", {"field": "name"})
    if name.casefold() in RESERVED:
        raise Invalid(f"name: expected another one; {name!r} is what the service records by itself", {"field": "name"})
    return name


def _checked_roles(roles: Iterable[Role]) -> list[str]:
    wanted = set(roles)
    if not wanted:
        raise Invalid(f"roles: expected at least one of {', '.join(Role)}", {"field": "roles"})
    return [role for role in Role if role in wanted]


def _generated() -> str:
    return secrets.token_urlsafe(15)


@cache
def _nobodys() -> str:
    """The hash of a password that nobody has."""
    return _passwords.hash(secrets.token_urlsafe(32))


def _insert_once(session: Session, table: type[SQLModel], row: dict[str, Any]) -> bool:
    """Whether the row is new. Waits for another transaction that is inserting the same one."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(**row).on_conflict_do_nothing()
    return session.execute(statement.returning(literal(1))).first() is not None

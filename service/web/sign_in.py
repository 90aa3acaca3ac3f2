"""Sign in, sign out, change the password; and `/`, which leads on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from service import accounts, db, sessions
from service.api.dependencies import AnyoneDep, RunningDep
from service.auth import check_same_site, own_path
from service.errors import Invalid, NotFound, Paused, ServiceError, Unauthorized
from service.models import Account
from service.running import Running
from service.web.pages import PLACES, render

router = APIRouter(include_in_schema=False)

WRONG = "the name or the password is not right"

Field = Annotated[str, Form(max_length=1000)]


@dataclass(frozen=True, slots=True)
class SignInPage:
    """name: as it was typed. next: where to go on to. message: why it did not work; empty at first."""

    name: str
    next: str
    message: str


@dataclass(frozen=True, slots=True)
class SignedInPage:
    """Nothing but what all pages have."""


@dataclass(frozen=True, slots=True)
class PasswordPage:
    """name: of the account. forced: whether nothing else is allowed. shortest: characters of a password."""

    name: str
    forced: bool
    shortest: int
    message: str


@router.get("/")
def start(caller: AnyoneDep) -> Response:
    """To the first page that is open to them."""
    return RedirectResponse(next(place.path for place in PLACES if place.role in caller.roles), 303)


@router.get("/sign-in")
def sign_in_page(request: Request, next: str = "/") -> HTMLResponse:
    return render(request, "sign_in.html", SignInPage("", own_path(next), ""))


@router.post("/sign-in")
def sign_in(request: Request, service: RunningDep, name: Field, password: Field, next: Field = "/") -> Response:
    """A new session, whatever the browser had before. It takes as long for a name that nobody has."""
    check_same_site(request.headers)
    try:
        account = _checked(service, name, password)
        with db.begin(service.database) as session:
            if accounts.signed_in(session, account.name, account.epoch) is None:
                raise Unauthorized(WRONG)
    except (Unauthorized, Paused) as error:
        return render(request, "sign_in.html", SignInPage(name, own_path(next), error.message), error.status_code)
    response = RedirectResponse(own_path(next), 303)
    service.door.sessions.begin(request, response, account)
    return response


@router.get("/signed-in")
def signed_in(request: Request, _caller: AnyoneDep) -> HTMLResponse:
    """Where a tab ends in which somebody signed in again for another: it takes no item from that one's hands."""
    return render(request, "signed_in.html", SignedInPage())


@router.post("/sign-out")
def sign_out(request: Request, caller: AnyoneDep, service: RunningDep, everywhere: Field = "") -> Response:
    """Drop this session's cookie; everywhere: end all sessions of the account as well."""
    response = RedirectResponse("/sign-in", 303)
    if caller.token:
        with db.begin(service.database) as session:
            if everywhere:
                accounts.end_sessions(session, caller.name, who=caller.name)
            accounts.signed_out(session, caller.name)
        sessions.end(request, response)
    return response


@router.get("/password")
def password_page(request: Request, caller: AnyoneDep) -> HTMLResponse:
    if not caller.token:
        raise NotFound(f"{caller.name} is not signed in, and has no password here")
    return render(
        request, "password.html", PasswordPage(caller.name, caller.must_change, accounts.SHORTEST_PASSWORD, "")
    )


@router.post("/password")
def change_password(
    request: Request, caller: AnyoneDep, service: RunningDep, old: Field, new: Field, again: Field
) -> Response:
    """All sessions end but this one, which begins anew."""
    if not caller.token:
        raise NotFound(f"{caller.name} is not signed in, and has no password here")
    try:
        _check_new(caller.name, old, new, again)
        _checked(service, caller.name, old)
        kept = accounts.hashed(new)
        with db.begin(service.database) as session:
            account = accounts.set_password(session, caller.name, kept, who=caller.name)
    except ServiceError as error:
        page = PasswordPage(caller.name, caller.must_change, accounts.SHORTEST_PASSWORD, error.message)
        return render(request, "password.html", page, error.status_code)
    response = RedirectResponse("/", 303)
    service.door.sessions.begin(request, response, account)
    return response


def _checked(service: Running, name: str, password: str) -> Account:
    """The account of this name and password. Raises Unauthorized, Paused. No transaction is open while it is hashed."""
    with db.begin(service.database) as session:
        account = accounts.attempt(session, name)
    if not accounts.matches(account, password) or account is None:
        raise Unauthorized(WRONG)
    return account


def _check_new(name: str, old: str, new: str, again: str) -> None:
    if new != again:
        raise Invalid("new password again: expected the same")
    if new == old:
        raise Invalid("new password: expected another one than until now")
    accounts.check_new_password(new, name)

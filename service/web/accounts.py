"""The page for admins: who may sign in, in which roles, and with which keys. Works without any script."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Form, Request
from sqlmodel import Session
from starlette.responses import HTMLResponse, RedirectResponse, Response

from service import accounts
from service.api.dependencies import MOST, AdminDep, ReadDep, SessionDep
from service.models import Role
from service.web.pages import render

router = APIRouter(include_in_schema=False)

Name = Annotated[str, Form(max_length=accounts.LONGEST_NAME)]
Roles = Annotated[list[Role] | None, Form()]
ROLES = {
    Role.client: "annotates, uploads gold and exports",
    Role.reviewer: "settles items",
    Role.lead: "sees everybody's work and settles disagreements; reviews too",
    Role.admin: "says who may do what; may do everything",
}


@dataclass(frozen=True, slots=True)
class Held:
    """A key that is good. id: its number."""

    id: int
    label: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Row:
    """An account. roles: those that were given."""

    name: str
    roles: list[str]
    since: datetime
    disabled: bool
    must_change: bool
    keys: list[Held]


@dataclass(frozen=True, slots=True)
class AccountsPage:
    """roles: what each means. told: what the secret below is, empty where there is none. secret: shown this once."""

    rows: list[Row]
    roles: dict[Role, str]
    told: str = ""
    secret: str = ""


@router.get("/accounts")
def page(request: Request, session: ReadDep, _caller: AdminDep) -> HTMLResponse:
    return render(request, "accounts.html", AccountsPage(_rows(session), ROLES))


@router.post("/accounts/add")
def add(request: Request, session: SessionDep, caller: AdminDep, name: Name, roles: Roles = None) -> HTMLResponse:
    account, password = accounts.add(session, name, roles or [], who=caller.name)
    return _tell(request, session, f"The password of {account.name}, to be changed at the first sign-in", password)


@router.post("/accounts/roles")
def set_roles(session: SessionDep, caller: AdminDep, name: Name, roles: Roles = None) -> Response:
    accounts.set_roles(session, name, roles or [], who=caller.name)
    return _again()


@router.post("/accounts/disable")
def disable(session: SessionDep, caller: AdminDep, name: Name) -> Response:
    accounts.disable(session, name, who=caller.name)
    return _again()


@router.post("/accounts/enable")
def enable(session: SessionDep, caller: AdminDep, name: Name) -> Response:
    accounts.enable(session, name, who=caller.name)
    return _again()


@router.post("/accounts/password")
def password(request: Request, session: SessionDep, caller: AdminDep, name: Name) -> HTMLResponse:
    made = accounts.reset_password(session, name, who=caller.name)
    return _tell(request, session, f"The new password of {name}, to be changed at the next sign-in", made)


@router.post("/accounts/key")
def key(
    request: Request, session: SessionDep, caller: AdminDep, name: Name, label: Annotated[str, Form()] = ""
) -> HTMLResponse:
    row, token = accounts.add_key(session, name, label, who=caller.name)
    return _tell(request, session, f"Key {row.id} of {name}", token)


@router.post("/accounts/revoke")
def revoke(session: SessionDep, caller: AdminDep, key: Annotated[int, Form(ge=1, le=MOST)]) -> Response:
    accounts.revoke(session, key, who=caller.name)
    return _again()


def _again() -> Response:
    return RedirectResponse("/accounts", 303)


def _tell(request: Request, session: Session, told: str, secret: str) -> HTMLResponse:
    """The page with a secret that is kept nowhere: told in the answer, since to be fetched it would have to be kept."""
    return render(request, "accounts.html", AccountsPage(_rows(session), ROLES, told, secret))


def _rows(session: Session) -> list[Row]:
    keys = accounts.keys(session)
    return [
        Row(
            account.name,
            account.roles,
            account.created_at,
            account.disabled_at is not None,
            account.must_change,
            [Held(key.id or 0, key.label, key.created_at) for key in keys.get(account.id or 0, ())],
        )
        for account in accounts.listing(session)
    ]

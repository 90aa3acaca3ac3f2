"""`accounts`: who may sign in, and the keys they ask with. Passwords and keys are told once."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service import accounts, db
from service.commands.console import err, opened_database, out, settings_of
from service.models import Role

WHO = "command line"

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="name of the account")]


def add(
    name: NameArgument,
    roles: Annotated[list[Role], typer.Option("--role", help="what it may do; may be given several times")],
) -> None:
    """Make an account, and print its password."""
    with opened_database(settings_of()) as database, db.begin(database) as session:
        _, password = accounts.add(session, name, roles, who=WHO)
    _tell(password, f"the password of {name}; it must be changed at the first sign-in, and is shown this once")


def show() -> None:
    """List the accounts with their roles and keys."""
    table = Table("account", "roles", "since", "keys", "")
    with opened_database(settings_of()) as database, db.read(database) as session:
        keys = accounts.keys(session)
        for account in accounts.listing(session):
            held = ", ".join(f"{key.id} {key.label}".strip() for key in keys.get(account.id or 0, ()))
            told = "disabled" if account.disabled_at else "must change its password" if account.must_change else ""
            cells = (account.name, ", ".join(account.roles), f"{account.created_at:%Y-%m-%d}", held, told)
            table.add_row(*map(Text, cells))  # as they are: a name may look like markup
    out.print(table)


def disable(name: NameArgument) -> None:
    """End an account's sessions and have its keys open nothing, from the next request on."""
    with opened_database(settings_of()) as database, db.begin(database) as session:
        accounts.disable(session, name, who=WHO)
    err.print(f"{name} is disabled", markup=False)


def enable(name: NameArgument) -> None:
    """Let a disabled account in again."""
    with opened_database(settings_of()) as database, db.begin(database) as session:
        accounts.enable(session, name, who=WHO)
    err.print(f"{name} may sign in again", markup=False)


def password(name: NameArgument) -> None:
    """Give an account a new password, and print it. Its sessions end."""
    with opened_database(settings_of()) as database, db.begin(database) as session:
        made = accounts.reset_password(session, name, who=WHO)
    _tell(made, f"the new password of {name}; it must be changed at the next sign-in, and is shown this once")


def key(name: NameArgument, label: Annotated[str, typer.Option(help="what the key is for")] = "") -> None:
    """Make a key for an account, and print it."""
    with opened_database(settings_of()) as database, db.begin(database) as session:
        row, token = accounts.add_key(session, name, label, who=WHO)
    _tell(token, f"key {row.id} of {name}; it is shown this once")


def revoke(key_id: Annotated[int, typer.Argument(metavar="KEY", help="number of the key, as in the list")]) -> None:
    """Have a key open nothing any more."""
    with opened_database(settings_of()) as database, db.begin(database) as session:
        accounts.revoke(session, key_id, who=WHO)
    err.print(f"key {key_id} is revoked")


def _tell(secret: str, what: str) -> None:
    """The secret alone on standard output, so that it can be piped where it belongs."""
    err.print(what, markup=False, highlight=False)
    out.print(secret, markup=False, highlight=False, soft_wrap=True)

"""`audit verify` and `audit list`: what the ledger says, and whether it is whole."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from service import db, ledger
from service.commands.console import err, opened_database, out, progress_bar, settings_of
from service.errors import Invalid
from service.ledger import NOTHING


def verify(
    head: Annotated[
        str | None, typer.Option(metavar="SHA256", help="a head that was noted earlier, which must be in the chain")
    ] = None,
) -> None:
    """Look for lines of the ledger that were altered, removed, inserted or moved. Exit code 1 where there is one."""
    noted = head.strip().lower() if head is not None else None
    if noted is not None and (len(noted) != len(NOTHING) or set(noted) - set("0123456789abcdef")):
        raise Invalid("--head: expected the 64 hexadecimal digits that an earlier `audit verify` has printed")
    with opened_database(settings_of()) as database, db.read(database) as session, progress_bar() as progress:
        bar = progress.add_task("verifying", total=ledger.size(session))
        found = ledger.verify(session, noted, lambda lines: progress.update(bar, completed=lines))
    if found.why:
        where = f"line {found.wrong}: " if found.wrong is not None else ""
        err.print(f"[red]the ledger is broken:[/] {where}{found.why}", highlight=False, soft_wrap=True)
        raise typer.Exit(1)
    out.print(f"{found.lines} lines, each as it was written; note the head elsewhere:", highlight=False)
    out.print(f"{found.lines} {found.head}", highlight=False, soft_wrap=True)


def show(
    subject: Annotated[str, typer.Option(help="what it was done to, like item:17, batch:ID or account:NAME")],
) -> None:
    """List what was done to one thing, in order."""
    table = Table("line", "at", "who", "what", "before", "after", "recipe")
    after = 0
    with opened_database(settings_of()) as database, db.read(database) as session:
        while page := ledger.lines(session, subject, after):
            for line in page:
                short = [(sha256 or "")[:8] for sha256 in (line.before, line.after, line.recipe)]
                table.add_row(str(line.number), f"{line.at:%Y-%m-%d %H:%M:%S}", line.who, line.action, *short)
            after = page[-1].number
    out.print(table if table.rows else f"nothing was done to {subject}", markup=False)

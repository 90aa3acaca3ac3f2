"""What was changed, by whom: rows that are only ever added, each of which holds the hash of the one before it.

Whoever changes a stored state appends a line in the same transaction, as its last statement: the head of the chain is
locked until the commit, so that lines have one order.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

from sqlmodel import Session, select

from service.models import LedgerEntry, LedgerHead, now

NOTHING = "0" * 64  # before the first line


def append(
    session: Session, *, who: str, action: str, subject: str, before: Any, after: Any, recipe: str | None = None
) -> LedgerEntry:
    """Add a line. who: a caller or a worker. action: `review.settle`; subject: what it was done to, `item:17`.

    before, after: the state as plain data, of which the line keeps the hash; None where there is none. recipe: the one
    behind the labels in question.
    """
    head = session.exec(select(LedgerHead).with_for_update().execution_options(populate_existing=True)).one()
    line = LedgerEntry(
        number=head.number + 1,
        at=now(),
        who=who,
        action=action,
        subject=subject,
        before=digest(before),
        after=digest(after),
        recipe=recipe,
        previous=head.sha256,
    )
    line.sha256 = chained(line)
    head.number, head.sha256 = line.number, line.sha256
    session.add(line)
    session.flush()
    return line


def digest(state: Any) -> str | None:
    """Hash of plain data, the same whatever the order of its keys."""
    if state is None:
        return None
    return hashlib.sha256(_canonical(state).encode()).hexdigest()


def chained(line: LedgerEntry) -> str:
    """The hash that a line must have, from all its fields and the line before."""
    fields = line.model_dump(exclude={"sha256"}) | {"at": line.at.isoformat()}
    return hashlib.sha256(_canonical(fields).encode()).hexdigest()


def _canonical(state: Any) -> str:
    return json.dumps(state, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"a line of the ledger is made of plain data, not of {type(value).__name__}")

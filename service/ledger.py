"""What was changed, by whom: rows that are only ever added, each of which holds the hash of the one before it.

Whoever changes a stored state appends a line in the same transaction, as its last statement: the head of the chain is
locked until the commit, so that lines have one order. The database refuses to change or remove a line; `verify` finds
what was done to one all the same. Whoever rewrites all lines and the head can only be found out by a head that was
noted elsewhere before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel import Session, col, select

from service.models import LedgerEntry, LedgerHead, now

NOTHING = "0" * 64  # before the first line
PAGE = 1000  # lines read at a time


@dataclass(frozen=True, slots=True)
class Verified:
    """lines: how many are as they were written, from the first on. head: the hash of the last of them.

    wrong: number of the first that is not; None where all are, or where none can be named. why: empty where all holds.
    """

    lines: int
    head: str
    wrong: int | None = None
    why: str = ""


def append(
    session: Session, *, who: str, action: str, subject: str, before: Any, after: Any, recipe: str | None = None
) -> LedgerEntry:
    """Add a line. who: a caller or a worker. action: `review.settle`; subject: what it was done to, `item:17`.

    before, after: the state as plain data, of which the line keeps the hash; None where there is none. recipe: the one
    behind the labels in question.
    """
    was, became = digest(before), digest(after)  # before the head is locked: a state may be large
    head = session.exec(select(LedgerHead).with_for_update().execution_options(populate_existing=True)).one()
    line = LedgerEntry(
        number=head.number + 1,
        at=now(),
        who=who,
        action=action,
        subject=subject,
        before=was,
        after=became,
        recipe=recipe,
        previous=head.sha256,
    )
    line.sha256 = chained(line)
    head.number, head.sha256 = line.number, line.sha256
    session.add(line)
    session.flush()
    return line


def verify(session: Session, noted: str | None = None, seen: Callable[[int], None] = lambda _: None) -> Verified:
    """Look for a line that was altered, removed (the last ones too), inserted or moved.

    noted: the hash of a head that was written down earlier, which must be among the lines. seen: told how many lines
    were read, from time to time. Reads lines as a stream, in the session's one snapshot.
    """
    number, last, found = 0, NOTHING, noted in (None, NOTHING)
    for line in _stream(session):
        why = _fault(line, number, last)
        if line is None or why:
            return Verified(number, last, number + 1 if line is None else min(line.number, number + 1), why)
        number, last = number + 1, line.sha256
        found = found or last == noted
        if number % PAGE == 0:
            seen(number)
    seen(number)
    ends = session.exec(select(LedgerHead.number, LedgerHead.sha256)).all()
    if len(ends) != 1:
        return Verified(number, last, number + 1, "the head of the ledger is not one row; lines may be gone")
    head, sha256 = ends[0]
    if head > number:
        return Verified(number, last, number + 1, f"it is gone: the head is line {head}")
    if head < number:
        return Verified(number, last, head + 1, f"it was inserted: the head is line {head}")
    if sha256 != last:
        return Verified(number, last, number, "its hash is not that of the head")
    return Verified(number, last, None, "" if found else f"no line has the noted hash {noted}: all were written anew")


def size(session: Session) -> int:
    """How many lines the head says there are; 0 where it is gone."""
    return session.exec(select(LedgerHead.number)).first() or 0


def lines(session: Session, subject: str, after: int = 0, limit: int = PAGE) -> list[LedgerEntry]:
    """What was done to one thing, `item:17`, in order: at most `limit` lines, those behind the number `after`."""
    query = select(LedgerEntry).where(LedgerEntry.subject == subject, LedgerEntry.number > after)
    return list(session.exec(query.order_by(col(LedgerEntry.number)).limit(limit)))


def digest(state: Any) -> str | None:
    """Hash of plain data, the same whatever the order of its keys."""
    if state is None:
        return None
    return hashlib.sha256(_canonical(state).encode("utf-8", "surrogatepass")).hexdigest()


def chained(line: LedgerEntry) -> str:
    """The hash that a line must have, from all its fields and the line before."""
    fields = line.model_dump(exclude={"sha256"}) | {"at": line.at.isoformat()}
    return hashlib.sha256(_canonical(fields).encode()).hexdigest()


def _stream(session: Session) -> Iterator[LedgerEntry | None]:
    """All lines by number; None in the place of the first that cannot be read at all, and nothing behind it."""
    query, size = select(LedgerEntry).order_by(col(LedgerEntry.number)), PAGE
    after = query
    while True:
        try:
            page = session.exec(after.limit(size)).all()
        except (ValueError, TypeError):
            if size == 1:
                yield None
                return
            size = 1  # to find out which of the page it is
            continue
        yield from page
        if len(page) < size:
            return
        after = query.where(col(LedgerEntry.number) > page[-1].number)


def _fault(line: LedgerEntry | None, number: int, last: str) -> str:
    """What is wrong with a line that ought to follow this number and hash; empty where nothing is."""
    if line is None:
        return "it was altered: it holds what no line can"
    if line.number != number + 1:
        return "it is gone" if line.number > number else "it was inserted: lines are numbered from 1"
    try:
        own = chained(line)
    except (TypeError, ValueError, AttributeError):
        return "it was altered: it holds what no line can"
    if own != line.sha256:
        return "it was altered: its content is not what its hash was made of"
    return "" if line.previous == last else "it does not follow the line before it: one of the two was replaced"


def _canonical(state: Any) -> str:
    return json.dumps(state, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"a line of the ledger is made of plain data, not of {type(value).__name__}")

"""How far the desk is, and who did what: numbers for the page of a reviewer, and of leads."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func
from sqlmodel import Session, col, select

from service import undo
from service.models import COUNTS, DISPUTED, FOR_PEOPLE, HELD, READ_ONCE, Item, Kind, Review, now
from service.review import history
from service.stored import key

RECENT = 20
PACE = 100  # answers, the newest, whose median time is told


@dataclass(frozen=True, slots=True)
class Recent:
    """One of the reviewer's newest answers and flags. changed: None where they had not seen the proposal."""

    review: int
    item: int
    ref: str
    at: datetime
    bulk: str | None
    changed: bool | None
    undoable: bool


@dataclass(frozen=True, slots=True)
class Mine:
    """settled: answers that were not taken back; today: those of this day, UTC. median_seconds: of the newest 100."""

    settled: int
    today: int
    median_seconds: float | None
    recent: list[Recent]


@dataclass(frozen=True, slots=True)
class Person:
    """As `Mine`, of anybody. flagged: items they asked a lead about."""

    reviewer: str
    settled: int
    today: int
    median_seconds: float | None
    flagged: int


@dataclass(frozen=True, slots=True)
class Workload:
    """waiting: items that wait for a reader, those in somebody's hands (held) included. adjudication: for a lead.

    for_others: of those that wait, the ones that the reviewer has read already. people: None for who is no lead.
    """

    waiting: int
    held: int
    for_others: int
    adjudication: int
    mine: Mine
    people: list[Person] | None


def workload(session: Session, reviewer: str, batch: str | None = None, *, everybody: bool = False) -> Workload:
    """As of now, of one batch or of all. everybody: tell of all people, for a lead."""
    at = now()
    held = session.exec(_count(batch).where(HELD, col(Item.lease_until) > at)).one()
    return Workload(
        waiting=session.exec(_count(batch).where(FOR_PEOPLE)).one(),
        held=held,
        for_others=session.exec(_count(batch).where(READ_ONCE, col(Item.read_by) == reviewer)).one(),
        adjudication=session.exec(_count(batch).where(DISPUTED)).one(),
        mine=_mine(session, reviewer, batch, at),
        people=_people(session, batch, at) if everybody else None,
    )


def _count(batch: str | None) -> Any:
    query = select(func.count()).select_from(Item)
    return query if batch is None else query.where(col(Item.batch_id) == batch)


def _done(batch: str | None) -> list[ColumnElement[bool]]:
    """Conditions on Review: what was not taken back, of one batch or of all."""
    within = select(Item.id).where(col(Item.batch_id) == batch)
    conditions: list[ColumnElement[bool]] = [COUNTS]  # type: ignore[list-item]
    return conditions if batch is None else [*conditions, col(Review.item_id).in_(within)]


def _mine(session: Session, reviewer: str, batch: str | None, at: datetime) -> Mine:
    theirs = [*_done(batch), col(Review.reviewer) == reviewer]
    answers = [*theirs, col(Review.kind) == Kind.answer]
    count = select(func.count()).select_from(Review)
    newest = select(Review).where(*theirs, col(Review.kind) != Kind.adjudication)
    newest = newest.order_by(col(Review.created_at).desc(), col(Review.id).desc()).limit(RECENT)
    reviews = session.exec(newest).all()
    found = session.exec(select(Item).where(col(Item.id).in_([review.item_id for review in reviews])))
    items = {key(item): item for item in found}
    past = history(session, list(items))
    return Mine(
        settled=session.exec(count.where(*answers)).one(),
        today=session.exec(count.where(*answers, col(Review.created_at) >= _midnight(at))).one(),
        median_seconds=_median(session, reviewer, batch),
        recent=[
            Recent(
                review=review.id or 0,
                item=review.item_id,
                ref=items[review.item_id].ref,
                at=review.created_at,
                bulk=review.bulk,
                changed=review.changed if review.shown and review.kind == Kind.answer else None,
                undoable=undo.refusal(items[review.item_id], past[review.item_id], review, reviewer, at) is None,
            )
            for review in reviews
        ],
    )


def _people(session: Session, batch: str | None, at: datetime) -> list[Person]:
    query = select(Review.reviewer, Review.kind, func.count()).where(*_done(batch))
    query = query.group_by(col(Review.reviewer), col(Review.kind))
    total = {(name, kind): count for name, kind, count in session.exec(query)}
    today = {
        (name, kind): count for name, kind, count in session.exec(query.where(col(Review.created_at) >= _midnight(at)))
    }
    return [
        Person(
            reviewer=name,
            settled=total.get((name, Kind.answer), 0),
            today=today.get((name, Kind.answer), 0),
            median_seconds=_median(session, name, batch),
            flagged=total.get((name, Kind.flag), 0),
        )
        for name in sorted({name for name, _ in total})
    ]


def _median(session: Session, reviewer: str, batch: str | None) -> float | None:
    theirs = [*_done(batch), col(Review.reviewer) == reviewer, col(Review.kind) == Kind.answer]
    query = select(Review.seconds).where(*theirs).order_by(col(Review.created_at).desc()).limit(PACE)
    timed = [seconds for seconds in session.exec(query) if seconds is not None]
    return statistics.median(timed) if timed else None


def _midnight(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)

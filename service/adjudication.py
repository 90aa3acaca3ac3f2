"""What people disagree on, or ask about the guideline: a lead settles it, under the desk's own lease and fence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlmodel import Session, col, select

from service import stored
from service.errors import Conflict
from service.labels import Labels, plain, to_row
from service.models import DISPUTED, Item, Kind, Review, State, now
from service.review import (
    check_held,
    check_name,
    check_note,
    checked,
    counts,
    give,
    history,
    holder,
    locked,
    log,
    recorded,
)
from service.stored import Page, key


@dataclass(frozen=True, slots=True)
class Said:
    """What one reader said. kind: `answer`, or `flag`, which has no labels. shown: whether they saw the proposal."""

    review: int
    reviewer: str
    kind: str
    labels: dict[str, Any]
    note: str
    at: datetime
    shown: bool


@dataclass(frozen=True, slots=True)
class Dispute:
    """An item that waits for a lead. proposal: as in a result row; None where the model could not label the text.

    held_by: the lead who has it in their hands at this moment.
    """

    item: int
    ref: str
    text: str
    batch: str
    schema: str
    version: int
    meta: dict[str, Any]
    kind: Literal["disagreement", "guideline_gap"]
    proposal: dict[str, Any] | None
    answers: list[Said]
    held_by: str | None


@dataclass(frozen=True, slots=True)
class Held(Dispute):
    """A dispute in a lead's hands. fence: to be named with the decision. lease_until: nobody else is given it.

    own: whether one of the answers is the lead's.
    """

    fence: int
    lease_until: datetime
    own: bool


def listing(session: Session, after: int = 0, limit: int = 50) -> Page[Dispute]:
    """What waits for a lead, in order of arrival, after an item's id. limit: 1 to 500, and brought within."""
    limit = max(1, min(limit, 500))
    query = select(Item).where(DISPUTED, col(Item.id) > after).order_by(col(Item.id)).limit(limit)
    items = session.exec(query).all()
    return Page(_disputes(session, items), key(items[-1]) if len(items) == limit else None)


def claim(session: Session, item_id: int, lead: str, lease_seconds: float, *, alone: bool = False) -> Held:
    """Take a dispute; asking again gives the same fence. alone: whether nobody else could settle it.

    Raises NotFound; Conflict where it waits for no lead, another one holds it, or the lead is one of those who
    disagree, unless they are alone.
    """
    check_name(lead)
    item = locked(session, item_id)
    at = now()
    _check_disputed(item)
    if holder(item, at) not in (None, lead):
        raise Conflict(f"item {item_id} is in the hands of {item.lease_owner}")
    _check_impartial(session, item_id, lead, alone)
    if item.lease_owner != lead or item.lease_until is None:
        give(item, lead, at)
    item.lease_until = at + timedelta(seconds=lease_seconds)
    session.flush()
    found = _disputes(session, [item])[0]
    fields = {field: getattr(found, field) for field in Dispute.__slots__}
    own = any(one.reviewer == lead for one in found.answers)
    return Held(**fields, fence=item.fence, lease_until=item.lease_until, own=own)


def release(session: Session, item_id: int, fence: int, lead: str) -> None:
    """Hand a dispute back. Who no longer holds it has nothing to hand back, and that is no error. Raises NotFound."""
    item = locked(session, item_id)
    if item.state == State.adjudication and (item.fence, item.lease_owner) == (fence, lead):
        item.lease_owner = item.lease_until = None
        session.flush()


def settle(
    session: Session,
    item_id: int,
    fence: int,
    lead: str,
    labels: Mapping[str, Any],
    reason: str,
    *,
    alone: bool = False,
) -> tuple[Review, bool]:
    """Decide: these labels stand, for this reason. The review, and whether the lead was one of those who disagreed.

    Other answers stay, and do not stand. The same decision again gives the same review. Raises as `claim` and
    `review.resolve`.
    """
    check_note(reason, "reason", needed=True)
    item = locked(session, item_id)
    past = history(session, [item_id])[item_id]
    answer = checked(session, item, labels)
    own = any(counts(one) and one.reviewer == lead and one.kind != Kind.adjudication for one in past)
    for one in past:
        if counts(one, Kind.adjudication) and (one.reviewer, one.labels, one.note) == (lead, answer, reason):
            return one, own
    check_held(item, fence, lead, State.adjudication)
    _check_impartial(session, item_id, lead, alone)
    proposal = stored.said(session, [item_id]).get(item_id)
    review = Review(
        item_id=item_id,
        reviewer=lead,
        kind=Kind.adjudication,
        changed=proposal is None or plain(proposal) != answer,
        labels=answer,
        note=reason,
        taken_at=item.taken_at,
        created_at=now(),
    )
    before = recorded(item, past)
    item.state, item.updated_at = State.resolved, review.created_at
    item.lease_owner = item.lease_until = None
    session.add(review)
    session.flush()
    log(session, "adjudication.settle", lead, item, before, [*past, review])
    return review, own


def _check_disputed(item: Item) -> None:
    if item.state != State.adjudication:
        raise Conflict(f"item {item.id} is {item.state} and waits for no lead")


def readers(session: Session, item_id: int) -> set[str]:
    """Names of those who have given an answer to the item that they have not taken back."""
    said = select(Review.reviewer).where(Review.item_id == item_id, col(Review.withdrawn_at).is_(None))
    return set(session.exec(said))


def _check_impartial(session: Session, item_id: int, lead: str, alone: bool) -> None:
    if not alone and lead in readers(session, item_id):
        raise Conflict(f"item {item_id} has an answer of yours; another lead settles it")


def _disputes(session: Session, items: Sequence[Item]) -> list[Dispute]:
    ids = [key(item) for item in items]
    said, past = stored.said(session, ids), history(session, ids)
    schemas = stored.schemas(session, {item.batch_id for item in items})
    at = now()
    found = []
    for item in items:
        answers = [one for one in past[key(item)] if counts(one, Kind.answer, Kind.flag)]
        labels: Labels | None = said.get(key(item))
        found.append(
            Dispute(
                item=key(item),
                ref=item.ref,
                text=item.text,
                batch=item.batch_id,
                schema=schemas[item.batch_id].name,
                version=schemas[item.batch_id].version,
                meta=item.meta,
                kind="guideline_gap" if any(one.kind == Kind.flag for one in answers) else "disagreement",
                proposal=to_row(labels, item.text) if labels else None,
                answers=[
                    Said(one.id or 0, one.reviewer, one.kind, one.labels, one.note, one.created_at, one.shown)
                    for one in answers
                ],
                held_by=holder(item, at),
            )
        )
    return found

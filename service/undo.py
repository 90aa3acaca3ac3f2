"""Taking back: an answer or a flag of one's own, or all that one act settled; the item is then as it was before.

Nothing is deleted: what was taken back stays, with the time of it, and the ledger has a line of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import Session, select

from service.errors import NotFound
from service.models import Item, ItemDecision, Kind, Review, State, now
from service.review import ReviewTask, counts, give, history, holder, locked, log, recorded, shown_task
from service.stored import key


@dataclass(frozen=True, slots=True)
class Refused:
    """An item that was left as it is. why: in words."""

    item: int
    why: str


@dataclass(frozen=True, slots=True)
class Undone:
    """undone: items that are as before. task: the item, in the reviewer's hands again, where a single one was asked."""

    undone: list[int]
    refused: list[Refused]
    task: ReviewTask | None = None


def one(session: Session, review_id: int, reviewer: str, lease_seconds: float) -> Undone:
    """Take back an answer or a flag, and claim its item for the reviewer again.

    The same again gives the same item, as long as it is in their hands. Raises NotFound for what is not theirs.
    """
    review = session.get(Review, review_id)
    if review is None or review.reviewer != reviewer:
        raise NotFound(f"no review {review_id} of yours")
    item = locked(session, review.item_id)
    past = history(session, [review.item_id])[review.item_id]
    at = now()
    why = refusal(item, past, review, reviewer, at)
    if why is None:
        _take_back(session, item, past, review, at, lease_seconds)
    held = review.withdrawn_at is not None and (item.lease_owner, item.lease_until is None) == (reviewer, False)
    task = shown_task(session, item, session.get_one(ItemDecision, key(item))) if held else None
    return Undone([] if why else [key(item)], [Refused(key(item), why)] if why else [], task)


def many(session: Session, bulk: str, reviewer: str) -> Undone:
    """Take back what one act settled; its items are free again. Raises NotFound for an act that is not theirs."""
    query = select(Review.item_id).where(Review.bulk == bulk, Review.reviewer == reviewer)
    ids = sorted(set(session.exec(query)))
    if not ids:
        raise NotFound(f"no act {bulk!r} of yours")
    items = [locked(session, item) for item in ids]
    pasts = history(session, ids)
    undone, refused, at = [], [], now()
    for item in items:
        past = pasts[key(item)]
        review = next(found for found in reversed(past) if found.bulk == bulk)
        why = refusal(item, past, review, reviewer, at)
        if why is None:
            undone.append((item, past, review))
        else:
            refused.append(Refused(key(item), why))
    for item, past, review in undone:
        _take_back(session, item, past, review, at, None)
    return Undone([key(item) for item, _, _ in undone], refused)


def refusal(item: Item, past: Sequence[Review], review: Review, reviewer: str, at: datetime) -> str | None:
    """Why this review of the item cannot be taken back by who gave it; None where it can. past: all of the item's."""
    later = [found for found in past if counts(found) and (found.id or 0) > (review.id or 0)]
    if review.withdrawn_at is not None:
        return "it was taken back already"
    if review.kind == Kind.adjudication or any(found.kind == Kind.adjudication for found in later):
        return "a lead has decided it"
    if later:
        return "somebody else has answered it since"
    if any(found.gold for found in past if counts(found)):
        return "it went into a gold set"
    if holder(item, at) not in (None, reviewer):
        return "somebody else has it in their hands"
    return None


def _take_back(
    session: Session,
    item: Item,
    past: Sequence[Review],
    review: Review,
    at: datetime,
    lease_seconds: float | None,
) -> None:
    before = recorded(item, past)
    review.withdrawn_at = at
    for found in past:
        found.stands = False
    decision = session.get_one(ItemDecision, key(item))
    left = [found.reviewer for found in past if counts(found, Kind.answer)]
    item.answers, item.read_by = len(left), left[-1] if left else None
    item.state, item.updated_at = State(decision.outcome), decision.created_at
    give(item, review.reviewer, at)
    if lease_seconds is None:
        item.lease_owner = item.lease_until = item.taken_at = None
    else:
        item.lease_until = at + timedelta(seconds=lease_seconds)
    session.flush()
    log(session, "review.undo", review.reviewer, item, before, past)

"""The desk: hands doubtful items to people one at a time, under the same lease and fence as the workers' queue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, func, or_, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Session, col, select

from service import stored
from service.errors import Conflict, Invalid, NotFound
from service.labels import Labels, from_row, plain, to_row
from service.models import FOR_PEOPLE, Item, ItemDecision, Review, State, now
from service.route import Code, Decision, Outcome
from service.schema import Schema
from service.stored import Page, key, least_confidence, storable

SEEN = (State.review, State.audit, State.resolved)
MAX_NOTE = 4000
Order = Literal["uncertain", "oldest"]


@dataclass(frozen=True, slots=True)
class ReviewTask:
    """One item in a reviewer's hands.

    fence: to be named with the answer. lease_until: until then nobody else is given the item.
    schema, version: which schema the answer must follow.
    proposal: the model's labels as in a result row (`labels.to_row`); None where it could not label the text.
    complete: for each spans task the probability that no mention was missed, where the engine gave one.
    confidence: the least of all confidences of the proposal.
    decision: `review` or `audit`. reasons: code, task, label, and the value measured against the threshold.
    """

    item: int
    fence: int
    lease_until: datetime
    ref: str
    text: str
    batch: str
    schema: str
    version: int
    proposal: dict[str, Any] | None
    complete: dict[str, float]
    confidence: float | None
    recipe: str | None
    decision: str
    reasons: list[dict[str, Any]]
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the list of reviews.

    reviewer: who holds the item at this moment, or who settled it; None where it waits.
    proposal: what the model said, labels: what the person said, both as in a gold file.
    changed: whether the two differ.
    """

    item: int
    ref: str
    batch: str
    text: str
    state: str
    decision: str
    reasons: list[dict[str, Any]]
    reviewer: str | None
    lease_until: datetime | None
    proposal: dict[str, Any] | None
    labels: dict[str, Any] | None
    changed: bool | None
    note: str
    resolved_at: datetime | None


def priority(labels: Labels | None, decision: Decision) -> float:
    """`Item.priority`, in [0, 1], least first: the least confidence of the labels, 0 where there is none.

    An item of the audit gets its lot, uniform in [0, 1]: it comes as often among the easy as among the hard ones,
    so that the fair sample is neither left to the end nor known by its place.
    """
    lots = [r.value / r.threshold for r in decision.reasons if r.code is Code.audit and r.value and r.threshold]
    if decision.outcome is Outcome.audit:
        return min(lots, default=0.0)
    return (least_confidence(labels) if labels else None) or 0.0


def next_item(
    session: Session,
    reviewer: str,
    *,
    lease_seconds: float,
    batch: str | None = None,
    reason: Code | None = None,
    task: str | None = None,
    order: Order = "uncertain",
) -> ReviewTask | None:
    """Claim the next item for the reviewer; None where none waits. The transaction must be one that may write.

    Who asks again without having settled gets the same item under the same fence, its lease renewed, where it fits
    the filters and nobody else was given it since. What the reviewer handed back comes to them last.
    reason, task: only items with such a reason, or with a reason that names this task; both: one reason does both.
    order: the least sure first, or the oldest first. Raises Invalid for a name that cannot be stored.
    """
    _check_name(reviewer)
    at = now()
    query = (
        select(Item, ItemDecision)
        .join(ItemDecision, col(ItemDecision.item_id) == col(Item.id))
        .where(FOR_PEOPLE, *_filters(session, batch, reason, task))
        .order_by(*([col(Item.priority)] if order == "uncertain" else []), col(Item.id))
        .limit(1)
        .with_for_update(of=Item, skip_locked=True)
        .execution_options(populate_existing=True)
    )
    theirs = col(Item.lease_owner) == reviewer
    found = session.exec(query.where(theirs, col(Item.lease_until).is_not(None))).first()
    if found is None:
        free = or_(col(Item.lease_until).is_(None), col(Item.lease_until) <= at)
        fresh = or_(col(Item.lease_owner).is_(None), col(Item.lease_owner) != reviewer)
        found = session.exec(query.where(free, fresh)).first() or session.exec(query.where(free, theirs)).first()
        if found is None:
            return None
        found[0].fence += 1
        found[0].lease_owner = reviewer
    item, decision = found
    item.lease_until = at + timedelta(seconds=lease_seconds)
    session.flush()
    return _task(session, item, decision)


def resolve(
    session: Session,
    item_id: int,
    fence: int,
    reviewer: str,
    labels: Mapping[str, Any] | None = None,
    note: str = "",
    *,
    accept: bool = False,
) -> Review:
    """Settle an item: every task answered in `labels` (as in a gold file), or `accept` for the proposal as it stands.

    The fence decides: an answer after the lease ended still counts, as long as nobody else was given the item.
    The same answer again by the same reviewer gives the same review. Raises NotFound; Invalid, naming the field, for
    labels that do not fit the schema or leave a task out; Conflict where the item is not, or no longer, the reviewer's.
    """
    _check_name(reviewer)
    _require(len(note) <= MAX_NOTE and storable(note), f"note: expected at most {MAX_NOTE:,} characters, without NUL")
    item = _locked(session, item_id)
    proposal = stored.said(session, [item_id]).get(item_id)
    if accept:
        _require(labels is None, "accept takes the proposal as it stands; it comes without labels")
        _require(proposal is not None, f"item {item_id} has no proposal to accept; it needs labels")
        labels = plain(proposal) if proposal else None
    schema = stored.schemas(session, [item.batch_id])[item.batch_id]
    answer = plain(_answer(labels or {}, item, schema))
    if item.state == State.resolved:
        return _same_again(session, item_id, reviewer, answer, note)
    _check_held(item, fence, reviewer)
    review = Review(
        item_id=item_id,
        reviewer=reviewer,
        changed=proposal is None or plain(proposal) != answer,
        labels=answer,
        note=note,
    )
    item.state = State.resolved
    item.lease_owner = item.lease_until = None
    item.updated_at = now()
    session.add(review)
    session.flush()
    return review


def release(session: Session, item_id: int, fence: int, reviewer: str) -> None:
    """Hand an item back unsettled, at once claimable by anyone. Raises NotFound.

    Who no longer holds it, under this very fence, has nothing to hand back: that changes nothing, and is no error.
    """
    item = _locked(session, item_id)
    if item.state in (State.review, State.audit) and item.fence == fence and item.lease_owner == reviewer:
        item.lease_until = None  # the owner stays, so that the item comes to this reviewer last
        session.flush()


def listing(
    session: Session,
    *,
    batch: str | None = None,
    state: State | None = None,
    reason: Code | None = None,
    task: str | None = None,
    reviewer: str | None = None,
    after: int = 0,
    limit: int = 50,
) -> Page[Entry]:
    """Items that wait for a person or were settled by one, in order of arrival, after an item's id.

    state: review, audit or resolved; None for all three. reviewer: what they hold, or have settled.
    limit: 1 to 500, and brought within.
    """
    limit = max(1, min(limit, 500))
    at = now()
    query = (
        select(Item, ItemDecision)
        .join(ItemDecision, col(ItemDecision.item_id) == col(Item.id))
        .where(col(Item.state).in_([state] if state else SEEN), col(Item.state).in_(SEEN), col(Item.id) > after)
        .where(*_filters(session, batch, reason, task))
        .order_by(col(Item.id))
        .limit(limit)
    )
    if reviewer is not None:
        held = and_(col(Item.lease_owner) == reviewer, col(Item.lease_until) > at)
        theirs = select(Review.id).where(col(Review.item_id) == col(Item.id), col(Review.reviewer) == reviewer)
        query = query.where(or_(held, theirs.exists()))
    found = list(session.exec(query))
    ids = [key(item) for item, _ in found]
    said, answers = stored.said(session, ids), stored.answers(session, ids)
    entries = [_entry(item, decision, said.get(key(item)), answers.get(key(item)), at) for item, decision in found]
    return Page(entries, ids[-1] if len(ids) == limit else None)


def _filters(session: Session, batch: str | None, reason: Code | None, task: str | None) -> list[ColumnElement[bool]]:
    wanted = {"code": reason, "task": task}
    entry = {name: str(value) for name, value in wanted.items() if value is not None}
    conditions: list[ColumnElement[bool]] = [] if batch is None else [col(Item.batch_id) == batch]
    if entry and session.get_bind().dialect.name == "postgresql":
        conditions.append(type_coerce(col(ItemDecision.reasons), JSONB).contains([entry]))
    elif entry:
        each = func.json_each(col(ItemDecision.reasons)).table_valued("value")
        same = [func.json_extract(each.c.value, f"$.{name}") == value for name, value in entry.items()]
        conditions.append(select(1).select_from(each).where(*same).correlate(ItemDecision).exists())
    return conditions


def _locked(session: Session, item_id: int) -> Item:
    query = select(Item).where(col(Item.id) == item_id).with_for_update().execution_options(populate_existing=True)
    item = session.exec(query).first()
    if item is None:
        raise NotFound(f"no item {item_id}")
    return item


def _check_held(item: Item, fence: int, reviewer: str) -> None:
    if item.state not in (State.review, State.audit):
        raise Conflict(f"item {item.id} is {item.state} and waits for nobody")
    if item.fence != fence:
        raise Conflict(f"item {item.id} was given out again since (your fence is {fence}, it is now {item.fence})")
    if item.lease_owner != reviewer or item.lease_until is None:
        raise Conflict(f"item {item.id} is not in your hands; ask for the next one")


def _same_again(session: Session, item_id: int, reviewer: str, answer: Mapping[str, Any], note: str) -> Review:
    """The review that stands, where this is the same answer once more, as after a lost response."""
    review = stored.answers(session, [item_id])[item_id]
    if (review.reviewer, review.labels, review.note) == (reviewer, answer, note):
        return review
    raise Conflict(f"item {item_id} was settled by {review.reviewer} at {review.created_at:%Y-%m-%d %H:%M} UTC")


def _answer(labels: Mapping[str, Any], item: Item, schema: Schema) -> Labels:
    tasks = [task.name for task in schema.tasks]
    for name in labels.keys() - {"complete"}:  # a proposal that is sent back as it came holds the model's own number
        _require(name in tasks, f"{name}: expected a task of the schema {schema.name}: {', '.join(tasks)}", name)
    settled = from_row(labels, item.text, schema)
    for name in tasks:
        answered = name in settled.choices or name in settled.mentions
        _require(answered, f"{name}: expected an answer; an empty list says that there is no mention", name)
    return settled


def _task(session: Session, item: Item, decision: ItemDecision) -> ReviewTask:
    schema = stored.schemas(session, [item.batch_id])[item.batch_id]
    labels = stored.said(session, [key(item)]).get(key(item))
    mentions = labels.mentions if labels else {}
    return ReviewTask(
        item=key(item),
        fence=item.fence,
        lease_until=item.lease_until or now(),
        ref=item.ref,
        text=item.text,
        batch=item.batch_id,
        schema=schema.name,
        version=schema.version,
        proposal=to_row(labels, item.text) if labels else None,
        complete={task: found.complete for task, found in mentions.items() if found.complete is not None},
        confidence=least_confidence(labels) if labels else None,
        recipe=decision.recipe,
        decision=decision.outcome,
        reasons=decision.reasons,
        meta=item.meta,
    )


def _entry(item: Item, decision: ItemDecision, said: Labels | None, answer: Review | None, at: datetime) -> Entry:
    held = item.lease_until is not None and item.lease_until > at
    return Entry(
        item=key(item),
        ref=item.ref,
        batch=item.batch_id,
        text=item.text,
        state=item.state,
        decision=decision.outcome,
        reasons=decision.reasons,
        reviewer=answer.reviewer if answer else item.lease_owner if held else None,
        lease_until=item.lease_until if held else None,
        proposal=plain(said) if said else None,
        labels=answer.labels if answer else None,
        changed=answer.changed if answer else None,
        note=answer.note if answer else "",
        resolved_at=answer.created_at if answer else None,
    )


def _check_name(reviewer: str) -> None:
    _require(
        0 < len(reviewer) <= 100 and storable(reviewer), "reviewer: expected a name of 1 to 100 characters, without NUL"
    )


def _require(holds: bool, expected: str, field: str | None = None) -> None:
    if not holds:
        raise Invalid(expected, {"field": field} if field else None)

"""The desk: hands doubtful items to people one at a time, under the same lease and fence as the workers' queue.

An item drawn for two readers is read by one after the other, under its one lease; neither learns of the other. What
they agree on stands. What they do not, and what a reader flags as a gap of the guideline, waits for a lead
(`adjudication`). What is taken back is in `undo`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, func, or_, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Session, col, select

from service import ledger, stored
from service.errors import Conflict, Invalid, NotFound
from service.labels import Labels, from_row, plain, to_row
from service.models import COUNTS, FOR_PEOPLE, Item, ItemDecision, Kind, Review, State, now
from service.route import Code, Decision, Outcome
from service.schema import Schema
from service.stored import Page, key, least_confidence, storable

WAITING = (State.review, State.audit)
SEEN = (*WAITING, State.adjudication, State.resolved)
MAX_NOTE = 4000
Order = Literal["uncertain", "oldest"]


@dataclass(frozen=True, slots=True)
class ReviewTask:
    """One item in a reviewer's hands.

    fence: to be named with the answer. lease_until: until then nobody else is given the item.
    schema, version: which schema the answer must follow.
    shown: whether this reader sees the proposal. Where not, nothing of it is here: not the reasons either, which name
    labels.
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
    shown: bool
    proposal: dict[str, Any] | None
    complete: dict[str, float]
    confidence: float | None
    recipe: str | None
    decision: str
    reasons: list[dict[str, Any]]
    meta: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cost:
    """What an answer cost its reader, as the page measured it; None where nobody did.

    seconds: with the item before them. actions: keys, clicks and drags that changed something.
    """

    seconds: float | None = None
    actions: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the list of reviews.

    reviewer: who holds the item at this moment, or whose answer stands; None where it waits.
    proposal: what the model said, labels: what stands of what people said, both as in a gold file. Nothing of the
    proposal, nor the reasons, before an item is settled of which some reader is not to see it.
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
    first: Sequence[int] = (),
) -> ReviewTask | None:
    """Claim the next item for the reviewer; None where none waits. The transaction must be one that may write.

    Who asks again without having settled gets the same item under the same fence, its lease renewed, where it fits
    the filters and nobody else was given it since. What the reviewer handed back comes to them last; what they have
    answered never comes again.
    reason, task: only items with such a reason, or with a reason that names this task; both: one reason does both.
    order: the least sure first, or the oldest first; before them `first`, the ids of items in the order wanted, as
    `similar.informative` gives them. Raises Invalid for a name that cannot be stored.
    """
    check_name(reviewer)
    at = now()
    query = (
        select(Item, ItemDecision)
        .join(ItemDecision, col(ItemDecision.item_id) == col(Item.id))
        .where(FOR_PEOPLE, *filters(session, batch, reason, task))
        .order_by(*([col(Item.priority)] if order == "uncertain" else []), col(Item.id))
        .limit(1)
        .with_for_update(of=Item, skip_locked=True)
        .execution_options(populate_existing=True)
    )
    theirs = col(Item.lease_owner) == reviewer
    found = session.exec(query.where(theirs, col(Item.lease_until).is_not(None))).first()
    if found is None:
        fresh = or_(col(Item.lease_owner).is_(None), col(Item.lease_owner) != reviewer)
        wanted = [*((col(Item.id) == item, fresh) for item in first), (fresh,), (theirs,)]
        open_to = query.where(free(at), unread_by(reviewer))
        found = next((one for which in wanted if (one := session.exec(open_to.where(*which)).first())), None)
        if found is None:
            return None
        give(found[0], reviewer, at)
    item, decision = found
    item.lease_until = at + timedelta(seconds=lease_seconds)
    session.flush()
    return shown_task(session, item, decision)


def holder(item: Item, at: datetime) -> str | None:
    """Whose lease on the item lasts."""
    return item.lease_owner if item.lease_until is not None and item.lease_until > at else None


def free(at: datetime) -> ColumnElement[bool]:
    """Items that nobody holds."""
    return or_(col(Item.lease_until).is_(None), col(Item.lease_until) <= at)


def renew(session: Session, item_id: int, fence: int, reviewer: str, lease_seconds: float) -> datetime:
    """Extend a lease, also one that ended, as long as nobody else was given the item; the moment it now ends.

    Also of an item that a lead holds to settle it. Raises NotFound; Conflict where it is not, or no longer, theirs.
    """
    item = locked(session, item_id)
    check_held(item, fence, reviewer, *WAITING, State.adjudication)
    until = item.lease_until = now() + timedelta(seconds=lease_seconds)
    session.flush()
    return until


def resolve(
    session: Session,
    item_id: int,
    fence: int,
    reviewer: str,
    labels: Mapping[str, Any] | None = None,
    note: str = "",
    *,
    accept: bool = False,
    cost: Cost = Cost(),
) -> Review:
    """Answer an item: every task in `labels` (as in a gold file), or `accept` for the proposal as it stands.

    That settles it, unless a second reader is still to come, or has answered otherwise: its state then says so.
    The fence decides: an answer after the lease ended still counts, as long as nobody else was given the item.
    The same answer again by the same reviewer gives the same review. Raises NotFound; Invalid, naming the field, for
    labels that do not fit the schema or leave a task out, or a proposal that the reader was not shown; Conflict where
    the item is not, or no longer, the reviewer's.
    """
    check_name(reviewer)
    check_note(note)
    item = locked(session, item_id)
    past = history(session, [item_id])[item_id]
    mine = next((one for one in past if one.reviewer == reviewer and counts(one, Kind.answer)), None)
    shown = mine.shown if mine else is_shown(item)
    proposal = stored.said(session, [item_id]).get(item_id)
    if accept:
        _require(labels is None, "accept takes the proposal as it stands; it comes without labels")
        _require(shown, "accept: expected labels; the proposal of this item was not shown")
        _require(proposal is not None, f"item {item_id} has no proposal to accept; it needs labels")
        labels = plain(proposal) if proposal else None
    answer = checked(session, item, labels or {})
    if mine or item.state == State.resolved:
        return _same_again(item, past, mine, answer, note)
    check_held(item, fence, reviewer, *WAITING)
    review = Review(
        item_id=item_id,
        reviewer=reviewer,
        changed=proposal is None or plain(proposal) != answer,
        labels=answer,
        note=note,
        shown=shown,
        seconds=cost.seconds,
        actions=cost.actions,
        taken_at=item.taken_at,
        created_at=now(),
    )
    before = recorded(item, past)
    _settle(item, past, review)
    session.add(review)
    session.flush()
    log(session, "review.settle", reviewer, item, before, [*past, review])
    return review


def flag(session: Session, item_id: int, fence: int, reviewer: str, note: str) -> Review:
    """Ask a lead: the guideline does not say what is right here. note: what it leaves open, at least a character.

    The same flag again gives the same review. Raises as `resolve`.
    """
    check_name(reviewer)
    check_note(note, needed=True)
    item = locked(session, item_id)
    past = history(session, [item_id])[item_id]
    for one in past:
        if one.reviewer == reviewer and counts(one, Kind.flag) and one.note == note:
            return one
    check_held(item, fence, reviewer, *WAITING)
    review = Review(
        item_id=item_id,
        reviewer=reviewer,
        kind=Kind.flag,
        changed=False,
        labels={},
        note=note,
        stands=False,
        shown=is_shown(item),
        taken_at=item.taken_at,
        created_at=now(),
    )
    before = recorded(item, past)
    item.state, item.updated_at = State.adjudication, review.created_at
    item.lease_owner = item.lease_until = item.read_by = None
    session.add(review)
    session.flush()
    log(session, "review.flag", reviewer, item, before, [*past, review])
    return review


def release(session: Session, item_id: int, fence: int, reviewer: str, lease_until: datetime | None = None) -> None:
    """Hand an item back unsettled, at once claimable by anyone. Raises NotFound.

    Who no longer holds it, under this very fence, has nothing to hand back: that changes nothing, and is no error.
    lease_until: the lease as the reviewer's page knows it. Where it was renewed since, another page of theirs (the same
    one, loaded again) has the item now and keeps it.
    """
    item = locked(session, item_id)
    if lease_until is not None and item.lease_until != lease_until:
        return
    held = item.fence == fence and item.lease_owner == reviewer and item.lease_until is not None
    if item.state in WAITING and held:
        item.lease_until = None  # the owner stays, so that the item comes to this reviewer last
        session.flush()
        past = history(session, [item_id])[item_id]
        log(session, "review.release", reviewer, item, recorded(item, past), past)


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

    state: review, audit, adjudication or resolved; None for all. reviewer: what they hold, or had a part in settling.
    limit: 1 to 500, and brought within.
    """
    limit = max(1, min(limit, 500))
    at = now()
    query = (
        select(Item, ItemDecision)
        .join(ItemDecision, col(ItemDecision.item_id) == col(Item.id))
        .where(col(Item.state).in_([state] if state else SEEN), col(Item.state).in_(SEEN), col(Item.id) > after)
        .where(*filters(session, batch, reason, task))
        .order_by(col(Item.id))
        .limit(limit)
    )
    if reviewer is not None:
        held = and_(col(Item.lease_owner) == reviewer, col(Item.lease_until) > at)
        theirs = select(Review.id).where(COUNTS, col(Review.item_id) == col(Item.id), col(Review.reviewer) == reviewer)
        # Who has read an item that somebody else is still to read is not for the second to know.
        query = query.where(or_(held, and_(col(Item.state) == State.resolved, theirs.exists())))
    found = list(session.exec(query))
    ids = [key(item) for item, _ in found]
    said, answers = stored.said(session, ids), stored.answers(session, ids)
    entries = [_entry(item, decision, said.get(key(item)), answers.get(key(item)), at) for item, decision in found]
    return Page(entries, ids[-1] if len(ids) == limit else None)


def unread_by(reviewer: str) -> ColumnElement[bool]:
    """That the reviewer has not answered an item that waits. What they flagged does not wait for readers."""
    return or_(col(Item.read_by).is_(None), col(Item.read_by) != reviewer)


def filters(session: Session, batch: str | None, reason: Code | None, task: str | None) -> list[ColumnElement[bool]]:
    """Conditions on Item and ItemDecision; see `next_item`."""
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


def locked(session: Session, item_id: int) -> Item:
    """The item as it is now, held until the transaction ends. Raises NotFound."""
    query = select(Item).where(col(Item.id) == item_id).with_for_update().execution_options(populate_existing=True)
    item = session.exec(query).first()
    if item is None:
        raise NotFound(f"no item {item_id}")
    return item


def give(item: Item, reviewer: str, at: datetime) -> None:
    """Into these hands, under a new fence. The lease is the caller's to set."""
    item.fence += 1
    item.lease_owner, item.taken_at = reviewer, at


def is_shown(item: Item) -> bool:
    """Whether the item's next reader sees the proposal."""
    return not item.hidden >> item.answers & 1


def check_held(item: Item, fence: int, reviewer: str, *states: State) -> None:
    """Raises Conflict unless the item is in one of these states and in the reviewer's hands under this fence."""
    if item.state not in states:
        waits = "waits for a lead" if item.state == State.adjudication else f"is {item.state} and waits for nobody"
        raise Conflict(f"item {item.id} {waits}")
    if item.fence != fence:
        raise Conflict(f"item {item.id} was given out again since (your fence is {fence}, it is now {item.fence})")
    if item.lease_owner != reviewer or item.lease_until is None:
        raise Conflict(f"item {item.id} is not in your hands; ask for the next one")


def history(session: Session, items: Sequence[int]) -> dict[int, list[Review]]:
    """All that people said of these items, oldest first, with what was taken back."""
    found: dict[int, list[Review]] = {item: [] for item in items}
    query = select(Review).where(col(Review.item_id).in_(items)).order_by(col(Review.id))
    for one in session.exec(query.execution_options(populate_existing=True)):
        found[one.item_id].append(one)
    return found


def counts(review: Review, *kinds: Kind) -> bool:
    """Whether it was not taken back, and is of one of these kinds; none: of any."""
    return review.withdrawn_at is None and (not kinds or review.kind in kinds)


def recorded(item: Item, past: Iterable[Review]) -> dict[str, Any]:
    """What the ledger keeps the hash of: how far the item is, and all that people said of it.

    Claims change none of it, so that each line of an item begins with what the line before ended with, and the last
    one with what the tables hold.
    """
    said = [one.model_dump(exclude={"item_id", "gold"}) for one in past]
    return {"state": str(item.state), "answers": item.answers, "reviews": said}


def log(session: Session, action: str, who: str, item: Item, before: Mapping[str, Any], past: Iterable[Review]) -> None:
    """Write the change into the ledger. before: `recorded` earlier; past: what people said of the item, as of now."""
    decision = session.get(ItemDecision, item.id)
    ledger.append(
        session,
        who=who,
        action=action,
        subject=f"item:{item.id}",
        before=before,
        after=recorded(item, past),
        recipe=decision.recipe if decision else None,
    )


def checked(session: Session, item: Item, labels: Mapping[str, Any]) -> dict[str, Any]:
    """A complete answer as in a gold file. Raises Invalid, naming the task."""
    schema = stored.schemas(session, [item.batch_id])[item.batch_id]
    return plain(_answer(labels, item, schema))


def _settle(item: Item, past: Sequence[Review], review: Review) -> None:
    """What an answer makes of its item: settled, waiting for the second reader, or for a lead."""
    first = next((one for one in past if counts(one, Kind.answer)), None)
    item.answers += 1
    item.lease_owner = item.lease_until = None
    review.stands = False
    item.read_by = review.reviewer if item.answers < item.readers else None
    if item.read_by is not None:
        return
    agreed = first is None or first.labels == review.labels
    item.state, item.updated_at = State.resolved if agreed else State.adjudication, review.created_at
    (first or review).stands = agreed


def _same_again(
    item: Item, past: Sequence[Review], mine: Review | None, answer: Mapping[str, Any], note: str
) -> Review:
    """The reviewer's own answer, where this is the same once more, as after a lost response."""
    if mine and (mine.labels, mine.note) == (answer, note):
        return mine
    stands = next((one for one in past if one.stands), None)
    if stands is None:
        raise Conflict(f"you have answered item {item.id} otherwise; take that back first")
    raise Conflict(f"item {item.id} was settled by {stands.reviewer} at {stands.created_at:%Y-%m-%d %H:%M} UTC")


def _answer(labels: Mapping[str, Any], item: Item, schema: Schema) -> Labels:
    tasks = [task.name for task in schema.tasks]
    for name in labels.keys() - {"complete"}:  # a proposal that is sent back as it came holds the model's own number
        _require(name in tasks, f"{name}: expected a task of the schema {schema.name}: {', '.join(tasks)}", name)
    settled = from_row(labels, item.text, schema)
    for name in tasks:
        answered = name in settled.choices or name in settled.mentions
        _require(answered, f"{name}: expected an answer; an empty list says that there is no mention", name)
    return settled


def shown_task(session: Session, item: Item, decision: ItemDecision) -> ReviewTask:
    """The item as its reader may see it."""
    schema = stored.schemas(session, [item.batch_id])[item.batch_id]
    shown = is_shown(item)
    labels = stored.said(session, [key(item)]).get(key(item)) if shown else None
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
        shown=shown,
        proposal=to_row(labels, item.text) if labels else None,
        complete={task: found.complete for task, found in mentions.items() if found.complete is not None},
        confidence=least_confidence(labels) if labels else None,
        recipe=decision.recipe,
        decision=decision.outcome,
        reasons=decision.reasons if shown else [],
        meta=item.meta,
    )


def _entry(item: Item, decision: ItemDecision, said: Labels | None, answer: Review | None, at: datetime) -> Entry:
    held_by = holder(item, at)
    blind = item.hidden and item.state != State.resolved
    return Entry(
        item=key(item),
        ref=item.ref,
        batch=item.batch_id,
        text=item.text,
        state=item.state,
        decision=decision.outcome,
        reasons=[] if blind else decision.reasons,
        reviewer=answer.reviewer if answer else held_by,
        lease_until=item.lease_until if held_by else None,
        proposal=plain(said) if said and not blind else None,
        labels=answer.labels if answer else None,
        changed=answer.changed if answer else None,
        note=answer.note if answer else "",
        resolved_at=answer.created_at if answer else None,
    )


def check_name(reviewer: str) -> None:
    """Raises Invalid for a name that cannot be stored."""
    _require(
        0 < len(reviewer) <= 100 and storable(reviewer), "reviewer: expected a name of 1 to 100 characters, without NUL"
    )


def check_note(note: str, field: str = "note", *, needed: bool = False) -> None:
    """Raises Invalid for a note that is too long or cannot be stored, or that is needed and says nothing."""
    least = "1 to" if needed else "at most"
    holds = len(note) <= MAX_NOTE and storable(note) and bool(note.strip() or not needed)
    _require(holds, f"{field}: expected {least} {MAX_NOTE:,} characters, without NUL", field)


def _require(holds: bool, expected: str, field: str | None = None) -> None:
    if not holds:
        raise Invalid(expected, {"field": field} if field else None)

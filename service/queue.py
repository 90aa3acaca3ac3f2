"""The item table is the queue: claim under a lease, renew it, store what came out, or give it back.

Functions over a Session that never commit. Every claim raises the item's fence; whoever writes names the fence it
claimed with, so that the result of a worker that was given up for dead is dropped, however late it wakes.

An item is suspect once a claim of it ended in nothing. Suspects are isolated by bisection: after one such claim they
go out about sqrt(limit) at a time, after two one at a time, and always to an owner that holds nothing else, since
what kills a process takes all down that the process holds. After three the item goes to review as `failed`. So a
poison text costs three processes and one review, and its neighbours are labelled.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, func, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, col, select

from service import db, models, route
from service.labels import Labels
from service.models import LEASED, QUEUED, Annotation, Batch, Item, ItemDecision, Recipe, SchemaVersion, State
from service.review import priority
from service.stored import cleaned

ATTEMPTS = 3

_LIVE_BATCHES = text("""
    WITH RECURSIVE live(id) AS (
        SELECT min(batch_id) FROM item WHERE state = 'queued'
        UNION ALL
        SELECT (SELECT min(batch_id) FROM item WHERE state = 'queued' AND batch_id > live.id)
        FROM live WHERE live.id IS NOT NULL
    )
    SELECT batch.id,
        (SELECT min(attempt) FROM item WHERE state = 'queued' AND batch_id = batch.id) AS least,
        (SELECT max(attempt) FROM item WHERE state = 'queued' AND batch_id = batch.id) AS most
    FROM live JOIN batch ON batch.id = live.id
    ORDER BY batch.claimed_at IS NOT NULL, batch.claimed_at, batch.created_at, batch.id
""")


@dataclass(frozen=True, slots=True)
class Claimed:
    """One leased item. Whoever writes its result names `fence`. attempt: 1 for the first."""

    id: int
    fence: int
    text: str
    ref: str
    position: int
    batch_id: str
    attempt: int
    text_sha256: str


@dataclass(frozen=True, slots=True)
class ClaimedBatch:
    """What a worker needs to know of the batch of its items."""

    id: str
    schema: dict[str, Any]  # body of the schema version
    schema_sha256: str
    prompt: str
    second_prompt: str | None
    policy: dict[str, Any]
    gold: str | None


@dataclass(frozen=True, slots=True)
class Claim:
    """Items of one batch, held by one owner until their leases end."""

    owner: str
    batch: ClaimedBatch
    items: tuple[Claimed, ...]

    @property
    def suspect(self) -> bool:
        return any(item.attempt > 1 for item in self.items)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one claimed item. labels and recipe are None where it could not be labelled.

    readings: how people read it, if it comes to them.
    """

    item_id: int
    decision: route.Decision
    labels: Labels | None = None
    recipe: str | None = None
    readings: route.Readings = route.ONCE


@dataclass(frozen=True, slots=True)
class _Live:
    """A batch with queued items, and the least and most attempts among them."""

    id: str
    least: int
    most: int


def claim(session: Session, owner: str, limit: int, lease_seconds: float) -> Claim | None:
    """Lease up to `limit` queued items of one batch to the owner; None where there is nothing for it now.

    owner: names a process, not a coroutine: workers that die together share it.
    Expired leases return to the queue first. Batches take turns: the one claimed longest ago comes next, a new one
    at once, so that a small batch does not wait for a huge one.
    Also None while the owner holds a suspect, or must finish what it holds before it is given one; suspects that
    have waited for `lease_seconds` go before fresh items.
    """
    _take_turns(session, owner)
    clock = db.clock(session)
    _reclaim(session, clock)
    live = _live(session, clock)
    if not live:
        return None
    held, worst = _holding(session, owner)
    suspects = [batch for batch in live if batch.most > 0]
    if worst > 1:
        return None
    if suspects and not held:
        candidates, fresh = suspects, False
    elif suspects and _waited(session, suspects) < clock - timedelta(seconds=lease_seconds):
        return None
    else:
        candidates, fresh = [batch for batch in live if batch.least == 0], True
    for batch in candidates:
        attempt = 0 if fresh else batch.most
        ids = _lock_queued(session, batch.id, attempt, _portion(limit, attempt))
        if ids:
            if len(live) > 1:  # alone it needs no turns, and many workers need not queue for the batch's row
                session.exec(update(Batch).where(col(Batch.id) == batch.id).values(claimed_at=clock))
            return _lease(session, owner, batch.id, ids, clock, lease_seconds)
    return None


def renew(session: Session, claim: Claim, lease_seconds: float) -> int:
    """Extend the leases of those items that are still the claim's, and return how many these are."""
    clock = db.clock(session)
    held = _held(session, claim, [item.id for item in claim.items])
    _update(session, held, {"lease_until": clock + timedelta(seconds=lease_seconds)})
    return len(held)


def store(session: Session, claim: Claim, results: Sequence[Result]) -> int:
    """Write annotations, decision and state of each item; return how many were written.

    Dropped: an item that was claimed again since, was cancelled, or is done already. Writing the same recipe's
    annotation again replaces it.
    """
    held = set(_held(session, claim, [result.item_id for result in results]))
    kept = [result for result in results if result.item_id in held]
    if not kept:
        return 0
    clock = db.clock(session)
    annotations = [
        {"item_id": result.item_id, "task": task, "recipe": result.recipe, "value": value, "created_at": clock}
        for result in kept
        if result.labels is not None
        for task, value in _values(result.labels).items()
    ]
    if annotations:
        _upsert(session, Annotation, annotations, ("item_id", "task", "recipe"))
    _upsert(session, ItemDecision, [_decision_row(result, clock) for result in kept], ("item_id",))
    _finish(session, kept, clock)
    return len(kept)


def release(session: Session, claim: Claim, item_ids: Collection[int], count_attempt: bool) -> int:
    """Give items back to the queue; return how many were still the claim's.

    count_attempt: whether the attempt counts against the item; not where the engine was down or the worker stops.
    """
    held = _held(session, claim, item_ids)
    values: dict[str, Any] = {"state": State.queued, "lease_owner": None, "lease_until": None}
    values["updated_at"] = db.clock(session)
    if not count_attempt:
        values["attempt"] = Item.attempt - 1
    _update(session, held, values)
    return len(held)


def keep_recipe(session: Session, sha256: str, body: Mapping[str, Any]) -> None:
    """Have the recipe in its table before an annotation names it."""
    row = {"sha256": sha256, "body": dict(body), "created_at": models.now()}
    session.exec(_insert(session, Recipe).on_conflict_do_nothing(), params=[row])


def _take_turns(session: Session, owner: str) -> None:
    """Claims of one owner one after the other, so that each sees what the one before took."""
    if session.get_bind().dialect.name == "postgresql":
        session.exec(select(func.pg_advisory_xact_lock(func.hashtextextended(owner, 0))))


def _reclaim(session: Session, clock: datetime) -> None:
    """Return expired leases to the queue."""
    expired = select(Item.id).where(LEASED, col(Item.lease_until) < clock).order_by(col(Item.id))
    ids = session.exec(expired.with_for_update(skip_locked=True)).all()
    _update(session, ids, {"state": State.queued, "lease_owner": None, "lease_until": None, "updated_at": clock})


def _live(session: Session, clock: datetime) -> list[_Live]:
    """Batches with queued items, next one first. What has had its attempts is sent to review on the way."""
    live = [_Live(*row) for row in session.connection().execute(_LIVE_BATCHES)]
    spent = [batch.id for batch in live if batch.most >= ATTEMPTS]
    if not spent:
        return live
    query = select(Item.id).where(QUEUED, col(Item.batch_id).in_(spent), col(Item.attempt) >= ATTEMPTS)
    _give_up(session, session.exec(query.order_by(col(Item.id)).with_for_update(skip_locked=True)).all(), clock)
    return [_Live(*row) for row in session.connection().execute(_LIVE_BATCHES)]


def _give_up(session: Session, ids: Sequence[int | None], clock: datetime) -> None:
    detail = f"{ATTEMPTS} attempts ended without an answer; the last was on this text alone"
    decision = route.refuse(route.Code.failed, detail)
    results = [Result(item_id=item, decision=decision) for item in ids if item is not None]
    if results:
        _upsert(session, ItemDecision, [_decision_row(result, clock) for result in results], ("item_id",))
        _finish(session, results, clock)


def _holding(session: Session, owner: str) -> tuple[int, int]:
    """How many items the owner holds, and the most attempts among them, this one included."""
    query = select(func.count(), func.max(Item.attempt)).where(LEASED, col(Item.lease_owner) == owner)
    count, worst = session.exec(query).one()
    return count, worst or 0


def _waited(session: Session, suspects: Sequence[_Live]) -> datetime:
    """Since when the oldest suspect is in the queue."""
    ids = [batch.id for batch in suspects]
    query = select(func.min(Item.updated_at)).where(QUEUED, col(Item.batch_id).in_(ids), col(Item.attempt) > 0)
    since: datetime | None = session.exec(query).one()
    return since or models.now()


def _portion(limit: int, attempt: int) -> int:
    return limit if attempt == 0 else max(1, math.isqrt(limit)) if attempt == 1 else 1


def _lock_queued(session: Session, batch_id: str, attempt: int, limit: int) -> list[int]:
    """Queued items of the batch with this many attempts, in order of position, that nobody else is claiming.

    The order is that of ix_item_queued alone. With an equality on attempt PostgreSQL could take the order of (batch_id,
    position) for good enough, and read all the finished items again at every claim.
    """
    within = (col(Item.attempt) >= attempt, col(Item.attempt) < attempt + 1)
    query = select(Item.id).where(QUEUED, col(Item.batch_id) == batch_id, *within)
    query = query.order_by(col(Item.attempt), col(Item.position)).limit(limit)
    return [item for item in session.exec(query.with_for_update(skip_locked=True)) if item is not None]


def _lease(
    session: Session, owner: str, batch_id: str, ids: Sequence[int], clock: datetime, lease_seconds: float
) -> Claim:
    values = {
        "state": State.leased,
        "fence": Item.fence + 1,
        "attempt": Item.attempt + 1,
        "lease_owner": owner,
        "lease_until": clock + timedelta(seconds=lease_seconds),
        "updated_at": clock,
    }
    _update(session, ids, values)
    names = ("id", "fence", "text", "ref", "position", "batch_id", "attempt", "text_sha256")
    columns = [getattr(Item, name) for name in names]
    rows = session.exec(select(*columns).where(col(Item.id).in_(ids)).order_by(col(Item.position)))
    found, schema = session.exec(
        select(Batch, SchemaVersion).join(SchemaVersion).where(col(Batch.id) == batch_id)
    ).one()
    return Claim(
        owner=owner,
        batch=ClaimedBatch(
            found.id, schema.body, schema.sha256, found.prompt, found.second_prompt, found.policy, found.gold
        ),
        items=tuple(Claimed(*row) for row in rows),
    )


def _held(session: Session, claim: Claim, item_ids: Collection[int]) -> list[int]:
    """Those of the items that are still the claim's, locked. All who lock several items lock them by id."""
    fences = {item.id: item.fence for item in claim.items}
    wanted = [item for item in item_ids if item in fences]
    query = select(Item.id, Item.fence).where(col(Item.id).in_(wanted), col(Item.state) == State.leased)
    rows = session.exec(query.order_by(col(Item.id)).with_for_update())
    return [item for item, fence in rows if item is not None and fence == fences[item]]


def _values(labels: Labels) -> dict[str, dict[str, Any]]:
    said = {**labels.choices, **labels.mentions}
    return {task: value.model_dump(mode="json") for task, value in said.items()}


def _decision_row(result: Result, clock: datetime) -> dict[str, Any]:
    return {
        "item_id": result.item_id,
        "recipe": result.recipe,
        "outcome": result.decision.outcome.value,
        "reasons": [_clean(reason.model_dump(mode="json", exclude_none=True)) for reason in result.decision.reasons],
        "inclusion": result.decision.inclusion,
        "standard": result.decision.standard,
        "probability": result.decision.probability,
        "created_at": clock,
    }


def _clean(reason: dict[str, Any]) -> dict[str, Any]:
    """An engine's message may hold anything; PostgreSQL takes neither NUL nor half a surrogate pair."""
    return reason | {"detail": cleaned(str(reason["detail"]))}


def _finish(session: Session, results: Sequence[Result], clock: datetime) -> None:
    """The items' state is the decision's outcome; the lease ends."""
    rows = [
        {
            "id": result.item_id,
            "state": State(result.decision.outcome.value),
            "priority": priority(result.labels, result.decision),
            "readers": result.readings.readers,
            "hidden": result.readings.hidden if result.labels is not None else 0,
            "lease_owner": None,
            "lease_until": None,
            "updated_at": clock,
        }
        for result in results
    ]
    session.exec(update(Item), params=rows)


def _update(session: Session, ids: Sequence[int | None], values: Mapping[str, Any]) -> None:
    if ids:
        statement = update(Item).where(col(Item.id).in_(ids)).values(**values)
        session.exec(statement.execution_options(synchronize_session=False))


def _insert(session: Session, table: type[SQLModel]) -> postgresql.Insert | sqlite.Insert:
    """An insert that can say what to do on conflict; both databases spell it alike."""
    return postgresql.insert(table) if session.get_bind().dialect.name == "postgresql" else sqlite.insert(table)


def _upsert(session: Session, table: type[SQLModel], rows: list[dict[str, Any]], key: tuple[str, ...]) -> None:
    statement = _insert(session, table)
    others: dict[str, ColumnElement[Any]] = {name: statement.excluded[name] for name in rows[0] if name not in key}
    session.exec(statement.on_conflict_do_update(index_elements=list(key), set_=others), params=rows)

"""Batches: many texts, durable. Accepted once, followed by counts or events, read as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Header, Path, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, ConfigDict, FailFast, Field
from sqlalchemy import func, tuple_
from sqlmodel import Session, col, select
from starlette.concurrency import run_in_threadpool

from service import batches, db, measure, models, prompt
from service.annotate import Plan
from service.api.bodies import NDJSON, Route, lines
from service.api.dependencies import BODY, ClientDep, Limit, ReadDep, RunningDep, SessionDep, Word, errors
from service.batches import BatchCreate, TextCreate
from service.engine import Identity
from service.models import Item, SchemaVersion, State
from service.running import Running
from service.worker import wake

router = APIRouter(route_class=Route, tags=["batches"])

PAGE = 500  # rows of a stream read in one transaction
POLL_SECONDS = (0.5, 2.0)  # between looks at a batch that is followed: while it moves, while it stands still

BatchId = Annotated[Word, Path(min_length=1, max_length=32, description="id of the batch")]

ID = "3f0c8a52b1d94c6e8a7f2b90d1e4c5a6"
EXAMPLE: dict[str, Any] = {
    "texts": [
        {"id": "mail-17", "text": "My Samsung tablet arrived broken in New York, I want my money back."},
        {"id": "mail-18", "text": "Where is order #A-1042?", "meta": {"channel": "mail"}},
    ],
    "schema": "support",
    "policy": {"choice_confidence": 0.7, "audit_share": 0.05},
}
ACCEPTED: dict[str, Any] = {
    "id": ID,
    "schema": "support",
    "version": 1,
    "prompt": "line.v1",
    "second_prompt": None,
    "gold": None,
    "total": 2,
    "created_at": "2026-11-20T09:30:00Z",
}
PROGRESS: dict[str, Any] = {
    "cancelled_at": None,
    "counts": {
        "queued": 1,
        "leased": 0,
        "accepted": 1,
        "review": 0,
        "audit": 0,
        "adjudication": 0,
        "resolved": 0,
        "cancelled": 0,
    },
    "done": 1,
    "finished": False,
}


class BatchBody(BatchCreate):
    """Texts to annotate with one schema and one prompt."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    texts: Annotated[tuple[TextCreate, ...], Field(min_length=1), FailFast()] = Field(
        description="the texts, in the order in which their results come back"
    )


class Accepted(BaseModel):
    """A batch as it was accepted: the same however often and whenever it is asked for."""

    model_config = ConfigDict(json_schema_extra={"examples": [ACCEPTED]}, serialize_by_alias=True)

    id: str
    schema_name: str = Field(serialization_alias="schema")
    version: int = Field(description="version of the schema")
    prompt: str
    second_prompt: str | None
    gold: str | None
    total: int = Field(description="texts")
    created_at: datetime


class Counted(Accepted):
    model_config = ConfigDict(json_schema_extra={"examples": [ACCEPTED | PROGRESS]}, serialize_by_alias=True)

    cancelled_at: datetime | None
    counts: dict[State, int] = Field(description="texts by state, adding up to total")
    done: int = Field(description="texts that are neither queued nor with a worker")
    finished: bool = Field(description="whether all are done")


class BatchProgress(Counted):
    model_config = ConfigDict(
        json_schema_extra={"examples": [ACCEPTED | PROGRESS | {"policy": {}, "rate": 3.2, "seconds_left": 0.3}]},
        serialize_by_alias=True,
    )

    policy: dict[str, Any]
    rate: float = Field(description="texts a second over the last minute")
    seconds_left: float | None = Field(description="None while nothing moves")


class BatchPage(BaseModel):
    rows: list[Counted]
    after: str | None = Field(description="to ask with for the next page; None where there is none")


class Cancelled(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"id": ID, "cancelled": 1}]})

    id: str
    cancelled: int = Field(description="texts that had not been done, and now will not be")


@router.post(
    "/v1/batches",
    status_code=202,
    summary="Accept a batch",
    response_description="Accepted and safely stored; it is being worked on",
    responses=errors(404, 409, 503, *BODY)
    | {
        200: {"model": Accepted, "description": "It was accepted before; this is that batch"},
        202: {"headers": {"Location": {"description": "The batch", "schema": {"type": "string"}}}},
    },
)
def accept(
    new: BatchBody,
    caller: ClientDep,
    service: RunningDep,
    session: SessionDep,
    response: Response,
    background: BackgroundTasks,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=200, description="the same key with the same content: one batch")
    ] = None,
) -> Accepted:
    """Store texts to be annotated; the answer comes after the commit.

    Sending the same again, under the same Idempotency-Key or, without one, with the same content, gives the batch
    that is there. The same key with other content is a conflict. `gold` names a gold set: an answer that differs
    from it goes to review.
    """
    schema = batches.find_schema(session, new.schema_name, new.schema_version)
    name = new.prompt or service.settings.prompt
    # Made only to be refused here, not by every worker, when prompt and schema do not go together.
    first, *second = (prompt.load(service.settings.prompts, asked) for asked in (name, new.second_prompt) if asked)
    Plan(schema, first, Identity(service.settings.engine, service.settings.model), *second)
    batch, fresh = batches.submit(session, caller.name, idempotency_key, new, schema, name, service.settings)
    if fresh:
        background.add_task(wake)  # runs after the commit
    else:
        response.status_code = 200
    response.headers["Location"] = f"/v1/batches/{batch.id}"
    return _accepted(session, batch)


@router.get("/v1/batches", summary="List batches", responses=errors(422, 503))
def listing(
    session: ReadDep,
    _caller: ClientDep,
    after: Annotated[Word | None, Query(max_length=32, description="`after` of the page before")] = None,
    limit: Limit = 50,
) -> BatchPage:
    """Batches with their counts, newest first."""
    query = select(models.Batch).order_by(col(models.Batch.created_at).desc(), col(models.Batch.id).desc())
    last = session.get(models.Batch, after) if after else None
    if last is not None:
        query = query.where(tuple_(col(models.Batch.created_at), col(models.Batch.id)) < (last.created_at, last.id))
    found = list(session.exec(query.limit(limit)))
    counted = select(Item.batch_id, Item.state, func.count()).group_by(col(Item.batch_id), col(Item.state))
    counts: dict[str, dict[State, int]] = {batch.id: dict.fromkeys(State, 0) for batch in found}
    for batch_id, state, count in session.exec(counted.where(col(Item.batch_id).in_(list(counts)))):
        counts[batch_id][State(state)] = count
    names = _schemas(session, found)
    rows = [Counted(**_fields(batch, names), **_count(batch, counts[batch.id])) for batch in found]
    return BatchPage(rows=rows, after=found[-1].id if len(found) == limit else None)


@router.get("/v1/batches/{batch}", summary="How far a batch is", responses=errors(404, 422, 503))
def progress(batch: BatchId, session: ReadDep, _caller: ClientDep) -> BatchProgress:
    """Counts that add up, the rate, and the time left."""
    return _progress(session, batch)


@router.get(
    "/v1/batches/{batch}/results",
    summary="The results of a batch",
    response_class=NDJSON,
    response_description="One row a text, in the order of the batch",
    responses=errors(404, 422, 503),
)
def results(batch: BatchId, service: RunningDep, _caller: ClientDep) -> Response:
    """A stream of rows, one JSON object a line: every text exactly once, whatever has become of it.

    `state` says how far a text is; its labels come once it is done. After a person settled it the labels are the
    person's, with the model's under `proposed`.
    """
    return NDJSON(lines(_results(service, batch, _page(service, batch, -1))))


@router.get(
    "/v1/batches/{batch}/events",
    summary="Follow a batch",
    response_class=EventSourceResponse,
    response_description="Events `progress`, then one `done`; the data is that of GET /v1/batches/{batch}",
    responses=errors(404, 422, 503),
)
async def events(
    batch: BatchId,
    service: RunningDep,
    _caller: ClientDep,
    first: Annotated[BatchProgress, Depends(progress, scope="function")],
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `progress` whenever the counts change, `done` when all texts are done, and then the end."""
    now, pause = first, POLL_SECONDS[0]
    if not now.finished:
        yield _event("progress", now)
    while not now.finished:
        with suppress(TimeoutError):
            await asyncio.wait_for(service.stopping.wait(), pause)
            return
        before, now = now, await run_in_threadpool(_look, service, batch)
        moved = now.counts != before.counts
        pause = POLL_SECONDS[0] if moved else min(pause * 1.5, POLL_SECONDS[1])
        if moved and not now.finished:
            yield _event("progress", now)
    yield _event("done", now)


@router.post("/v1/batches/{batch}/cancel", summary="Cancel a batch", responses=errors(404, 415, 413, 422, 503))
def cancel(batch: BatchId, session: SessionDep, _caller: ClientDep) -> Cancelled:
    """Drop what is queued or with a worker. What is done stays. Cancelling again is no error."""
    return Cancelled(id=batch, cancelled=batches.cancel(session, batch))


@router.get("/v1/batches/{batch}/agreement", summary="Agreement with gold", responses=errors(404, 422, 503))
def agreement(
    batch: BatchId,
    session: SessionDep,
    _caller: ClientDep,
    gold: Annotated[Word, Query(min_length=1, max_length=100, description="name of the gold set")],
) -> dict[str, Any]:
    """How far the model's labels of a batch agree with a gold set, task by task, and where they differ most surely.

    What is found of each label is kept: labels that agree too seldom go to review from then on (`low_agreement`).
    """
    return measure.agreement(session, batch, gold)


def _accepted(session: Session, batch: models.Batch) -> Accepted:
    return Accepted(**_fields(batch, _schemas(session, [batch])))


def _progress(session: Session, batch_id: str) -> BatchProgress:
    batch = batches.find(session, batch_id)
    found = batches.progress(session, batch_id)
    return BatchProgress(
        **_fields(batch, _schemas(session, [batch])),
        **_count(batch, found.counts),
        policy=batch.policy,
        rate=found.rate,
        seconds_left=found.seconds_left,
    )


def _look(service: Running, batch_id: str) -> BatchProgress:
    with db.read(service.database) as session:
        return _progress(session, batch_id)


def _event(name: str, data: BatchProgress) -> ServerSentEvent:
    return ServerSentEvent(event=name, raw_data=data.model_dump_json())


def _page(service: Running, batch_id: str, after: int) -> list[dict[str, Any]]:
    with db.read(service.database) as session:
        return batches.results(session, batch_id, after, PAGE)


def _results(service: Running, batch_id: str, page: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All rows, each page from a snapshot of its own, so that no transaction waits for a slow reader."""
    position = -1
    while page:
        yield from page
        position += len(page)
        page = _page(service, batch_id, position) if len(page) == PAGE else []


def _schemas(session: Session, found: list[models.Batch]) -> dict[int, tuple[str, int]]:
    """(name, version) of the batches' schemas, by id."""
    query = select(SchemaVersion.id, SchemaVersion.name, SchemaVersion.version)
    rows = session.exec(query.where(col(SchemaVersion.id).in_({batch.schema_id for batch in found})))
    return {key: (name, version) for key, name, version in rows if key is not None}


def _fields(batch: models.Batch, schemas: dict[int, tuple[str, int]]) -> dict[str, Any]:
    name, version = schemas[batch.schema_id]
    return {
        "id": batch.id,
        "schema_name": name,
        "version": version,
        "prompt": batch.prompt,
        "second_prompt": batch.second_prompt,
        "gold": batch.gold,
        "total": batch.total,
        "created_at": batch.created_at,
    }


def _count(batch: models.Batch, counts: dict[State, int]) -> dict[str, Any]:
    left = counts[State.queued] + counts[State.leased]
    return {
        "cancelled_at": batch.cancelled_at,
        "counts": counts,
        "done": batch.total - left,
        "finished": left == 0,
    }

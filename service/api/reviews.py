"""Reviews: the doubtful items, one at a time in one reviewer's hands. The reviewer is whoever the key names."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from sqlmodel import Session

from service import bulk, review, similar, undo, workload
from service.api.bodies import Route
from service.api.dependencies import (
    BODY,
    MOST,
    After,
    Limit,
    ReadDep,
    ReviewerDep,
    RunningDep,
    SessionDep,
    Word,
    dated,
    errors,
)
from service.auth import Role
from service.bulk import Settled
from service.errors import Invalid
from service.models import Item, Review, State
from service.review import MAX_NOTE, Cost, Entry, ReviewTask
from service.route import Code
from service.similar import Alike
from service.undo import Undone
from service.workload import Workload

router = APIRouter(route_class=Route, tags=["reviews"])

ItemId = Annotated[int, Path(ge=1, le=MOST, description="`item` of the review")]

Moment = Annotated[AwareDatetime, BeforeValidator(dated)]
Fence = Annotated[int, Field(ge=0, le=MOST, strict=True, description="`fence` that came with the item")]
ShortWord = Annotated[Word, Field(min_length=1, max_length=100)]

ANSWER: dict[str, Any] = {
    "fence": 3,
    "labels": {"sentiment": "negative", "entities": [{"start": 3, "end": 10, "label": "product", "text": "Samsung"}]},
    "note": "the tablet, not the firm",
}


class NextReview(BaseModel):
    """Which items the reviewer wants; all of them where nothing is said."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "low_confidence", "task": "sentiment"}, {}]}
    )

    batch: ShortWord | None = Field(None, description="of this batch only")
    reason: Code | None = Field(None, description="with this reason only")
    task: ShortWord | None = Field(None, description="with a reason that names this task only")
    order: Literal["uncertain", "oldest", "informative"] = Field(
        "uncertain",
        description="the least sure first; the oldest; or, of the least sure, the one least like what was read lately",
    )


class Resolve(BaseModel):
    """The labels that stand, as in a gold record, every task answered; or `accept` for the proposal as it is."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [ANSWER, {"fence": 3, "accept": True}]})

    fence: Fence
    labels: dict[str, Any] | None = Field(None, description="by task: a label, or a list of {start, end, label}")
    accept: bool = Field(False, strict=True, description="take the proposal as it stands; comes without labels")
    note: Word = Field("", max_length=MAX_NOTE)
    seconds: float | None = Field(None, ge=0, le=86_400, description="with the item before the reader, in use")
    actions: int | None = Field(None, ge=0, le=100_000, description="keys, clicks and drags that changed something")


class Renew(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"fence": 3}]})

    fence: Fence


class Renewed(BaseModel):
    lease_until: datetime


class Flag(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"fence": 3, "note": "is a shop an organization?"}]}
    )

    fence: Fence
    note: Word = Field(min_length=1, max_length=MAX_NOTE, description="what the guideline leaves open")


class Flagged(BaseModel):
    review: int


class Undo(BaseModel):
    """One's own answer or flag, or all that one act settled."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"review": 17}]})

    review: int | None = Field(None, ge=1, le=MOST, strict=True)
    bulk: ShortWord | None = Field(None, description="`bulk` of the act")


class Bulk(BaseModel):
    """All as proposed, or with other labels for some choices."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"items": [3, 4], "relabel": {"sentiment": "negative"}, "note": ""}]},
    )

    items: Annotated[list[Annotated[int, Field(ge=1, le=MOST, strict=True)]], Field(min_length=1, max_length=500)]
    accept: bool = Field(False, strict=True, description="take each proposal as it stands")
    relabel: dict[ShortWord, ShortWord] | None = Field(None, min_length=1, description="by choice task: the label")
    note: Word = Field("", max_length=MAX_NOTE)


class Release(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"fence": 3}]})

    fence: Fence
    lease_until: Moment | None = Field(
        None, description="as you were last told it: an item that another page of yours has renewed since is kept"
    )


class Resolved(BaseModel):
    """A person's answer."""

    item: int
    review: int = Field(description="its id, to take it back by")
    settled: bool = Field(description="whether the item is settled; false: others will look at it too")
    reviewer: str
    changed: bool | None = Field(description="whether the labels differ from the model's; null where it was hidden")
    labels: dict[str, Any]
    note: str
    created_at: datetime


class EntryPage(BaseModel):
    rows: list[Entry]
    after: int | None = Field(description="to ask with for the next page; None where there is none")


@router.post(
    "/v1/reviews/next",
    summary="Take the next item",
    responses=errors(503, *BODY) | {204: {"description": "Nothing waits"}},
)
def take(
    session: SessionDep,
    reading: ReadDep,
    service: RunningDep,
    caller: ReviewerDep,
    wanted: NextReview | None = None,
) -> ReviewTask | None:
    """The next doubtful item, held for the reviewer until `lease_until`. Asking again gives the same item."""
    wanted = wanted or NextReview()
    first: list[int] = []
    if wanted.order == "informative":  # texts are compared before anything is locked
        first = similar.informative(reading, caller.name, wanted.batch, wanted.reason, wanted.task)
    found = review.next_item(
        session,
        caller.name,
        lease_seconds=service.settings.review_lease_seconds,
        batch=wanted.batch,
        reason=wanted.reason,
        task=wanted.task,
        order="uncertain" if wanted.order == "informative" else wanted.order,
        first=first,
    )
    return found or Response(status_code=204)  # type: ignore[return-value]


@router.get("/v1/reviews", summary="List reviews", responses=errors(422, 503))
def listing(
    session: ReadDep,
    _caller: ReviewerDep,
    batch: Annotated[Word | None, Query(max_length=100)] = None,
    state: Annotated[
        Literal["review", "audit", "adjudication", "resolved"] | None, Query(description="all four where absent")
    ] = None,
    reason: Annotated[Code | None, Query()] = None,
    task: Annotated[Word | None, Query(max_length=100)] = None,
    reviewer: Annotated[Word | None, Query(max_length=100, description="what they hold or have settled")] = None,
    after: After = 0,
    limit: Limit = 50,
) -> EntryPage:
    """Items that wait for a person or were settled by one, in the order of their arrival."""
    page = review.listing(
        session,
        batch=batch,
        state=State(state) if state else None,
        reason=reason,
        task=task,
        reviewer=reviewer,
        after=after,
        limit=limit,
    )
    return EntryPage(rows=page.rows, after=page.after)


@router.get("/v1/reviews/progress", summary="How far the desk is", responses=errors(422, 503))
def progress(
    session: ReadDep,
    caller: ReviewerDep,
    batch: Annotated[Word | None, Query(max_length=100, description="of this batch only")] = None,
) -> Workload:
    """What waits, and one's own work; for a lead everybody's."""
    return workload.workload(session, caller.name, batch, everybody=Role.lead in caller.roles)


@router.post("/v1/reviews/undo", summary="Take an answer back", responses=errors(404, 503, *BODY))
def take_back(wanted: Undo, session: SessionDep, service: RunningDep, caller: ReviewerDep) -> Undone:
    """One's own only. A single one puts its item back into one's hands, as it was; what an act settled is free again.

    Refused, item by item: what somebody else has taken or answered since, what a lead has decided, and what went into
    a gold set.
    """
    if wanted.review is not None and wanted.bulk is None:
        return undo.one(session, wanted.review, caller.name, service.settings.review_lease_seconds)
    if wanted.bulk is not None and wanted.review is None:
        return undo.many(session, wanted.bulk, caller.name)
    raise Invalid("body: expected either review or bulk")


@router.post("/v1/reviews/bulk", summary="Settle many items", responses=errors(503, *BODY))
def settle_many(wanted: Bulk, session: SessionDep, caller: ReviewerDep) -> Settled:
    """In one act, each as it was proposed or with another label. What others hold is refused, item by item."""
    if wanted.accept == (wanted.relabel is not None):
        raise Invalid("body: expected either accept or relabel")
    return bulk.settle(session, wanted.items, caller.name, wanted.relabel, wanted.note)


@router.get("/v1/reviews/{item}/similar", summary="Items like the one in hand", responses=errors(404, 409, 422, 503))
def alike(item: ItemId, session: ReadDep, caller: ReviewerDep, limit: Limit = 100) -> Alike:
    """Free items with the same choices proposed for the same reasons, the most similar text first."""
    return similar.alike(session, item, caller.name, limit)


@router.post("/v1/reviews/{item}/renew", summary="Keep an item", responses=errors(404, 409, 503, *BODY))
def renew(item: ItemId, held: Renew, session: SessionDep, service: RunningDep, caller: ReviewerDep) -> Renewed:
    """Extend the lease, also one that ended, unless somebody else was given the item since."""
    seconds = service.settings.review_lease_seconds
    return Renewed(lease_until=review.renew(session, item, held.fence, caller.name, seconds))


@router.post("/v1/reviews/{item}/resolve", summary="Settle an item", responses=errors(404, 409, 503, *BODY))
def resolve(item: ItemId, answer: Resolve, session: SessionDep, caller: ReviewerDep) -> Resolved:
    """Say what stands. The same answer again gives the same review; one that comes after somebody else was given the
    item is a conflict."""
    cost = Cost(answer.seconds, answer.actions)
    found = review.resolve(
        session, item, answer.fence, caller.name, answer.labels, answer.note, accept=answer.accept, cost=cost
    )
    return resolved(session, found)


@router.post("/v1/reviews/{item}/flag", summary="Ask a lead", responses=errors(404, 409, 503, *BODY))
def flag(item: ItemId, flagged: Flag, session: SessionDep, caller: ReviewerDep) -> Flagged:
    """The guideline does not say what is right: the item waits for a lead."""
    return Flagged(review=review.flag(session, item, flagged.fence, caller.name, flagged.note).id or 0)


@router.post(
    "/v1/reviews/{item}/release",
    status_code=204,
    summary="Hand an item back",
    response_description="It is free again, or was not in your hands",
    responses=errors(404, 503, *BODY),
)
def release(item: ItemId, held: Release, session: SessionDep, caller: ReviewerDep) -> None:
    """Unsettled, at once claimable by anyone. Who no longer holds it has nothing to hand back, and that is no error."""
    review.release(session, item, held.fence, caller.name, held.lease_until)


def resolved(session: Session, found: Review) -> Resolved:
    """A review as it is told to who gave it."""
    return Resolved(
        item=found.item_id,
        review=found.id or 0,
        settled=session.get_one(Item, found.item_id).state == State.resolved,
        reviewer=found.reviewer,
        changed=found.changed if found.shown else None,
        labels=found.labels,
        note=found.note,
        created_at=found.created_at,
    )

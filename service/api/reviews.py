"""Reviews: the doubtful items, one at a time in one reviewer's hands. The reviewer is whoever the key names."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from service import review
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
    errors,
)
from service.models import State
from service.review import Entry, Order, ReviewTask
from service.route import Code

router = APIRouter(route_class=Route, tags=["reviews"])

ItemId = Annotated[int, Path(ge=1, le=MOST, description="`item` of the review")]
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
    order: Order = Field("uncertain", description="the least sure first, or the oldest first")


class Resolve(BaseModel):
    """The labels that stand, as in a gold record, every task answered; or `accept` for the proposal as it is."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [ANSWER, {"fence": 3, "accept": True}]})

    fence: Fence
    labels: dict[str, Any] | None = Field(None, description="by task: a label, or a list of {start, end, label}")
    accept: bool = Field(False, strict=True, description="take the proposal as it stands; comes without labels")
    note: Word = Field("", max_length=review.MAX_NOTE)


class Release(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"fence": 3}]})

    fence: Fence


class Resolved(BaseModel):
    """A person's answer, as it stands."""

    item: int
    reviewer: str
    changed: bool = Field(description="whether the labels differ from the model's")
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
    session: SessionDep, service: RunningDep, caller: ReviewerDep, wanted: NextReview | None = None
) -> ReviewTask | None:
    """The next doubtful item, held for the reviewer until `lease_until`. Asking again gives the same item."""
    wanted = wanted or NextReview()
    found = review.next_item(
        session,
        caller.name,
        lease_seconds=service.settings.review_lease_seconds,
        batch=wanted.batch,
        reason=wanted.reason,
        task=wanted.task,
        order=wanted.order,
    )
    return found or Response(status_code=204)  # type: ignore[return-value]


@router.get("/v1/reviews", summary="List reviews", responses=errors(422, 503))
def listing(
    session: ReadDep,
    _caller: ReviewerDep,
    batch: Annotated[Word | None, Query(max_length=100)] = None,
    state: Annotated[Literal["review", "audit", "resolved"] | None, Query(description="all three where absent")] = None,
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


@router.post("/v1/reviews/{item}/resolve", summary="Settle an item", responses=errors(404, 409, 503, *BODY))
def resolve(item: ItemId, answer: Resolve, session: SessionDep, caller: ReviewerDep) -> Resolved:
    """Say what stands. The same answer again gives the same review; one that comes after somebody else was given the
    item is a conflict."""
    settled = review.resolve(session, item, answer.fence, caller.name, answer.labels, answer.note, accept=answer.accept)
    return Resolved(
        item=settled.item_id,
        reviewer=settled.reviewer,
        changed=settled.changed,
        labels=settled.labels,
        note=settled.note,
        created_at=settled.created_at,
    )


@router.post(
    "/v1/reviews/{item}/release",
    status_code=204,
    summary="Hand an item back",
    response_description="It is free again, or was not in your hands",
    responses=errors(404, 503, *BODY),
)
def release(item: ItemId, held: Release, session: SessionDep, caller: ReviewerDep) -> None:
    """Unsettled, at once claimable by anyone. Who no longer holds it has nothing to hand back, and that is no error."""
    review.release(session, item, held.fence, caller.name)

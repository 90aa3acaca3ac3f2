"""Adjudications: what readers disagree on, or ask about the guideline, for a lead to settle."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session

from service import adjudication
from service.adjudication import Dispute, Held
from service.api.bodies import Route
from service.api.dependencies import (
    BODY,
    After,
    LeadDep,
    Limit,
    ReadDep,
    RunningDep,
    SessionDep,
    Word,
    errors,
)
from service.api.reviews import ANSWER, Fence, ItemId, Release, Resolved, resolved
from service.auth import LOCAL, Caller, leads
from service.review import MAX_NOTE

router = APIRouter(route_class=Route, tags=["reviews"])

DECISION: dict[str, Any] = {"fence": 5, "labels": ANSWER["labels"], "reason": "a firm is meant, see the guideline, 2.1"}


class DisputePage(BaseModel):
    rows: list[Dispute]
    after: int | None = Field(description="to ask with for the next page; None where there is none")


class Decide(BaseModel):
    """The labels that stand, as in a gold record, every task answered."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [DECISION]})

    fence: Fence
    labels: dict[str, Any] = Field(description="by task: a label, or a list of {start, end, label}")
    reason: Word = Field(min_length=1, max_length=MAX_NOTE, description="why this is right")


class Decided(Resolved):
    own: bool = Field(description="whether the lead had answered the item too, there being nobody else to settle it")


@router.get("/v1/adjudications", summary="List what waits for a lead", responses=errors(422, 503))
def listing(session: ReadDep, _caller: LeadDep, after: After = 0, limit: Limit = 50) -> DisputePage:
    """In the order of arrival, with what each reader said."""
    page = adjudication.listing(session, after, limit)
    return DisputePage(rows=page.rows, after=page.after)


@router.post("/v1/adjudications/{item}/claim", summary="Take a dispute", responses=errors(404, 409, 422, 503))
def claim(item: ItemId, session: SessionDep, service: RunningDep, caller: LeadDep) -> Held:
    """Hold it until `lease_until`. Asking again gives the same fence; a conflict where another lead holds it."""
    seconds = service.settings.review_lease_seconds
    return adjudication.claim(session, item, caller.name, seconds, alone=_alone(session, item, caller))


@router.post(
    "/v1/adjudications/{item}/release",
    status_code=204,
    summary="Hand a dispute back",
    response_description="It is free again, or was not in your hands",
    responses=errors(404, 503, *BODY),
)
def release(item: ItemId, held: Release, session: SessionDep, caller: LeadDep) -> None:
    """Unsettled, at once claimable by another lead. Who no longer holds it has nothing to hand back."""
    adjudication.release(session, item, held.fence, caller.name)


@router.post("/v1/adjudications/{item}/resolve", summary="Decide a dispute", responses=errors(404, 409, 503, *BODY))
def decide(item: ItemId, wanted: Decide, session: SessionDep, caller: LeadDep) -> Decided:
    """Say what stands, and why. The same decision again gives the same review."""
    found, own = adjudication.settle(
        session, item, wanted.fence, caller.name, wanted.labels, wanted.reason, alone=_alone(session, item, caller)
    )
    return Decided(**resolved(session, found).model_dump(), own=own)


def _alone(session: Session, item: int, caller: Caller) -> bool:
    """Whether nobody else could settle it: every other lead has answered it too. An open service has one caller."""
    return caller == LOCAL or leads(session) - {caller.name} <= adjudication.readers(session, item)

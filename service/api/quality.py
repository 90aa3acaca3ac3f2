"""The quality of labels and of the work on them, for leads."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service import quality
from service.api.bodies import Route
from service.api.dependencies import LeadDep, ReadDep, Word, dated, errors
from service.scope import Scope

router = APIRouter(route_class=Route, tags=["reviews"])

SHOWN: dict[str, Any] = {
    "made_at": "2026-11-21T09:30:00+00:00",
    "batch": None,
    "since": None,
    "until": None,
    "coverage": {"labelled": 1000, "accepted": 810, "audited": 20, "for_people": 170, "hours_saved": 2.7},
    "assistance": {"clusters": "items", "left_out": 0, "saved": {"value": 0.3, "low": 0.2, "high": 0.4}},
    "agreement": {"items": 17, "read": 17, "tasks": [], "reviewers": []},
    "speed": {"people": 0, "rows": []},
    "weeks": [],
    "labels": [],
    "suspects": {"looked_at": 170, "found": 0, "rows": []},
    "audits": [],
}


class QualityReport(BaseModel):
    """Estimates are {"value", "low", "high"} with a 95 % interval; null where there is too little to say."""

    model_config = ConfigDict(json_schema_extra={"examples": [SHOWN]})

    made_at: datetime
    batch: str | None
    since: datetime | None = Field(description="from this moment on")
    until: datetime | None = Field(description="before this moment")
    coverage: dict[str, Any] = Field(description="what was accepted without a person, and the hours that it saved")
    assistance: dict[str, Any] = Field(
        description="readings with the proposal shown against those with it hidden by lot: time, and label shift"
    )
    agreement: dict[str, Any] = Field(description="between people; of each with what stands, and with gold")
    speed: dict[str, Any] = Field(description="answers, seconds and changes of each reviewer")
    weeks: list[dict[str, Any]] = Field(description="agreement, changes and seconds by ISO week")
    labels: list[dict[str, Any]] = Field(description="how often each label was given, by task and week")
    suspects: dict[str, Any] = Field(description="labels that stand against a model that was sure of another")
    audits: list[dict[str, Any]] = Field(description="running error of accepted labels, of the recipes last in use")


Moment = Annotated[
    datetime | date | None,
    BeforeValidator(dated),
    Query(description="a moment, or a day in UTC, which counts from its beginning to its end"),
]


@router.get("/v1/quality", summary="Quality of labels and of reviews", responses=errors(404, 422, 503))
def report(
    session: ReadDep,
    _caller: LeadDep,
    batch: Annotated[Word | None, Query(max_length=32, description="of this batch only")] = None,
    since: Moment = None,
    until: Moment = None,
) -> QualityReport:
    """What the page /quality shows. Counts are of every row; what rests on the newest rows says on how many."""
    scope = Scope(batch, quality.moment(since), quality.moment(until, last=True))
    return QualityReport.model_validate(quality.document(session, scope))

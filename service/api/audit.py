"""The audit stream: what people found among accepted labels, and whether what the model says has changed."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from service import audit, batches
from service.api.bodies import Route
from service.api.dependencies import AnyoneDep, ReadDep, Word, errors
from service.errors import Invalid

router = APIRouter(route_class=Route, tags=["audit"])

WHOLE = "the task; None for the item as a whole"
RECIPE = "0a7d3f5c9e1b8d246f70a3c5e9d1b7f4820c6e5a9b3d7f1c4e8a2d6b0f5c9e37"
SINCE = "2026-11-02T08:15:00Z"
SHOWN: dict[str, Any] = {
    "recipe": RECIPE,
    "schema": "support",
    "version": 1,
    "standard": 3,
    "promised": 0.03,
    "audits": {
        "drawn": 212,
        "waiting": 7,
        "held_back": 5,
        "left_out": 0,
        "counted": 200,
        "since": SINCE,
        "oldest_waiting": {"item": 9817, "since": "2026-11-19T16:02:00Z"},
    },
    "errors": [
        {
            "task": None,
            "n": 200,
            "wrong": 4,
            "effective": 200.0,
            "error": {"value": 0.02, "low": 0.004, "high": 0.073},
            "path": [{"audited": 200, "value": 0.02, "low": 0.004, "high": 0.073}],
            "notes": {},
        }
    ],
    "drift": [
        {
            "task": None,
            "promised": 0.03,
            "n": 200,
            "p": 1.0,
            "raised": False,
            "at": None,
            "at_accepted": None,
            "since": None,
            "since_accepted": None,
            "error_since": None,
        }
    ],
    "windows": {
        "labelled": 10150,
        "look": 18,
        "looks": 50,
        "reference": {"texts": 1000, "since": SINCE, "until": "2026-11-03T10:00:00Z"},
        "recent": {"texts": 500, "since": "2026-11-19T09:00:00Z", "until": "2026-11-20T09:30:00Z"},
        "note": "",
    },
    "shifts": [
        {
            "task": "sentiment",
            "what": "labels",
            "reference": 1000,
            "recent": 500,
            "effect": 0.03,
            "p": 1.0,
            "raised": False,
            "moved": [{"name": "negative", "reference": 0.41, "recent": 0.44}],
            "note": "",
        }
    ],
    "alarms": [],
}


class Interval(BaseModel):
    value: float
    low: float
    high: float


class Moment(Interval):
    audited: int = Field(description="audited items up to this moment")


class Waiting(BaseModel):
    item: int
    since: datetime


class Audits(BaseModel):
    drawn: int = Field(description="accepted items that were drawn for the audit so far")
    waiting: int = Field(description="of these, those that no person has settled yet")
    held_back: int = Field(description="settled, but accepted after the oldest that waits; not yet counted")
    left_out: int = Field(description="settled, but older than the newest 10,000 to 20,000; no longer counted")
    counted: int = Field(description="those that the error is estimated from")
    since: datetime | None = Field(description="when the first of these was accepted")
    oldest_waiting: Waiting | None


class RunningErrorPublic(BaseModel):
    task: str | None = Field(description=WHOLE)
    n: int = Field(description="audited items")
    wrong: int = Field(description="of these, those that a person changed")
    effective: float = Field(description="how many equally likely draws they count for")
    error: Interval | None = Field(description="share of wrong ones; the 95 % interval holds at all moments at once")
    path: list[Moment] = Field(description="the same at up to 50 moments, the last of which is now")
    notes: dict[str, str] = Field(description="why something is None, under its name")


class ErrorDriftPublic(BaseModel):
    task: str | None = Field(description=WHOLE)
    promised: float
    n: int = Field(description="audited items")
    p: float = Field(description="against the promise; valid at whatever moment one looks")
    raised: bool = Field(description="whether it came to 0.05 or less, at any moment so far")
    at: int | None = Field(description="the audited item, from 1, at which it did")
    at_accepted: datetime | None
    since: int | None = Field(description="the audited item from which on the case is strongest: where to look")
    since_accepted: datetime | None
    error_since: float | None = Field(description="share of wrong ones from there on; it was picked for being high")


class Stretch(BaseModel):
    texts: int
    since: datetime
    until: datetime


class Windows(BaseModel):
    labelled: int = Field(description="items that the recipe labelled: accepted, drawn for the audit or routed")
    look: int = Field(description="number of the newest whole block of 500 after the first 1,000; 0: there is none")
    looks: int = Field(description="looks in a row that share a chance of 0.05 to raise a false alarm")
    reference: Stretch | None
    recent: Stretch | None
    note: str = Field(description="why there is nothing to compare")


class MovedShare(BaseModel):
    name: str = Field(description='a label, "" for texts without any, or a range of confidence')
    reference: float
    recent: float


class ShiftPublic(BaseModel):
    task: str
    what: Literal["labels", "confidence"]
    reference: int = Field(description="texts in the reference window")
    recent: int = Field(description="texts in the recent window")
    effect: float | None = Field(description="0 for none to 1: share of labels, or of texts, that moved")
    p: float | None = Field(description="corrected for the number of tests and of looks")
    raised: bool = Field(description="p is at most 0.05, and the effect at least 0.1")
    moved: list[MovedShare] = Field(description="the shares that differ most")
    note: str


class Alarm(BaseModel):
    what: Literal["error", "labels", "confidence"]
    task: str | None = Field(description=WHOLE)
    says: str = Field(description="the alarm in words, with its numbers")


class RecipeAudit(BaseModel):
    """What is known after the fact of the labels of one recipe."""

    model_config = ConfigDict(serialize_by_alias=True)

    recipe: str
    schema_name: str = Field(alias="schema")
    version: int = Field(description="version of the schema")
    standard: int | None = Field(description="in force; the audits of what it decided count, and no others")
    promised: float | None = Field(description="as asked for; null: as the standard has it")
    audits: Audits
    errors: list[RunningErrorPublic]
    drift: list[ErrorDriftPublic] = Field(description="empty where nothing was promised")
    windows: Windows
    shifts: list[ShiftPublic]
    alarms: list[Alarm]


class AuditReport(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"recipes": [SHOWN]}]})

    recipes: list[RecipeAudit] = Field(
        description="the one asked for, or the 20 of the schema last in use, the last first"
    )


@router.get("/v1/audit", summary="Watch accepted labels", responses=errors(404, 422, 503))
def watch(
    session: ReadDep,
    _caller: AnyoneDep,
    recipe: Annotated[Word | None, Query(max_length=64, description="`recipe` of a result")] = None,
    schema: Annotated[Word | None, Query(max_length=40, description="all recipes of this schema, one by one")] = None,
    promised: Annotated[
        float | None,
        Query(
            gt=0,
            lt=1,
            allow_inf_nan=False,
            description="error that was promised; absent: as the standard in force has it",
        ),
    ] = None,
) -> AuditReport:
    """The running error of accepted labels, from the audit alone, and drift in error, labels and confidence.

    Ask with either `recipe` or `schema`. Looking often costs nothing: intervals and alarms allow for it.
    """
    if (recipe is None) == (schema is None):
        raise Invalid("expected either recipe or schema")
    if schema is not None:
        batches.find_schema(session, schema)
    asked = [recipe] if recipe is not None else audit.recipes(session, schema or "")
    return AuditReport(recipes=[RecipeAudit(**audit.watch(session, one, promised)) for one in asked])

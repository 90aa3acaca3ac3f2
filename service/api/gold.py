"""Gold sets: texts whose right labels people have agreed on."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from service import batches, gold
from service.api.bodies import Route, records
from service.api.dependencies import (
    BODY,
    MOST,
    After,
    BytesDep,
    ClientDep,
    LeadDep,
    Limit,
    ReadDep,
    RunningDep,
    SessionDep,
    Word,
    errors,
)
from service.errors import Invalid, TooLarge

router = APIRouter(route_class=Route, tags=["gold"])

Name = Annotated[Word, Path(min_length=1, max_length=100, description="name of the gold set")]

RECORD: dict[str, Any] = {
    "id": "mail-17",
    "text": "My Samsung tablet arrived broken.",
    "sentiment": "negative",
    "entities": [{"start": 3, "end": 10, "label": "organization", "text": "Samsung"}],
}
NDJSON_EXAMPLE = '{"id": "mail-17", "text": "My Samsung tablet arrived broken.", "sentiment": "negative"}\n'
BODY_DOCUMENTED = {
    "requestBody": {
        "required": True,
        "description": "Records, one JSON object a line, or one JSON array of them",
        "content": {
            "application/x-ndjson": {"schema": {"type": "string"}, "examples": {"one": {"value": NDJSON_EXAMPLE}}},
            "application/json": {
                "schema": {"type": "array", "items": {"type": "object"}},
                "examples": {"one": {"value": [RECORD]}},
            },
        },
    }
}


class Uploaded(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"added": 2, "replaced": 0, "unchanged": 1}]})

    added: int
    replaced: int
    unchanged: int


class FromReviews(BaseModel):
    """Of a batch, all that is settled; or these items."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"items": [3, 4]}]})

    batch: Annotated[Word, Field(min_length=1, max_length=32)] | None = None
    items: Annotated[list[Annotated[int, Field(ge=1, le=MOST, strict=True)]], Field(min_length=1)] | None = None


class GoldSet(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "mails", "size": 200, "tasks": {"sentiment": 200, "entities": 180}}]}
    )

    name: str
    size: int = Field(description="texts")
    tasks: dict[str, int] = Field(description="how many of them are labelled for each task")


class GoldPage(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"rows": [RECORD], "after": None}]})

    rows: list[dict[str, Any]] = Field(description="records, as they can be uploaded again")
    after: int | None = Field(description="to ask with for the next page; None where there is none")


@router.post(
    "/v1/gold/{name}",
    summary="Add to a gold set",
    responses=errors(404, 503, *BODY),
    openapi_extra=BODY_DOCUMENTED,
)
def upload(
    name: Name,
    body: BytesDep,
    session: SessionDep,
    service: RunningDep,
    _caller: ClientDep,
    schema: Annotated[Word, Query(min_length=1, max_length=40, description="schema that the labels follow")],
    version: Annotated[
        int | None, Query(ge=1, le=1_000_000, description="its version; the newest where absent")
    ] = None,
) -> Uploaded:
    """All records or none. A record whose id is in the set replaces it; without an id the text is its name.

    A task that is absent was not labelled; an empty list says that there is no mention.
    """
    most = service.settings.max_texts
    found = list(islice(records(body), most + 1))
    if not found:
        raise Invalid("body: expected at least one record")
    if len(found) > most:  # all are stored in one transaction, for which others wait
        raise TooLarge(f"body: at most {most:,} records in an upload; send the rest in another", {"limit": most})
    return Uploaded(**gold.upload(session, name, batches.find_schema(session, schema, version), found))


@router.post("/v1/gold/{name}/from-reviews", summary="Make gold of reviews", responses=errors(404, 409, 503, *BODY))
def from_reviews(
    name: Name, wanted: FromReviews, session: SessionDep, service: RunningDep, caller: LeadDep
) -> Uploaded:
    """What people settled and stands, as records of the set. Such answers are not taken back any more."""
    if (wanted.batch is None) == (wanted.items is None):
        raise Invalid("body: expected either batch or items")
    most = service.settings.max_texts
    found = gold.from_reviews(session, name, caller.name, batch=wanted.batch, items=wanted.items or (), most=most)
    return Uploaded(**found)


@router.get("/v1/gold", summary="List gold sets", responses=errors(503))
def sets(session: ReadDep, _caller: ClientDep) -> list[GoldSet]:
    """Every gold set, by name."""
    return [GoldSet(**found) for found in gold.sets(session)]


@router.get("/v1/gold/{name}", summary="The records of a gold set", responses=errors(404, 422, 503))
def items(
    name: Name,
    session: ReadDep,
    _caller: ClientDep,
    after: After = 0,
    limit: Limit = 100,
) -> GoldPage:
    """Records in the order of their upload."""
    page = gold.items(session, name, after, limit)
    return GoldPage(rows=page.rows, after=page.after)

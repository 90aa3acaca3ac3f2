"""Standards: what the labels of a recipe are held to, and what is promised of those that are accepted."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from service import evaluations, ledger, standards
from service.api.bodies import Route
from service.api.dependencies import (
    BODY,
    MOST,
    AnyoneDep,
    ClientDep,
    Limit,
    ReadDep,
    SessionDep,
    Word,
    errors,
)
from service.models import StandardVersion

router = APIRouter(route_class=Route, tags=["standards"])

Version = Annotated[int, Path(ge=1, le=MOST, description="id of the standard")]

EXAMPLE: dict[str, Any] = {
    "id": 7,
    "recipe": "0a7d3f5c9e1b8d246f70a3c5e9d1b7f4820c6e5a9b3d7f1c4e8a2d6b0f5c9e37",
    "recipe_body": {"schema": {"name": "support", "version": 1}, "prompt": {"name": "line", "version": 1}},
    "in_force": True,
    "predecessor": 4,
    "gold": {"name": "mails", "sha256": "5be0…"},
    "lines": [{"task": "intent", "threshold": 0.913, "error": 0.03, "level": 0.95}],
    "promises": [{"of": "intent", "error": 0.03, "level": 0.95, "n": 412, "threshold": 0.913}],
    "checks": [{"of": "intent", "n": 310, "coverage": {"value": 0.71, "low": 0.66, "high": 0.76}}],
    "evaluation": "8a1f4c0e5b7d4e21a9c3d6f0b2e47815",
    "created_at": "2026-11-20T09:40:00Z",
}


class StandardCreate(BaseModel):
    """The evaluation whose standard is to be put in force."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"evaluation": "8a1f4c0e5b7d4e21a9c3d6f0b2e47815"}]}
    )

    evaluation: Annotated[Word, Field(min_length=1, max_length=32)] = Field(
        description="id of an evaluation that was asked to promise something, and is done"
    )


class StandardPublic(BaseModel):
    """A version of what a recipe's labels are held to. None is ever changed; the newest of a recipe is in force."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    id: int
    recipe: str
    recipe_body: dict[str, Any] = Field(description="schema, prompt, engine and decoding")
    in_force: bool
    predecessor: int | None = Field(description="what was in force before it")
    gold: dict[str, Any] = Field(description="name and sha256 of the gold set that it was made from")
    lines: list[dict[str, Any]] = Field(description="what labels must reach to be accepted")
    promises: list[dict[str, Any]] = Field(description="what is promised of accepted labels, and what it rests on")
    checks: list[dict[str, Any]] = Field(description="what came of it on the test part of the gold set")
    evaluation: str | None = Field(description="the evaluation that made it; null where the command line did")
    created_at: datetime


class StandardPage(BaseModel):
    rows: list[StandardPublic]
    after: int | None = Field(description="to ask with for the next page; None where there is none")


@router.get("/v1/standards", summary="List standards", responses=errors(422, 503))
def listing(
    session: ReadDep,
    _caller: AnyoneDep,
    after: Annotated[int | None, Query(ge=1, le=MOST, description="`after` of the page before")] = None,
    limit: Limit = 50,
) -> StandardPage:
    """Everything that was ever put in force, the newest first."""
    found = standards.history(session, before=after, limit=limit)
    current = standards.versions_in_force(session)
    rows = [_public(row, row.id in current) for row in found]
    return StandardPage(rows=rows, after=rows[-1].id if len(rows) == limit else None)


@router.post(
    "/v1/standards",
    status_code=201,
    summary="Put a standard in force",
    response_description="From now on the recipe's labels are decided by it",
    responses=errors(404, 409, 503, *BODY) | {200: {"model": StandardPublic, "description": "It is in force already"}},
)
def put(new: StandardCreate, session: SessionDep, caller: ClientDep, response: Response) -> StandardPublic:
    """Decide by what an evaluation made. A conflict, with the reason, where not all of it can be promised.

    It holds for items that are labelled from now on. What was in force before stays in the history.
    """
    row, fresh = evaluations.put_in_force(session, new.evaluation)
    if fresh:
        ledger.append(session, who=caller.name, action="standard.put", **standards.noted(row))
    else:
        response.status_code = 200
    return _public(row, in_force=True)


@router.post(
    "/v1/standards/{standard}/restore",
    status_code=201,
    summary="Put an earlier standard in force again",
    response_description="It is in force, as a new version",
    responses=errors(404, 413, 415, 422, 503),
)
def restore(standard: Version, session: SessionDep, caller: ClientDep) -> StandardPublic:
    """Decide by an earlier standard again: a new version with its content, whose predecessor is the one in force."""
    row = standards.restore(session, standard)
    ledger.append(session, who=caller.name, action="standard.restore", **standards.noted(row))
    return _public(row, in_force=True)


def _public(row: StandardVersion, in_force: bool) -> StandardPublic:
    body = row.body
    return StandardPublic(
        id=row.id or 0,
        recipe=row.recipe,
        recipe_body=body["recipe"],
        in_force=in_force,
        predecessor=row.predecessor,
        gold=body["gold"],
        lines=body["standard"]["lines"],
        promises=body["promises"],
        checks=body["checks"],
        evaluation=body.get("evaluation"),
        created_at=row.created_at,
    )

"""Evaluations: how far a prompt agrees with gold, what can be promised of it, and whether another is better."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Header, Path, Query, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session

from service import evaluations, ledger
from service.api.bodies import Route
from service.api.dependencies import BODY, ClientDep, Limit, ReadDep, RunningDep, SessionDep, Word, errors
from service.errors import Conflict
from service.evaluations import EvaluationCreate
from service.findings import Workload
from service.models import EvaluationRun, RunState
from service.worker import wake

router = APIRouter(route_class=Route, tags=["evaluations"])

RunId = Annotated[Word, Path(min_length=1, max_length=32, description="id of the evaluation")]

# The report is one file that fetches nothing and runs nothing, whatever the texts in it say.
SEALED = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
)

ID = "8a1f4c0e5b7d4e21a9c3d6f0b2e47815"
EXAMPLE: dict[str, Any] = {"gold": "mails", "schema": "support", "prompts": ["line.v1"], "errors": {"intent": 0.03}}
COMPARED: dict[str, Any] = {"gold": "mails", "schema": "support", "prompts": ["line.v1", "line.v2"]}
ACCEPTED: dict[str, Any] = {
    "id": ID,
    "kind": "evaluation",
    "state": "running",
    "gold": "mails",
    "gold_version": "5f1c0a6be2d34c7f9a8b7c6d5e4f30215f1c0a6be2d34c7f9a8b7c6d5e4f3021",
    "schema": "support",
    "version": 1,
    "prompts": ["line.v1"],
    "errors": {"intent": 0.03},
    "confidence": 0.95,
    "limit": None,
    "work": {"items": 1000, "seconds": 15.0, "price": 0.0},
    "done": 120,
    "total": 240,
    "error": None,
    "created_at": "2026-11-20T09:30:00Z",
    "finished_at": None,
}
DONE: dict[str, Any] = ACCEPTED | {"state": "done", "done": 240, "finished_at": "2026-11-20T09:31:12Z"}


class EvaluationBody(EvaluationCreate):
    """A gold set to be read with one prompt, or with several to be compared."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE, COMPARED]})


class EvaluationState(BaseModel):
    """An evaluation as it was asked for, and how far it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [ACCEPTED]}, serialize_by_alias=True)

    id: str
    kind: Literal["evaluation", "comparison"] = Field(description="a comparison where several prompts are named")
    state: RunState
    gold: str
    gold_version: str | None = Field(
        description="sha256 of the version of the gold set that is read; null: the newest when it was run"
    )
    schema_name: str = Field(serialization_alias="schema")
    version: int = Field(description="version of the schema")
    prompts: list[str]
    errors: dict[str, float]
    confidence: float
    limit: int | None
    work: Workload
    done: int = Field(description="texts that were read, each prompt's counted")
    total: int = Field(description="texts to be read, each prompt's counted; 0 before the gold set was read")
    error: str | None = Field(description="why it failed")
    created_at: datetime
    finished_at: datetime | None


class EvaluationPublic(EvaluationState):
    """An evaluation with what came of it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [DONE | {"lacking": [], "document": {"kind": "evaluation", "texts": 240}}]},
        serialize_by_alias=True,
    )

    lacking: list[str] | None = Field(
        description="why its standard cannot be put in force, empty where it can; null where there is none"
    )
    document: dict[str, Any] | None = Field(description="all figures, as the report shows them; null until it is done")


class EvaluationPage(BaseModel):
    rows: list[EvaluationState]
    after: str | None = Field(description="to ask with for the next page; None where there is none")


@router.post(
    "/v1/evaluations",
    status_code=202,
    summary="Ask for an evaluation or a comparison",
    response_description="Accepted and safely stored; it will be run",
    responses=errors(404, 409, 503, *BODY)
    | {
        200: {"model": EvaluationState, "description": "It was asked for before; this is that evaluation"},
        202: {"headers": {"Location": {"description": "The evaluation", "schema": {"type": "string"}}}},
    },
)
def accept(
    new: EvaluationBody,
    caller: ClientDep,
    service: RunningDep,
    session: SessionDep,
    response: Response,
    background: BackgroundTasks,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=200, description="the same key with the same content: one evaluation"),
    ] = None,
) -> EvaluationState:
    """Have a gold set read with each prompt and compared with what people said; the answer comes after the commit.

    With `errors` thresholds are sought at which that much can be promised; nothing is decided by them until the
    standard is put in force. What a recipe has said of a text is kept: asking again costs nothing. Sending the same
    again under the same Idempotency-Key gives the evaluation that is there; the same key with other content is a
    conflict.
    """
    run, fresh = evaluations.submit(session, caller.name, idempotency_key, new, service.settings)
    if fresh:
        background.add_task(wake)  # runs after the commit
    else:
        response.status_code = 200
    response.headers["Location"] = f"/v1/evaluations/{run.id}"
    told = EvaluationState(**_fields(session, run))
    after, subject = told.model_dump(mode="json"), f"evaluation:{run.id}"
    ledger.append(session, who=caller.name, action="evaluation.create", subject=subject, before=None, after=after)
    return told


@router.get("/v1/evaluations", summary="List evaluations", responses=errors(422, 503))
def listing(
    session: ReadDep,
    _caller: ClientDep,
    after: Annotated[Word | None, Query(max_length=32, description="`after` of the page before")] = None,
    limit: Limit = 50,
) -> EvaluationPage:
    """Evaluations and comparisons without their documents, newest first."""
    found = evaluations.listing(session, after, limit)
    rows = [EvaluationState(**_fields(session, run)) for run in found]
    return EvaluationPage(rows=rows, after=found[-1].id if len(found) == limit else None)


@router.get("/v1/evaluations/{evaluation}", summary="One evaluation", responses=errors(404, 422, 503))
def one(evaluation: RunId, session: ReadDep, _caller: ClientDep) -> EvaluationPublic:
    """How far it is, and once it is done its document."""
    run = evaluations.find(session, evaluation)
    lacking = None if run.standard is None else run.standard["lacking"]
    return EvaluationPublic(**_fields(session, run), lacking=lacking, document=run.document)


@router.get(
    "/v1/evaluations/{evaluation}/report",
    summary="The report of an evaluation",
    response_class=HTMLResponse,
    response_description="One HTML file that fetches nothing",
    responses=errors(404, 409, 422, 503),
)
def report(evaluation: RunId, session: ReadDep, _caller: ClientDep) -> HTMLResponse:
    """The document as a page for people, to be looked at, kept or printed. A conflict until it is done."""
    run = evaluations.find(session, evaluation)
    if run.document is None:
        raise Conflict(f"the evaluation is {run.state}; there is a report once it is done")
    from service.report import html  # brings the plots along

    return HTMLResponse(html(run.document), headers={"Content-Security-Policy": SEALED})


@router.post(
    "/v1/evaluations/{evaluation}/cancel",
    summary="Cancel an evaluation",
    responses=errors(404, 413, 415, 422, 503),
)
def cancel(evaluation: RunId, session: SessionDep, caller: ClientDep) -> EvaluationState:
    """Drop it, queued or running. One that is finished stays as it is; cancelling again is no error."""
    run, dropped = evaluations.cancel(session, evaluation)
    told = EvaluationState(**_fields(session, run))
    if dropped:
        after, subject = {"state": run.state}, f"evaluation:{run.id}"
        ledger.append(session, who=caller.name, action="evaluation.cancel", subject=subject, before=None, after=after)
    return told


def _fields(session: Session, run: EvaluationRun) -> dict[str, Any]:
    schema = evaluations.schema_of(session, run)
    made = {
        "kind": "comparison" if len(run.prompts) > 1 else "evaluation",
        "schema_name": schema.name,
        "version": schema.version,
        "work": run.work or Workload(),
    }
    return {name: getattr(run, name) for name in EvaluationState.model_fields if name not in made} | made

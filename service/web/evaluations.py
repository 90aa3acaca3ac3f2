"""The page /evaluations: what was measured, what may be promised of it, and what labels are held to. No script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Form, Query, Request
from pydantic import BaseModel, BeforeValidator, Field
from sqlmodel import Session, col, select
from starlette.responses import HTMLResponse, RedirectResponse, Response

from service import evaluations, gold, prompt, standards
from service.api import evaluations as api
from service.api import standards as standards_api
from service.api.dependencies import MOST, ClientDep, ReadDep, RunningDep, SessionDep, Word
from service.evaluations import MOST_PROMPTS, Named
from service.models import EvaluationRun, SchemaVersion, StandardVersion
from service.standards import ITEM
from service.web.pages import blank, render

router = APIRouter(include_in_schema=False)

SHOWN = 20  # evaluations on a page, and standards

RunId = Annotated[Word, Form(min_length=1, max_length=32)]


class Wanted(BaseModel):
    """What the form asks for. error, confidence: per cent; error None: nothing is to be promised."""

    gold: Named
    schema_name: Annotated[Named, Field(alias="schema", max_length=40)]
    prompts: list[Named] = Field(min_length=1, max_length=MOST_PROMPTS)
    error: Annotated[float | None, BeforeValidator(blank), Field(gt=0, lt=100)] = None
    confidence: float = Field(95.0, gt=0, lt=100)


@dataclass(frozen=True, slots=True)
class Row:
    """An evaluation or a comparison.

    agreement: (task, measure, Estimate or None) of an evaluation. verdicts: of a comparison, in words.
    promises: as in its document. lacking: why its standard cannot be put in force, None where there is none.
    standard: the one in force that was made from it.
    """

    run: EvaluationRun
    schema: str
    agreement: list[tuple[str, str, Mapping[str, Any] | None]]
    verdicts: list[str]
    promises: list[Mapping[str, Any]]
    lacking: list[str] | None
    standard: int | None


@dataclass(frozen=True, slots=True)
class Held:
    """A standard. evaluation: that made it; None where the command line did."""

    id: int
    recipe: Mapping[str, Any]
    gold: Mapping[str, Any]
    promises: list[Mapping[str, Any]]
    since: datetime
    in_force: bool
    evaluation: str | None


@dataclass(frozen=True, slots=True)
class EvaluationsPage:
    """older: address of the next rows, None where there are none. sets, schemas, prompts: what can be chosen."""

    rows: list[Row]
    older: str | None
    standards: list[Held]
    sets: list[dict[str, Any]]
    schemas: list[str]
    prompts: list[str]
    item: str = ITEM


@router.get("/evaluations")
def page(
    request: Request,
    session: ReadDep,
    service: RunningDep,
    _caller: ClientDep,
    after: Annotated[Word | None, Query(max_length=32)] = None,
) -> HTMLResponse:
    found = evaluations.listing(session, after, SHOWN, whole=True)
    current = standards.versions_in_force(session)
    history = standards.history(session, limit=SHOWN)
    names = session.exec(select(SchemaVersion.name).distinct().order_by(col(SchemaVersion.name)))
    shown = EvaluationsPage(
        rows=_rows(session, found, [row for row in history if row.id in current]),
        older=f"/evaluations?after={found[-1].id}" if len(found) == SHOWN else None,
        standards=[_held(row, row.id in current) for row in history],
        sets=gold.sets(session),
        schemas=list(names),
        prompts=prompt.names(service.settings.prompts),
    )
    return render(request, "evaluations.html", shown)


@router.post("/evaluations")
def ask(
    wanted: Annotated[Wanted, Form()],
    session: SessionDep,
    service: RunningDep,
    caller: ClientDep,
    background: BackgroundTasks,
) -> Response:
    new = api.EvaluationBody(
        gold=wanted.gold,
        schema_name=wanted.schema_name,
        prompts=tuple(wanted.prompts),
        errors={} if wanted.error is None else {ITEM: wanted.error / 100},
        confidence=wanted.confidence / 100,
    )
    api.accept(new, caller, service, session, Response(), background)
    again = _again()
    again.background = background  # wakes what runs it, after the commit
    return again


@router.post("/evaluations/cancel")
def cancel(session: SessionDep, caller: ClientDep, evaluation: RunId) -> Response:
    api.cancel(evaluation, session, caller)
    return _again()


@router.post("/evaluations/decide")
def decide(session: SessionDep, caller: ClientDep, evaluation: RunId) -> Response:
    """From now on labels of this recipe are decided by what the evaluation made."""
    standards_api.put(standards_api.StandardCreate(evaluation=evaluation), session, caller, Response())
    return _again()


@router.post("/evaluations/restore")
def restore(session: SessionDep, caller: ClientDep, standard: Annotated[int, Form(ge=1, le=MOST)]) -> Response:
    standards_api.restore(standard, session, caller)
    return _again()


def _again() -> Response:
    return RedirectResponse("/evaluations", 303)


def _rows(session: Session, found: Sequence[EvaluationRun], in_force: Sequence[StandardVersion]) -> list[Row]:
    made_by = {row.body.get("evaluation"): row.id for row in in_force}
    return [
        Row(
            run=run,
            schema=evaluations.schema_of(session, run).name,
            agreement=[_agreement(name, task) for name, task in document.get("tasks", {}).items()],
            verdicts=_verdicts(document.get("comparison")),
            promises=document.get("promises", []),
            lacking=run.standard["lacking"] if run.standard else None,
            standard=made_by.get(run.id),
        )
        for run in found
        for document in [run.document or {}]
    ]


def _agreement(name: str, task: Mapping[str, Any]) -> tuple[str, str, Mapping[str, Any] | None]:
    return (name, "accuracy", task["exact"]) if task["kind"] == "choice" else (name, "strict F1", task["f1"])


def _verdicts(comparison: Mapping[str, Any] | None) -> list[str]:
    if comparison is None:
        return []
    return [one["verdict"] for one in comparison["contrasts"]] or [comparison["verdict"]]


def _held(row: StandardVersion, in_force: bool) -> Held:
    body = row.body
    return Held(
        id=row.id or 0,
        recipe=body["recipe"],
        gold=body["gold"],
        promises=body["promises"],
        since=row.created_at,
        in_force=in_force,
        evaluation=body.get("evaluation"),
    )

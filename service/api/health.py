"""Whether the service lives, whether it can label, and what it has done."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlmodel import text

from service import db
from service.api.dependencies import SUMMARIES, AnyoneDep, RunningDep, errors
from service.failures import ErrorBody

router = APIRouter(tags=["health"])

NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": ErrorBody, "description": SUMMARIES[503]}}


class Health(BaseModel):
    status: str


@router.get("/healthz", summary="Whether the process lives")
async def healthz() -> Health:
    """Says yes as long as the process can answer at all; restart it where it does not."""
    return Health(status="ok")


@router.get("/readyz", summary="Whether it can label", responses=NOT_READY)
def readyz(service: RunningDep) -> Health:
    """Yes when the database answers and the engine has proven that its constraint holds; else why not.

    Batches are accepted and reviews go on as long as the database answers.
    """
    with db.read(service.database) as session:
        session.connection().execute(text("SELECT 1"))
    service.engine()
    return Health(status="ready")


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses=errors() | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(service: RunningDep, _caller: AnyoneDep) -> Response:
    """Durations, items by state, texts and tokens. No text, name or key is in it."""
    return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

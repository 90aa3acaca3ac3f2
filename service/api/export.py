"""What stands, as a stream."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from service import batches, db, export
from service.api.bodies import NDJSON, Route, lines
from service.api.dependencies import ClientDep, RunningDep, Word, errors

router = APIRouter(route_class=Route, tags=["export"])


@router.get(
    "/v1/export",
    summary="Export what stands",
    response_class=NDJSON,
    response_description="One row a text, in the order of arrival",
    responses=errors(404, 422, 503),
)
def stream(
    service: RunningDep,
    _caller: ClientDep,
    batch: Annotated[Word | None, Query(max_length=32, description="of this batch only")] = None,
    settled: Annotated[bool, Query(description="only what a person settled, as gold records")] = False,
) -> Response:
    """A stream of rows, one JSON object a line: what was accepted or settled.

    What waits for a person does not stand.
    """
    with db.read(service.database) as session:
        if batch is not None:
            batches.find(session, batch)
    return NDJSON(lines(export.rows(service.database, batch=batch, settled=settled)))

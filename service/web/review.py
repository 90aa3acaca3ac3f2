"""The review desk: one page, with the first item in it; what comes after is fetched by its script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter

from service import batches
from service.api.dependencies import ReadDep, ReviewerDep, RunningDep, SessionDep
from service.api.reviews import NextReview, take
from service.review import ReviewTask
from service.route import Code
from service.web.pages import render

router = APIRouter(include_in_schema=False)

_TASK = TypeAdapter(ReviewTask)


@dataclass(frozen=True, slots=True)
class DeskPage:
    """data: `task`, as POST /v1/reviews/next gives it, or None where nothing waits; `schema`, the body of its schema;
    `filters`, which items were asked for.

    codes: the reasons that can be asked for.
    """

    data: dict[str, Any]
    codes: tuple[str, ...] = tuple(Code)


@router.get("/review")
def desk(
    request: Request,
    session: SessionDep,
    reading: ReadDep,
    service: RunningDep,
    caller: ReviewerDep,
    wanted: Annotated[NextReview, Query()],
) -> Response:
    """The desk with the reviewer's next item, claimed as by POST /v1/reviews/next: opening it again gives the same."""
    found = take(session, reading, service, caller, wanted)
    task = found if isinstance(found, ReviewTask) else None
    schema = batches.find_schema(session, task.schema, task.version).model_dump(mode="json") if task else None
    filters = wanted.model_dump(mode="json", exclude_defaults=True)
    data = {"task": _TASK.dump_python(task, mode="json") if task else None, "schema": schema, "filters": filters}
    return render(request, "review.html", DeskPage(data))

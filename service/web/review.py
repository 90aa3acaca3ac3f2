"""The review desk: one page, with the first item in it; what comes after is fetched by its script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter

from service import batches, review
from service.api.dependencies import ReviewerDep, RunningDep, SessionDep, Word
from service.review import Order, ReviewTask
from service.route import Code
from service.web.pages import render

router = APIRouter(include_in_schema=False)

Filter = Annotated[Word | None, Query(min_length=1, max_length=100)]
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
    service: RunningDep,
    caller: ReviewerDep,
    batch: Filter = None,
    reason: Code | None = None,
    task: Filter = None,
    order: Order = "uncertain",
) -> Response:
    """The desk with the reviewer's next item, claimed as by POST /v1/reviews/next: opening it again gives the same."""
    lease = service.settings.review_lease_seconds
    found = review.next_item(
        session, caller.name, lease_seconds=lease, batch=batch, reason=reason, task=task, order=order
    )
    schema = batches.find_schema(session, found.schema, found.version).model_dump(mode="json") if found else None
    asked = {"batch": batch, "reason": reason, "task": task, "order": order if order != "uncertain" else None}
    data = {
        "task": _TASK.dump_python(found, mode="json") if found else None,
        "schema": schema,
        "filters": {name: value for name, value in asked.items() if value is not None},
    }
    return render(request, "review.html", DeskPage(data))

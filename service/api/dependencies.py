"""What routes ask for: the running service, a transaction, the caller; and the words that paths and queries use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPBearer
from pydantic import AfterValidator
from sqlmodel import Session

from service import db
from service.auth import Caller, Role
from service.errors import Forbidden, Unauthorized
from service.failures import ErrorBody
from service.running import Running
from service.stored import check_storable

DATED = re.compile(r"\d{4}-\d\d-\d\d")
MOST = 2**31 - 1  # the largest key of a row that PostgreSQL's integer columns can be compared with
SUMMARIES = {
    401: "No API key, or an unknown one",
    403: "The caller lacks the role, or another web page has sent this",
    404: "There is no such thing",
    408: "The body came too slowly",
    409: "It contradicts what is there, or came too late",
    413: "Over a limit, which the message names",
    415: "A compressed body",
    422: "The request is wrong; the message names the field and what was expected",
    503: "The database or the engine cannot answer now; the hint says what to do",
}

_bearer = HTTPBearer(auto_error=False, description="An API key, of the settings or of an account")


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of these error responses, with 401 and 403, which every route behind a key has."""
    return {status: _documented(status) for status in (401, 403, *statuses)}


def _documented(status: int) -> dict[str, Any]:
    # Not by its model: an error is JSON also where the route's own answer is a stream of something else.
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}}
    return {"description": SUMMARIES[status], "content": content}


# What a route with a body can answer besides its own errors.
BODY = (408, 413, 415, 422)


def running(request: Request) -> Running:
    service: Running = request.app.state.running
    return service


RunningDep = Annotated[Running, Depends(running)]


def session(service: RunningDep) -> Iterator[Session]:
    with db.begin(service.database) as opened:
        yield opened


def reading(service: RunningDep) -> Iterator[Session]:
    with db.read(service.database) as opened:
        yield opened


# scope="function": committed before the response is sent, so that a commit that fails is an error and not a 200.
SessionDep = Annotated[Session, Depends(session, scope="function")]
ReadDep = Annotated[Session, Depends(reading, scope="function")]


def _caller(*roles: Role) -> Callable[..., Caller]:
    def check(request: Request, _key: Annotated[Any, Security(_bearer)]) -> Caller:
        caller: Caller | None = getattr(request.state, "caller", None)
        if caller is None:
            raise Unauthorized("this needs an API key")
        if not caller.roles & set(roles):
            raise Forbidden(f"this needs the role {' or '.join(roles)}, which {caller.name} has not")
        return caller

    return check


ClientDep = Annotated[Caller, Depends(_caller(Role.client))]
ReviewerDep = Annotated[Caller, Depends(_caller(Role.reviewer))]
LeadDep = Annotated[Caller, Depends(_caller(Role.lead))]
AdminDep = Annotated[Caller, Depends(_caller(Role.admin))]
AnyoneDep = Annotated[Caller, Depends(_caller(*Role))]


def _storable(value: str) -> str:
    check_storable(value)
    return value


def dated(value: Any) -> Any:
    """A moment is written as ISO 8601 says. Left alone, the parser would take a bare number for seconds."""
    if value is not None and not (isinstance(value, str) and DATED.match(value)):
        raise ValueError("expected a date, or a date and time, as in 2026-11-21T09:30:00Z")
    return value


# A name in a path or a query: anything a database can be asked for.
Word = Annotated[str, AfterValidator(_storable)]
After = Annotated[int, Query(ge=0, le=MOST, description="where the page before ended: its `after`")]
Limit = Annotated[int, Query(ge=1, le=500, description="rows in a page")]


async def body(request: Request) -> bytes:
    """A body that is read by its route; its size is watched on the way in."""
    return await request.body()


BytesDep = Annotated[bytes, Depends(body)]

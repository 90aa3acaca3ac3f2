"""The one place where errors become responses: `{"error": code, "detail": {"message": …}}`, whatever went wrong.

Who asks for HTML, and not of the API, is answered with a page that says the same.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from service.auth import API
from service.errors import Paused, ServiceError, TooLarge, Unauthorized, Unavailable

log = logging.getLogger(__name__)

SHOWN = 20  # problems of one request that are listed
LONGEST = 500  # characters of one message
RETRY_SECONDS = "5"
# Steps of pydantic's paths that are no fields: the branches of what may be a text or an object.
_BRANCHES = frozenset({"plain", "object"})
_CODES = {400: "invalid", 413: TooLarge.code, 415: "unsupported", 422: "invalid"}


class Problem(BaseModel):
    field: str = Field(description="where it is, like `texts[3].id`")
    index: int | None = Field(None, description="the item, counted from 0, where it is within one")
    line: int | None = Field(None, description="the line of a schema, counted from 1")
    expected: str = Field(description="what was expected there")


class ErrorDetail(BaseModel):
    """`message` is always there; what else is there depends on the error."""

    model_config = ConfigDict(extra="allow")

    message: str = Field(description="what went wrong, for people")
    problems: list[Problem] | None = Field(None, description=f"the first {SHOWN} fields that are wrong")
    retryable: bool | None = Field(None, description="whether the same request may succeed later")
    hint: str | None = Field(None, description="what can be done about it")


class ErrorBody(BaseModel):
    """The shape of every error."""

    error: str = Field(description="what went wrong, for programs")
    detail: ErrorDetail


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """status: of HTTP. message: what went wrong, for people. unknown: whether it helps to sign in."""

    status: int
    message: str
    unknown: bool


def respond(error: Exception, scope: Scope) -> Response:
    """The response for an error; one that nobody foresaw tells nothing of itself."""
    status, code, detail, headers = _told(error)
    detail = _clean(detail)
    if not _wants_page(scope):
        return JSONResponse({"error": code, "detail": detail}, status_code=status, headers=dict(headers))
    from service.web.pages import render  # the pages are made of what is made of this

    page = render(Request(scope), "error.html", ErrorPage(status, detail["message"], status == 401), status)
    page.headers.update(headers)
    return page


async def handle(request: Request, error: Exception) -> Response:
    """`respond`, in the form of an exception handler."""
    return respond(error, request.scope)


def where(error: BaseException) -> str:
    """Kind and place of an error and of what caused it, without messages and values: these may quote a text."""
    steps = []
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
        steps.append(f"{type(error).__name__} at {places}" if places else type(error).__name__)
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None:
            break
        error = cause
    return ", from ".join(steps[:5])


def _told(error: Exception) -> tuple[int, str, Mapping[str, Any], Mapping[str, str]]:
    """Status, code, detail and headers."""
    if isinstance(error, ServiceError):
        return error.status_code, error.code, _detail(error), _headers(error)
    if isinstance(error, RequestValidationError):
        return 422, "invalid", _problems(error), {}
    if isinstance(error, HTTPException):
        code = _CODES.get(error.status_code, HTTPStatus(error.status_code).name.lower())
        return error.status_code, code, {"message": str(error.detail)}, error.headers or {}
    return 500, ServiceError.code, {"message": "something went wrong here; it is in the service's log"}, {}


def _wants_page(scope: Scope) -> bool:
    api = scope["path"].startswith(API)
    return not api and "text/html" in Headers(scope=scope).get("accept", "")


def _detail(error: ServiceError) -> dict[str, Any]:
    """The message with what came with it: some fields, or a list of problems."""
    if isinstance(error.detail, Mapping):
        return {"message": error.message, **error.detail}
    problems = [
        {"expected" if name == "reason" else name: value for name, value in problem.items()}
        for problem in error.detail or ()
    ]
    return {"message": error.message, **({"problems": problems} if problems else {})}


def _headers(error: ServiceError) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": 'Bearer realm="concord"'}
    if isinstance(error, Paused):
        return {"Retry-After": str(error.detail["seconds"])}
    retryable = getattr(error, "retryable", isinstance(error, Unavailable))
    return {"Retry-After": RETRY_SECONDS} if retryable else {}


def _problems(error: RequestValidationError) -> dict[str, Any]:
    """Fields and what was expected, never what was there: it may be large, private, or no text at all."""
    if isinstance(error.body, bytes):
        return {"message": "body: expected JSON, with Content-Type: application/json"}
    problems = []
    found = error.errors()
    if len(found) > 1:  # a list that stopped at its first wrong entry is not also too short
        found = [problem for problem in found if problem["type"] != "too_short"] or found
    for problem in found[:SHOWN]:
        place, *path = problem["loc"]
        field = _field(path) or str(place)
        entry: dict[str, Any] = {"field": field, "expected": _expected(problem)}
        index = next((step for step in path if isinstance(step, int)), None)
        problems.append(entry if index is None else entry | {"index": index})
    first = problems[0]
    return {"message": f"{first['field']}: {first['expected']}", "problems": problems}


def _field(path: Sequence[int | str]) -> str:
    field = ""
    for step in path:
        if isinstance(step, int):
            field += f"[{step}]"
        elif step not in _BRANCHES:
            field += f".{step}" if field else str(step)
    return field


def _expected(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "no such field"
    return str(problem["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")


def _clean(value: Any) -> Any:
    """What JSON and UTF-8 can hold, and no more of it than a person reads."""
    if isinstance(value, str):
        text = value.encode("utf-8", "replace").decode()
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    if isinstance(value, Mapping):
        return {_clean(str(key)): _clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value[:SHOWN]]
    return value if value is None or isinstance(value, bool | int | float) else _clean(str(value))

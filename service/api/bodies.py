"""Bodies in and out: strict JSON, NDJSON in, NDJSON as a stream."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from service.errors import Invalid, ServiceError, TooLarge

LARGE = 50_000  # bytes from which parsing would be felt by the requests beside it
MOST_FIELDS = 1000  # in one object: each unknown one is an error of its own, and costs memory
MOST_VALUES = 1_000_000  # in one body: 32 MB of zeros would be 16 million, and seconds in which nobody is served
CHUNK = 1 << 16  # characters of a stream sent at a time


class NDJSON(StreamingResponse):
    media_type = "application/x-ndjson"


class Route(APIRoute):
    """A route whose JSON is read strictly, and away from the event loop where it is large."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_Strict(request.scope, request.receive))

        return handle_strictly


class _Strict(Request):
    async def json(self) -> Any:
        data = await self.body()
        try:
            value = await run_in_threadpool(read, data) if len(data) > LARGE else read(data)
        except ServiceError as error:
            # The framework makes a 400 of its own of all but its own kind of error here.
            raise HTTPException(error.status_code, error.message) from None
        _check_length(value, self.app.state.running.settings.max_texts)
        return value


def read(data: bytes, where: str = "body") -> Any:
    """A JSON value. Raises Invalid for what is not UTF-8 or not JSON, a key that stands twice, and what is too deep.

    Raises TooLarge for too many values.
    """
    if len(data) > LARGE:
        _check_values(data, where)
    try:
        text = data.decode()
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise Invalid(f"{where}: expected UTF-8; byte {error.start} is not") from None
    except RecursionError:
        raise Invalid(f"{where}: nested too deep") from None
    except json.JSONDecodeError as error:
        raise Invalid(f"{where}: expected JSON; line {error.lineno}, column {error.colno}: {error.msg}") from None
    except ValueError as error:
        raise Invalid(f"{where}: {error}") from None


def records(data: bytes) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, or of NDJSON, one a line. Raises Invalid, naming the line or the index."""
    if data.lstrip(b" \t\r\n").startswith(b"["):
        for index, record in enumerate(read(data)):
            yield _record(record, f"body[{index}]")
        return
    # Lines end at a newline only: other line separators are characters of a text.
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield _record(read(line, f"line {number}"), f"line {number}")


def lines(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    """NDJSON, some rows at a time: one step of a stream costs more than a row."""
    pending: list[str] = []
    size = 0
    for row in rows:
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        pending.append(line)
        size += len(line)
        if size > CHUNK:
            yield ("\n".join(pending) + "\n").encode()
            pending, size = [], 0
    if pending:
        yield ("\n".join(pending) + "\n").encode()


def _record(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Invalid(f"{where}: expected an object", {"field": where})
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    if len(found) > MOST_FIELDS:
        raise ValueError(f"an object has at most {MOST_FIELDS:,} fields, not {len(found):,}")
    return found


def _check_values(data: bytes, where: str) -> None:
    """Count the commas outside strings, before anything is made of what they separate."""
    if data.count(b",") <= MOST_VALUES:
        return
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 2 * MOST_VALUES or b"".join(bare.split(b'"')[::2]).count(b",") > MOST_VALUES:
        raise TooLarge(f"{where}: at most {MOST_VALUES:,} values")


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_length(value: Any, most: int) -> None:
    """Refuse a long list before each of its entries is looked at."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        if isinstance(inner, list) and len(inner) > most:
            raise HTTPException(413, f"{name}: at most {most:,} entries, not {len(inner):,}")

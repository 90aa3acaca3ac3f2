"""What every request passes before its route, as plain ASGI, so that streams stay streams."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import failures

log = logging.getLogger(__name__)

BODY_SECONDS = 300.0  # for a whole body; who sends slower than that holds a connection for nothing

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

Observe = Callable[[str, str, int, float], None]


class Edge:
    """The outermost: safe headers unless the route has set its own, a duration measured, and no error unanswered."""

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self.app = app
        self.observe = observe  # method, route template, status, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception as error:
            response = failures.respond(error, scope)
            if response.status_code == 500:
                log.error("%s %s: %s", scope["method"], _template(scope), failures.where(error))
            if status:
                # Half an answer went out. The connection is broken off, so that nobody takes it for a whole one.
                raise ConnectionAbortedError("an answer broke off; the reason is in the log") from None
            await response(scope, receive, answer)
        finally:
            self.observe(scope["method"], _template(scope), status, time.monotonic() - began)


class Limits:
    """Bodies: as they are (no compression), no larger than `largest` bytes, and within BODY_SECONDS."""

    def __init__(self, app: ASGIApp, largest: int) -> None:
        self.app = app
        self.largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "a body is sent as it is, without Content-Encoding")
        stated = headers.get("content-length", "")
        if stated.isdecimal() and int(stated[:20]) > self.largest:
            raise self._too_large()
        received, complete = 0, False
        deadline = time.monotonic() + BODY_SECONDS

        async def limited() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is the end of the connection, and may take as long as the answer does
                return await receive()
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > self.largest:
                raise self._too_large()
            return message

        await self.app(scope, limited, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"a body has at most {self.largest:,} bytes")


def _template(scope: Scope) -> str:
    """The route's path with its parameters' names; one word for all that no route knows, so that labels stay few."""
    return getattr(scope.get("route"), "path", "unknown")

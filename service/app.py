"""The service: settings in, an ASGI application out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import socket

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy import Engine as Database
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from service import api, web
from service.auth import Forms, Guard
from service.engine import Engine
from service.errors import ServiceError
from service.failures import handle
from service.middleware import Edge, Limits
from service.running import Running
from service.settings import Settings

GRACE_SECONDS = 10  # for requests under way when the service is told to stop

DESCRIPTION = """
Labels texts with an open language model, says how sure it is of every label, and hands people exactly the items that
need them. Offsets are Unicode code points, end exclusive, in the text as received; spans also carry UTF-16 offsets.
Every error is `{"error": code, "detail": {"message": …}}`.
"""


def create_app(settings: Settings, engine: Engine | None = None, database: Database | None = None) -> FastAPI:
    """The application. engine, database: to be used instead of those that the settings name; they stay the caller's.

    Raises ServiceError where the settings, keys or prompts cannot work.
    """
    running = Running(settings, engine, database)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with running.lifespan():
            yield

    app = FastAPI(
        title="Concord",
        summary="Text annotation with stated confidence",
        description=DESCRIPTION,
        version="1",
        lifespan=lifespan,
        # The pages that show the API load their scripts from elsewhere, which nothing here may do.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(Edge, observe=running.metrics.observe),
            Middleware(Guard, door=running.door),
            Middleware(Limits, largest=settings.max_body),
            Middleware(Forms),
        ],
        exception_handlers=dict.fromkeys((ServiceError, HTTPException, RequestValidationError), handle),
    )
    app.state.running = running
    for router in (*api.routers, *web.routers):
        app.include_router(router)
    app.mount("/static", web.STATIC)
    return app


class Server(uvicorn.Server):
    """Ends the streams of those who follow a batch before it waits for the last request to end."""

    def __init__(self, app: FastAPI, host: str, port: int, log_level: str = "info") -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level=log_level,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        super().__init__(config)
        self._running: Running = app.state.running

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        self._running.stopping.set()
        await super().shutdown(sockets)


def serve(settings: Settings) -> None:
    """Listen until a signal to stop. Raises ServiceError where the settings, keys or prompts cannot work."""
    Server(create_app(settings), settings.host, settings.port).run()

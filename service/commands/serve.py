"""Running the service: `serve`, `worker`, and `doctor`, which says what would keep them from it."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import signal
import socket
from typing import Annotated

import typer
from rich.table import Table

from service import prompt, schema
from service.commands.console import EngineOption, err, opened, opened_database, out, settings_of
from service.engine import Identity, open_engine
from service.errors import ServiceError
from service.settings import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="default: CONCORD_HOST")] = None,
    port: Annotated[int | None, typer.Option(help="default: CONCORD_PORT")] = None,
) -> None:
    """Run the service: HTTP API and, unless CONCORD_WORKERS is 0, the workers that label."""
    from service import app as service

    settings = settings_of(host=host, port=port)
    _tell_first_admin(settings)
    service.serve(settings)


def worker() -> None:
    """Run one annotation worker beside the service, on the same database. Start as many as the engine can feed."""
    from service import db
    from service.worker import work

    settings = settings_of()

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        database = db.connect(settings.database_url)
        db.migrate(database)
        engine = open_engine(settings)
        try:
            await engine.ready()
            err.print(f"worker {owner()} is ready: {engine.identity.engine}, {engine.identity.model}")
            await work(owner(), database, engine, settings, settings.prompts, stop)
        finally:
            await engine.close()
            database.dispose()

    asyncio.run(run())


def doctor(engine_name: EngineOption = None) -> None:
    """Say what is installed, which engine answers, and whether its constraint bites."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    ready = True
    for name in ("concord", "transformers", "llguidance", "outlines", "torch", "fastapi", "sqlmodel", "psycopg"):
        try:
            table.add_row(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            table.add_row(name, "not installed")
    try:
        settings = settings_of(engine=engine_name)
        table.add_row("prompts", ", ".join(prompt.load_all(settings.prompts)))
        table.add_row("schemas", ", ".join(schema.load(path).name for path in sorted(settings.schemas.glob("*.yaml"))))
        table.add_row("database", _database_answers(settings))
        identity = asyncio.run(_engine_answers(settings))
        table.add_row("engine", f"{identity.engine}: {identity.model} {identity.revision} {identity.adapter}".strip())
        table.add_row("constraint", "[green]bites[/]: the canary's answer follows its grammar")
    except ServiceError as error:
        ready = False
        table.add_row("[red]problem[/]", f"{error.message} {getattr(error, 'hint', '')}".strip())
    out.print(table)
    raise typer.Exit(0 if ready else 1)


def _tell_first_admin(settings: Settings) -> None:
    """Somebody must be able to sign in: the first start makes an account, and nothing keeps its password."""
    from service import accounts, db

    with opened_database(settings) as database, db.begin(database) as session:
        password = accounts.first_admin(session)
    if password is not None:
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        where = f"http://{shown}:{settings.port}/"
        told = f"sign in at {where} as {accounts.FIRST}, password {password}"
        err.print(f"{told}; it is shown this once and must be changed", markup=False, highlight=False, soft_wrap=True)


async def _engine_answers(settings: Settings) -> Identity:
    async with opened(settings) as engine:
        return engine.identity


def _database_answers(settings: Settings) -> str:
    from sqlalchemy import text

    from service import db

    database = db.connect(settings.database_url)
    with database.connect() as connection:
        connection.execute(text("select 1"))
    shown = database.url.render_as_string(hide_password=True)
    database.dispose()
    return f"answers: {shown}"


def owner() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"

"""The database: one place that connects, migrates and commits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session, select

from service.errors import Invalid, Unavailable
from service.models import now

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30.0  # how long a writer waits for the one before it
_READ_ONLY = "concord_read_only"
_MIGRATION_LOCK = 0x636F6E636F7264  # any number that nobody else locks; this one spells "concord"

# A process that stops in the middle of a transaction must not keep its rows from the others: the server ends it.
# The TCP settings notice a server that vanished without a word.
_POSTGRESQL_SESSION: dict[str, Any] = {
    "application_name": "concord",
    "options": "-c idle_in_transaction_session_timeout=30s -c lock_timeout=30s",
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def connect(url: str) -> Engine:
    """An engine for a SQLite file or a PostgreSQL server (`postgresql://` means psycopg). Raises Invalid.

    Connects nothing yet. Statements' values never reach an error message or a log: they are people's texts.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise Invalid(
            "the database URL cannot be read; expected sqlite:///file.db or postgresql://user@host/name"
        ) from None
    backend = "postgresql" if parsed.drivername == "postgres" else parsed.get_backend_name()
    if backend == "sqlite":
        return _sqlite(parsed)
    if backend == "postgresql":
        return _postgresql(parsed.set(drivername="postgresql+psycopg"))
    raise Invalid(f"no database {backend!r}; expected sqlite or postgresql")


def _sqlite(url: URL) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise Invalid("SQLite needs a file, so that several threads and processes see the same tables")
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A transaction that reads first and writes later can fail at once when another wrote in between: no waiting
        # helps then. One that may write therefore takes the write lock first.
        reads = connection.get_execution_options().get(_READ_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(connection: Any) -> None:
    """Switch to WAL. Where several processes open a new file at once SQLite answers "locked" without waiting."""
    deadline = time.monotonic() + BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _postgresql(url: URL) -> Engine:
    settings = {name: value for name, value in _POSTGRESQL_SESSION.items() if name not in url.query}
    try:
        return create_engine(
            url, hide_parameters=True, pool_pre_ping=True, pool_size=10, max_overflow=20, connect_args=settings
        )
    except ImportError:
        raise Invalid("PostgreSQL needs psycopg: pip install 'concord[postgres]'") from None


def migrate(engine: Engine) -> None:
    """Bring the tables to this version; safe when several processes start at once. Raises Unavailable.

    All steps are one transaction: on SQLite it holds the write lock, on PostgreSQL an advisory lock.
    """
    try:
        with _answering(), engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise Unavailable(f"the tables belong to another version of the service: {error}") from error


@contextmanager
def begin(engine: Engine) -> Iterator[Session]:
    """One transaction that may write: commits at the end of the block, rolls back on any error.

    The only place that commits. Raises Unavailable when the database is down, locked or full; if that happens at
    the very commit, the transaction may or may not stand, and the caller repeats what it did (all of it is idempotent).
    """
    with _answering(), Session(engine, expire_on_commit=False) as session:
        yield session
        session.commit()


@contextmanager
def read(engine: Engine) -> Iterator[Session]:
    """One transaction that only reads, from one snapshot; never waits for a writer, never commits.

    Keep it short (one page of a stream at a time): PostgreSQL ends a transaction idle for 30 s. Raises Unavailable.
    """
    options: dict[str, Any] = {_READ_ONLY: True}
    if engine.dialect.name == "postgresql":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with _answering(), Session(engine.execution_options(**options), expire_on_commit=False) as session:
        yield session


def clock(session: Session) -> datetime:
    """The database's time, which all workers share however wrong their own clocks are."""
    if session.get_bind().dialect.name == "postgresql":
        found: datetime = session.exec(select(func.clock_timestamp())).one()
        return found
    return now()


@contextmanager
def _answering() -> Iterator[None]:
    """A database that does not answer is a 503 with one message, whatever driver and cause."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise Unavailable(f"the database cannot answer now: {_cause(error)}") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise Unavailable("the database cannot answer now: the connection was lost") from error


def _cause(error: Exception) -> str:
    cause = str(getattr(error, "orig", None) or error).strip()
    return cause.splitlines()[0][:200] if cause else type(error).__name__

"""Pytest plugin: the fixture `database`, an empty migrated database, once on SQLite and once on PostgreSQL.

One PostgreSQL server a session, made with initdb from /usr/lib/postgresql/*/bin or the PATH. Where the server
programs are missing the PostgreSQL half is skipped, and says so.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, insert, text
from sqlmodel import SQLModel

from service import db
from service.batches import BatchCreate, submit
from service.labels import Alternative, Choice, Labels, Mentions, Span
from service.models import LedgerHead
from service.schema import Schema
from service.settings import Settings

_numbers = count(1)
_made: set[str] = set()
# Commits need not reach the disk, except where a test asks for a durable database.
_FAST = "-c synchronous_commit=off"


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a throwaway server's maintenance database."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server programs in /usr/lib/postgresql/*/bin or on the PATH")
    root = os.geteuid() == 0
    if root and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
    user = "postgres" if root else None
    with tempfile.TemporaryDirectory(prefix="concord-postgresql-", ignore_cleanup_errors=True) as folder:
        if user:
            shutil.chown(folder, user)
        data, port = f"{folder}/data", _free_port()

        def run(*command: str) -> None:
            subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        run(f"{programs}/initdb", "-D", data, "-U", "concord", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c max_connections=200 {_FAST}"
        run(f"{programs}/pg_ctl", "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield f"postgresql://concord@127.0.0.1:{port}/postgres"
        finally:
            run(f"{programs}/pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def empty_database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    if backend == "sqlite":
        return f"sqlite:///{tmp_path}/concord.db"
    return _create(request.getfixturevalue("postgresql_server"), f"empty_{next(_numbers)}")


@pytest.fixture
def database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a migrated database without rows, for tests that start processes."""
    return _migrated(backend, request, tmp_path, "")


@pytest.fixture
def durable_database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same, with every commit on disk before it is answered, as in production. SQLite is so anyway."""
    return _migrated(backend, request, tmp_path, "ALTER DATABASE {name} SET synchronous_commit = on")


def _migrated(backend: str, request: pytest.FixtureRequest, tmp_path: Path, setting: str) -> str:
    """On PostgreSQL one database serves all tests one after the other: making and deleting one takes a second each."""
    if backend == "sqlite":
        url, made = f"sqlite:///{tmp_path}/concord.db", True
    else:
        server: str = request.getfixturevalue("postgresql_server")
        name = "durable" if setting else "usual"
        url = f"{server.removesuffix('postgres')}{name}"
        made = url not in _made
        if made:
            _create(server, name)
            _administer(server, *([setting.format(name=name)] if setting else []))
            _made.add(url)
    engine = db.connect(url)
    if made:
        db.migrate(engine)
    else:
        tables = ", ".join(f'"{table}"' for table in SQLModel.metadata.tables)
        with engine.begin() as connection:
            others = "pid <> pg_backend_pid() AND datname = current_database()"  # what a killed process left open
            connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
            connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))
            connection.execute(insert(LedgerHead))
    engine.dispose()
    return url


def _create(server: str, name: str) -> str:
    _administer(server, f"CREATE DATABASE {name}")
    return server.removesuffix("postgres") + name


def _administer(server: str, *statements: str) -> None:
    engine = create_engine(server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """An engine for a migrated, empty database."""
    engine = db.connect(database_url)
    yield engine
    engine.dispose()


SCHEMA = Schema.model_validate(
    {
        "name": "notes",
        "tasks": [
            {"name": "mood", "kind": "choice", "labels": ["good", "bad"]},
            {"name": "things", "kind": "spans", "labels": ["thing"]},
        ],
    }
)


def post(database: Engine, texts: Sequence[str], key: str | None = None, **fields: Any) -> str:
    """The id of a batch of these texts, with the schema SCHEMA and the prompt `line.v1` unless told otherwise."""
    new = BatchCreate.model_validate({"texts": [{"text": text} for text in texts], "schema": SCHEMA.name, **fields})
    with db.begin(database) as session:
        batch, _ = submit(session, "tests", key, new, SCHEMA, new.prompt or "line.v1", Settings(max_texts=1_000_000))
        return batch.id


def sure(text: str) -> Labels:
    """Labels that nothing speaks against: the first word is a thing, if there is one."""
    words = text.split(maxsplit=1)
    start = text.find(words[0]) if words else 0
    spans = (
        [Span(start=start, end=start + len(words[0]), label="thing", text=words[0], confidence=0.9)] if words else []
    )
    choice = Choice(label="good", confidence=0.95, alternatives=(Alternative(label="bad", confidence=0.05),))
    return Labels(choices={"mood": choice}, mentions={"things": Mentions(spans=tuple(spans), complete=0.9)})

"""The database opens, migrates and commits as `service.db` says, on SQLite and on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlmodel import Session, SQLModel, select

from service import db
from service.errors import Invalid, Unavailable
from service.models import ItemDecision, Recipe


def _add(session: Session, sha256: str) -> None:
    session.add(Recipe(sha256=sha256, body={}))
    session.flush()


def test_migrations_make_the_tables_of_the_models(database: Engine) -> None:
    with database.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_migrating_again_changes_nothing(database: Engine) -> None:
    with db.begin(database) as session:
        _add(session, "a")
    db.migrate(database)
    with db.read(database) as session:
        assert [recipe.sha256 for recipe in session.exec(select(Recipe))] == ["a"]


def test_processes_that_start_at_once_migrate_once(empty_database_url: str) -> None:
    code = f"from service import db; db.migrate(db.connect({empty_database_url!r}))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    errors = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors


def test_tables_of_a_newer_version_are_refused(empty_database_url: str) -> None:
    database = db.connect(empty_database_url)
    db.migrate(database)
    with db.begin(database) as session:
        session.connection().execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Unavailable, match="another version"):
        db.migrate(database)
    database.dispose()


def test_a_block_that_fails_leaves_nothing_behind(database: Engine) -> None:
    def write() -> None:
        with db.begin(database) as session:
            _add(session, "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    with db.read(database) as session:
        assert session.exec(select(Recipe)).all() == []


def test_what_is_written_while_reading_is_not_kept(database: Engine) -> None:
    if database.dialect.name == "sqlite":
        with db.read(database) as session:
            _add(session, "a")
    else:
        with pytest.raises(Exception, match="read-only"), db.read(database) as session:
            _add(session, "a")
    with db.read(database) as session:
        assert session.exec(select(Recipe)).all() == []


def test_readers_see_one_moment_and_do_not_wait_for_a_writer(database: Engine) -> None:
    with db.begin(database) as writer:
        _add(writer, "a")
        with db.read(database) as reader:
            assert reader.exec(select(Recipe)).all() == []
    with db.read(database) as reader:
        assert len(reader.exec(select(Recipe)).all()) == 1
        with db.begin(database) as writer:
            _add(writer, "b")
        assert len(reader.exec(select(Recipe.sha256)).all()) == 1


def test_two_writers_that_read_first_both_succeed(database: Engine) -> None:
    """On SQLite a transaction that reads and then writes fails at once when another wrote in between."""
    together = threading.Barrier(2)

    def write(name: str) -> None:
        together.wait()
        for number in range(20):
            with db.begin(database) as session:
                session.exec(select(Recipe)).all()
                _add(session, f"{name}{number}")

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, ("a", "b")))
    with db.read(database) as session:
        assert len(session.exec(select(Recipe)).all()) == 40


def test_sqlite_keeps_what_it_has_committed(tmp_path: Path) -> None:
    engine = db.connect(f"sqlite:///{tmp_path}/concord.db")
    with engine.connect() as connection:
        asked = ("journal_mode", "synchronous", "foreign_keys")
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in asked]
    engine.dispose()
    assert settings == ["wal", 2, 1]


def test_a_database_that_is_away_is_unavailable_and_its_message_holds_no_values() -> None:
    engine = db.connect("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(Unavailable) as caught, db.begin(engine) as session:
        session.exec(select(Recipe).where(Recipe.sha256 == "secret")).all()
    assert "secret" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "no url"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(Invalid):
        db.connect(url)


def _move(database: Engine, version: str) -> None:
    with database.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(db.MIGRATIONS))
        config.attributes["connection"] = connection
        (command.downgrade if version.startswith("-") else command.upgrade)(config, version.removeprefix("-"))


def test_what_was_decided_before_there_were_standards_is_kept(empty_database_url: str) -> None:
    database = db.connect(empty_database_url)
    _move(database, "0001")
    at = "'2026-01-01 00:00:00'"
    rows = [
        f"INSERT INTO recipe (sha256, body, created_at) VALUES ('r', '{{}}', {at})",
        "INSERT INTO schema_version (id, name, version, sha256, body, created_at) "
        f"VALUES (1, 'notes', 1, 's', '{{}}', {at})",
        "INSERT INTO batch (id, client, key, content_sha256, schema_id, prompt, policy, total, created_at) "
        f"VALUES ('b', 'c', 'k', 'h', 1, 'line.v1', '{{\"complete\": 0.5}}', 2, {at})",
    ]
    for n, recipe in ((1, "'r'"), (2, "NULL")):
        rows += [
            "INSERT INTO item (id, batch_id, position, ref, text, text_sha256, meta, state, attempt, fence, priority, "
            f"updated_at) VALUES ({n}, 'b', {n}, '{n}', 'x', 'x', '{{}}', 'accepted', 1, 1, 0, {at})",
            "INSERT INTO decision (item_id, recipe, outcome, reasons, inclusion, created_at) "
            f"VALUES ({n}, {recipe}, 'accepted', '[{{\"code\": \"audit\"}}]', 0.02, {at})",
        ]
    with database.begin() as connection:
        for row in rows:
            connection.exec_driver_sql(row)
    for _ in range(2):
        db.migrate(database)
        with db.read(database) as session:
            found = session.exec(select(ItemDecision).order_by(ItemDecision.item_id)).all()  # type: ignore[arg-type]
            assert [(one.item_id, one.recipe, one.inclusion) for one in found] == [(1, "r", 0.02), (2, None, 0.02)]
            assert {(one.standard, one.probability) for one in found} == {(None, None)}
            assert found[0].reasons == [{"code": "audit"}]
        with database.begin() as connection, pytest.raises(Exception, match=r"(?i)foreign key"):
            connection.exec_driver_sql("UPDATE decision SET standard = 99")
        _move(database, "-0001")
    database.dispose()

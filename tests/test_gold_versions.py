"""Gold sets in versions: what one held stays readable, under the hash that evaluations state."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine, text
from sqlmodel import select

from eval.parts import version as hash_of
from service import db, findings, gold
from service.commands.console import read_gold
from service.errors import Invalid, NotFound
from service.models import GoldPast, fingerprint
from service.schema import Schema
from service.settings import Settings
from tests.stage import SCHEMA

Records = dict[str, dict[str, Any]]
MOODS = ["negative", "neutral", "positive"]


def record(ref: str, mood: str = "neutral", said: str = "Ann") -> dict[str, Any]:
    return {"id": ref, "text": said, "sentiment": mood}


def upload(engine: Engine, *records: Mapping[str, Any], name: str = "set") -> dict[str, int]:
    with db.begin(engine) as session:
        return gold.upload(session, name, SCHEMA, records)


def remove(engine: Engine, ref: str, name: str = "set") -> None:
    with db.begin(engine) as session:
        gold.remove(session, name, ref)


def listed(engine: Engine, name: str = "set") -> list[tuple[str, tuple[int, int, int, int]]]:
    """(sha256, (texts, added, replaced, removed)), the first version first."""
    with db.read(engine) as session:
        rows = gold.versions(session, name, limit=1000).rows
    return [(row.sha256, (row.texts, row.added, row.replaced, row.removed)) for row in reversed(rows)]


def held(engine: Engine, sha256: str | None = None, name: str = "set") -> list[dict[str, Any]]:
    with db.read(engine) as session:
        return gold.items(session, name, limit=1000, sha256=sha256).rows


def test_every_version_is_read_as_it_was_and_in_its_order(database: Engine) -> None:
    upload(database, record("a"), record("b"))
    upload(database, record("a", "positive"), record("c"), record("b"))
    upload(database, record("c"), record("b"))
    remove(database, "b")
    upload(database, record("b", "negative"))
    found = listed(database)
    assert [counts for _, counts in found] == [(2, 2, 0, 0), (3, 1, 1, 0), (2, 0, 0, 1), (3, 1, 0, 0)]
    expected = [
        [record("a"), record("b")],
        [record("a", "positive"), record("b"), record("c")],
        [record("a", "positive"), record("c")],
        [record("a", "positive"), record("c"), record("b", "negative")],
    ]
    assert [held(database, sha256) for sha256, _ in found] == expected
    assert held(database) == expected[-1]
    assert [sha256 for sha256, _ in found] == [hash_of(records) for records in expected]
    with db.read(database) as session:
        assert len(session.exec(select(GoldPast)).all()) == 2  # of seven rows; no version is a copy
        page = gold.items(session, "set", limit=2, sha256=found[1][0])
        assert gold.items(session, "set", page.after or 0, sha256=found[1][0]).rows == expected[1][2:]


def test_a_set_that_is_as_it_was_before_has_the_same_hash_again(database: Engine) -> None:
    upload(database, record("a"))
    upload(database, record("a", "positive"))
    upload(database, record("a"))
    first, second, third = (sha256 for sha256, _ in listed(database))
    assert first == third != second
    assert held(database, first[:12]) == [record("a")]


def test_the_hash_is_what_an_evaluation_states_also_under_a_schema_with_fewer_tasks(database: Engine) -> None:
    span = {"start": 0, "end": 3, "label": "person", "text": "Ann"}
    upload(database, record("a") | {"entities": [span]}, record("b", said="Ben"))
    alone = Schema.model_validate(SCHEMA.model_dump() | {"tasks": [SCHEMA.model_dump()["tasks"][0]]})
    ((sha256, _),) = listed(database)
    with db.read(database) as session:
        for schema in (SCHEMA, alone):
            read = gold.labelled(session, "set", schema)
            assert findings.gold_identity("set", read)["sha256"] == sha256
        assert set(read[0].labels.mentions) == set()


def test_a_set_whose_last_record_was_removed_is_empty_and_its_versions_stay(database: Engine) -> None:
    upload(database, record("a"))
    remove(database, "a")
    assert held(database) == []
    assert held(database, listed(database)[0][0]) == [record("a")]
    with db.read(database) as session:
        assert [(found["size"], found["tasks"]) for found in gold.sets(session)] == [(0, {})]
    with pytest.raises(NotFound, match="no record 'a' in the gold set 'set'"):
        remove(database, "a")
    with pytest.raises(NotFound, match="no gold set 'other'"):
        remove(database, "a", "other")


def test_versions_of_one_set_know_nothing_of_another(database: Engine) -> None:
    upload(database, record("a"))
    upload(database, record("a", "positive"), name="other")
    ((sha256, _),) = listed(database, "other")
    with pytest.raises(NotFound, match="no version"):
        held(database, sha256)


def test_a_version_is_named_by_the_beginning_of_its_hash_if_only_one_begins_so(database: Engine) -> None:
    upload(database, record("a"))
    upload(database, record("a", "positive"))
    (first, _), (second, _) = listed(database)
    assert held(database, second[:4] if first[:4] != second[:4] else second) == [record("a", "positive")]
    alike = first[:40] + ("0" if first[40] != "0" else "1") * 24
    with db.begin(database) as session:
        session.connection().execute(text("UPDATE gold_version SET sha256 = :one WHERE number = 2"), {"one": alike})
    assert held(database, first[:41]) == [record("a")]
    with pytest.raises(Invalid, match="version: expected more digits"):
        held(database, first[:40])
    for wrong in ("abc", "", "x" * 64, "a" * 65, "abcd\n", "%%%%"):
        with pytest.raises(Invalid, match="4 to 64 hexadecimal digits"):
            held(database, wrong)


def test_an_upload_that_is_refused_leaves_no_version(database: Engine) -> None:
    upload(database, record("a"))
    with pytest.raises(Invalid):
        upload(database, *(record(str(n)) for n in range(600)), record("x", "furious"))
    assert upload(database, record("a"))["unchanged"] == 1
    assert len(listed(database)) == 1


def test_changes_of_one_set_at_once_each_make_a_version_that_holds_what_it_says(database: Engine) -> None:
    def change(n: int) -> None:
        upload(database, record("a", MOODS[n % 3], f"Ann {n}"), record(f"own {n}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(12)))
    found = listed(database)
    assert [texts for _, (texts, *_) in found] == list(range(2, 14))
    for sha256, (texts, *_) in found:
        rows = held(database, sha256)
        assert (len(rows), hash_of(rows)) == (texts, sha256)


def test_whatever_is_done_to_a_set_each_version_holds_what_was_there(database: Engine) -> None:
    names = iter(range(1000))

    class Changes(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.name = f"set {next(names)}"
            self.now: Records = {}
            self.kept: list[Records] = []

        @rule(
            records=st.dictionaries(
                st.sampled_from("abcd"), st.tuples(st.sampled_from(MOODS), st.sampled_from(["Ann", "\u0301<b>😀"]))
            )
        )
        def upload(self, records: dict[str, tuple[str, str]]) -> None:
            new = {ref: record(ref, *what) for ref, what in records.items()}
            counted = upload(database, *new.values(), name=self.name)
            assert counted["replaced"] == sum(self.now.get(ref, one) != one for ref, one in new.items())
            self._become(self.now | new)

        @precondition(lambda self: self.now)
        @rule(data=st.data())
        def remove(self, data: st.DataObject) -> None:
            ref = data.draw(st.sampled_from(sorted(self.now)))
            remove(database, ref, self.name)
            self._become({other: one for other, one in self.now.items() if other != ref})

        def _become(self, after: Records) -> None:
            self.kept += [after] if after != self.now else []
            self.now = after

        @invariant()
        def every_version_is_readable(self) -> None:
            if self.kept:
                found = listed(database, self.name)
                assert [texts for _, (texts, *_) in found] == [len(records) for records in self.kept]
                for (sha256, _), records in zip(found, self.kept, strict=True):
                    assert {row["id"]: row for row in held(database, sha256, self.name)} == records

    quick = settings(
        max_examples=8, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(Changes, settings=quick)


def migrate(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(db.MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def test_gold_from_before_there_were_versions_is_the_first_version(empty_database_url: str) -> None:
    database = db.connect(empty_database_url)
    migrate(database, "0004")
    times = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 3, 2)]
    rows: list[dict[str, Any]] = [
        {
            "ref": ref,
            "text": said,
            "sha256": fingerprint(said),
            "at": at if database.dialect.name == "postgresql" else f"{at:%F %T.%f}",
        }
        for ref, said, at in zip("abc", ["Ann", "\u202eBen", "Cem 😀"], times, strict=True)
    ]
    statement = text(
        "INSERT INTO gold_item (gold, ref, text, text_sha256, labels, created_at)"
        """ VALUES ('old', :ref, :text, :sha256, '{"sentiment": "neutral"}', :at)"""
    )
    with database.begin() as connection:
        connection.execute(statement, rows)
    db.migrate(database)
    records = [record(row["ref"], said=row["text"]) for row in rows]
    with db.read(database) as session:
        (first,) = gold.versions(session, "old").rows
        assert (first.number, first.texts, first.added, first.created_at) == (1, 3, 3, times[1])
    assert first.sha256 == hash_of(records)
    assert upload(database, records[0], record("b", "positive"), name="old") == {
        "added": 0,
        "replaced": 1,
        "unchanged": 1,
    }
    assert held(database, first.sha256, "old") == records
    database.dispose()


def test_the_command_line_names_a_version_after_the_name_of_the_set(database: Engine, tmp_path: Path) -> None:
    schema = tmp_path / "shop.yaml"
    tasks = "[{name: sentiment, kind: choice, labels: [negative, neutral, positive]}]"
    schema.write_text(f"name: shop\ntasks: {tasks}\n")
    upload(database, record("a"), record("b"))
    upload(database, record("a", "positive"))
    upload(database, record("c"), name="set@home")
    (first, _), (second, _) = listed(database)

    def read(source: str) -> tuple[str, list[str]]:
        part = read_gold(source, str(schema), Settings(), database)
        return part.name, [one.labels.choices["sentiment"].label for one in part.splits["test"]]

    assert read("set") == read(f"set@{second}") == ("set", ["positive", "neutral"])
    assert read(f"set@{first[:8]}") == ("set", ["neutral", "neutral"])
    assert read("set@home") == ("set@home", ["neutral"])
    with pytest.raises(NotFound, match="no version"):
        read(f"set@{'0' * 64}")

"""The ledger: only added to, and whatever is done to it behind the database's back is found."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, text, update
from sqlmodel import Session, col, select
from typer.testing import CliRunner

from service import db, ledger, queue
from service.__main__ import app
from service.ledger import NOTHING, Verified
from service.models import LedgerEntry, LedgerHead, Recipe, StandardVersion
from service.route import Decision, Outcome
from tests.databases import post
from tests.serving import finished, post_batch, serving

LINES = 7
FIELDS = ("at", "who", "action", "subject", "before", "after", "recipe", "previous", "sha256")
Tamper = Callable[[Session], int]  # what is done, and the number that is to be named

numbers = st.integers(1, LINES)
examples = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(database: Engine, count: int = LINES) -> None:
    for number in range(1, count + 1):
        with db.begin(database) as session:
            ledger.append(
                session,
                who=("ada", "<script>", "ש\u0301😀")[number % 3],
                action="review.settle",
                subject=f"item:{number % 4}",
                before={"state": "review"},
                after={"state": "resolved", "labels": [number]},
                recipe="r" * 64 if number % 2 else None,
            )


def behind(session: Session) -> None:
    """Take the triggers away, as somebody could who owns the database; gone with the transaction."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SET LOCAL session_replication_role = replica"))
        return
    for name in session.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all():
        session.execute(text(f"DROP TRIGGER {name}"))


def after(database: Engine, tamper: Tamper) -> tuple[Verified, int]:
    """What is found after it was done to a whole ledger, and the number that ought to be named; nothing is kept."""
    with Session(database) as session:
        behind(session)
        expected = tamper(session)
        session.expire_all()
        found = ledger.verify(session)
        session.rollback()
    return found, expected


def line(session: Session, number: int) -> dict[str, Any]:
    found = session.exec(select(LedgerEntry).where(LedgerEntry.number == number)).one().model_dump()
    session.expunge_all()
    return found


def put(session: Session, number: int, /, **values: Any) -> None:
    session.execute(update(LedgerEntry).where(col(LedgerEntry.number) == number).values(**values))


def other(value: Any) -> Any:
    return value + timedelta(microseconds=1) if hasattr(value, "isoformat") else f"x{value or ''}"[:64]


def test_what_was_written_is_whole(database: Engine) -> None:
    with db.read(database) as session:
        assert ledger.verify(session) == Verified(0, NOTHING)
    write(database)
    with db.read(database) as session:
        found = ledger.verify(session)
        assert (found.lines, found.wrong, found.why) == (LINES, None, "")
        assert found.head == session.get_one(LedgerHead, 1).sha256
        assert [one.number for one in ledger.lines(session, "item:3")] == [3, 7]


def test_any_edit_of_any_field_is_found(database: Engine) -> None:
    write(database)

    @examples
    @given(numbers, st.sampled_from(FIELDS), st.booleans())
    def check(number: int, field: str, hashed_again: bool) -> None:
        def edit(session: Session) -> int:
            new = line(session, number)
            new[field] = other(new[field])
            again = hashed_again and field != "sha256"
            if again:
                new["sha256"] = ledger.chained(LedgerEntry(**new))
            put(session, number, **{name: value for name, value in new.items() if name != "number"})
            return number + 1 if again and field != "previous" and number < LINES else number

        found, expected = after(database, edit)
        assert (found.wrong, bool(found.why)) == (expected, True)

    check()


def test_a_line_that_is_gone_is_found_the_last_one_too(database: Engine) -> None:
    write(database)

    @examples
    @given(st.sets(numbers, min_size=1))
    def check(gone: set[int]) -> None:
        def remove(session: Session) -> int:
            session.execute(delete(LedgerEntry).where(col(LedgerEntry.number).in_(gone)))
            return min(gone)

        found, expected = after(database, remove)
        assert (found.wrong, found.lines) == (expected, expected - 1)
        assert "gone" in found.why

    check()


def test_lines_that_changed_places_are_found(database: Engine) -> None:
    write(database)

    @examples
    @given(st.permutations(range(1, LINES + 1)).filter(lambda order: list(order) != sorted(order)), st.booleans())
    def check(order: list[int], hashed_again: bool) -> None:
        def move(session: Session) -> int:
            lines = {number: line(session, number) for number in order}
            for number, source in enumerate(order, start=1):
                moved = lines[source] | {"number": number}
                if hashed_again and number != source:
                    moved["sha256"] = ledger.chained(LedgerEntry(**moved))
                put(session, number, **{name: value for name, value in moved.items() if name != "number"})
            return next(number for number, source in enumerate(order, start=1) if number != source)

        found, expected = after(database, move)
        assert found.wrong == expected

    check()


def test_a_line_that_was_put_in_is_found(database: Engine) -> None:
    write(database)

    @examples
    @given(st.integers(-1, LINES + 1), st.booleans())
    def check(number: int, well_made: bool) -> None:
        def put_in(session: Session) -> int:
            for later in range(LINES, max(number, 1) - 1, -1):
                if number > 0:
                    put(session, later, number=later + 1)
            new = line(session, number - 1 if number > 1 else number + 1 if number == 1 else 1) | {"number": number}
            new["previous"] = new["sha256"] if number > 1 else NOTHING
            if well_made:
                new["sha256"] = ledger.chained(LedgerEntry(**new))
            session.execute(insert(LedgerEntry).values(**new))
            same = number == 1  # as the first line that was there
            return number + 1 if (well_made or same) and 0 < number <= LINES else number

        found, expected = after(database, put_in)
        assert found.wrong == expected

    check()


def test_a_head_that_was_changed_is_found(database: Engine) -> None:
    write(database)
    changes: dict[int | None, dict[str, Any]] = {
        LINES: {"sha256": "0" * 64},
        LINES + 1: {"number": LINES + 3},
        LINES - 1: {"number": LINES - 2},
    }
    for wrong, values in changes.items():

        def change(session: Session, values: dict[str, Any] = values) -> int:
            session.execute(update(LedgerHead).values(**values))
            return 0

        assert after(database, change)[0].wrong == wrong

    def remove(session: Session) -> int:
        session.execute(delete(LedgerHead))
        return 0

    assert "head" in after(database, remove)[0].why


def test_only_a_noted_head_tells_that_all_was_written_anew(database: Engine) -> None:
    write(database)
    with db.read(database) as session:
        noted = [one.sha256 for one in session.exec(select(LedgerEntry).order_by(col(LedgerEntry.number)))]
        assert all(ledger.verify(session, head).why == "" for head in [NOTHING, *noted])
    with Session(database) as session:
        behind(session)
        last = NOTHING
        for number in range(1, LINES + 1):
            new = line(session, number) | {"previous": last}
            new["who"] = "nobody" if number == 3 else new["who"]
            last = new["sha256"] = ledger.chained(LedgerEntry(**new))
            put(session, number, **{name: value for name, value in new.items() if name != "number"})
        session.execute(update(LedgerHead).values(sha256=last))
        assert ledger.verify(session).why == ""
        assert ledger.verify(session, noted[1]).why == ""  # before the change
        assert "anew" in ledger.verify(session, noted[2]).why
        session.rollback()


def test_what_cannot_even_be_read_is_named_too(tmp_path: Path) -> None:
    database = db.connect(f"sqlite:///{tmp_path}/concord.db")
    db.migrate(database)
    write(database)

    def spoil(session: Session) -> int:
        session.execute(text("UPDATE ledger SET at = 'never' WHERE number = 5"))
        return 5

    found, expected = after(database, spoil)
    assert (found.wrong, found.lines) == (expected, 4)
    database.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET who = 'x' WHERE number = 3",
        "DELETE FROM ledger WHERE number = 7",
        "DELETE FROM ledger",
        "REPLACE INTO ledger SELECT * FROM ledger",
        "INSERT INTO ledger SELECT * FROM ledger WHERE number = 1 ON CONFLICT (number) DO UPDATE SET who = 'x'",
        "TRUNCATE ledger",
    ],
)
def test_the_database_refuses_to_change_a_line(database: Engine, statement: str) -> None:
    write(database)
    if statement.startswith("REPLACE" if database.dialect.name == "postgresql" else "TRUNCATE"):
        pytest.skip("no statement of this database")
    with pytest.raises(Exception, match="only added to"), database.begin() as connection:
        connection.execute(text(statement))
    with db.read(database) as session:
        assert ledger.verify(session).lines == LINES


def test_lines_that_are_added_at_once_get_one_order(database: Engine) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write(database, 5), range(4)))
    with db.read(database) as session:
        found = ledger.verify(session)
    assert (found.lines, found.why) == (20, "")


def test_what_is_rolled_back_leaves_no_line(database: Engine) -> None:
    def fail() -> None:
        with db.begin(database) as session:
            ledger.append(session, who="ada", action="a", subject="s", before=None, after=None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with db.read(database) as session:
        assert ledger.verify(session).lines == 0


def test_a_chunk_that_a_worker_stores_is_one_line(database: Engine) -> None:
    batch = post(database, [f"text {number}" for number in range(5)])
    with db.begin(database) as session:
        claim = queue.claim(session, "worker", 10, 60)
    assert claim is not None
    results = [queue.Result(item.id, Decision(outcome=Outcome.accepted, inclusion=0.1)) for item in claim.items]
    with db.begin(database) as session:
        assert queue.store(session, claim, results) == 5
    with db.begin(database) as session:
        assert queue.store(session, claim, results) == 0  # late, and dropped
    with db.read(database) as session:
        (found,) = ledger.lines(session, f"batch:{batch}")
    assert (found.who, found.action) == ("worker", "worker.store")
    assert found.after == ledger.digest(sorted((item.id, "accepted") for item in claim.items))


def done(client: Any, subject: str) -> list[tuple[str, str]]:
    """Who did what to it."""
    with db.read(client.app.state.running.database) as session:
        return [(one.who, one.action) for one in ledger.lines(session, subject)]


def test_every_change_of_state_through_the_api_is_one_line(tmp_path: Path, empty_database_url: str) -> None:
    with serving(tmp_path, database_url=empty_database_url) as client:
        assert done(client, "schema:mood.v1") == [("service", "schema.save")]
        schema = "name: other\ntasks:\n  - {name: a, kind: choice, labels: [x, y]}\n"
        for _ in range(2):
            client.post("/v1/schemas", content=schema)
        assert done(client, "schema:other.v1") == [("local", "schema.save")]

        batch = post_batch(client, "one", "two", key="k")
        post_batch(client, "one", "two", key="k")
        finished(client, batch)
        assert set(done(client, f"batch:{batch}")[1:]) <= {
            (who, "worker.store") for who, _ in done(client, f"batch:{batch}")
        }
        for _ in range(2):
            client.post(f"/v1/batches/{batch}/cancel")
        told = done(client, f"batch:{batch}")
        assert (told[0], told[-1]) == (("local", "batch.create"), ("local", "batch.cancel"))
        assert [action for _, action in told].count("batch.cancel") == 1

        gold = '{"text": "fine \\ud83d\\ude00", "sentiment": "positive", "meta": {"odd": "\\ud800"}}'
        for _ in range(2):
            assert client.post("/v1/gold/g?schema=mood", content=gold).status_code == 200
        assert done(client, "gold:g") == [("local", "gold.upload")]
        assert client.post("/v1/gold/g?schema=mood", content='{"text": ""}').status_code == 422
        assert done(client, "gold:g") == [("local", "gold.upload")]

        asked = {"gold": "g", "schema": "mood", "prompts": ["line.v1"]}
        run = client.post("/v1/evaluations", json=asked).json()["id"]
        client.post(f"/v1/evaluations/{run}/cancel")
        told = done(client, f"evaluation:{run}")
        assert told[0] == ("local", "evaluation.create")
        assert told[1:] in ([], [("local", "evaluation.cancel")])  # it may have been done already

        with db.begin(client.app.state.running.database) as session:  # type: ignore[attr-defined]
            session.add(Recipe(sha256="s" * 64, body={}))
            session.flush()
            body = {"recipe": {}, "gold": {}, "standard": {"lines": []}, "promises": [], "checks": []}
            row = StandardVersion(recipe="s" * 64, body=body)
            session.add(row)
            session.flush()
            standard = row.id or 0
        restored = client.post(f"/v1/standards/{standard}/restore").json()["id"]
        assert done(client, f"standard:{restored}") == [("local", "standard.restore")]
        with db.read(client.app.state.running.database) as session:  # type: ignore[attr-defined]
            assert ledger.verify(session).why == ""


def test_the_command_says_what_is_wrong_and_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/concord.db"
    monkeypatch.setenv("CONCORD_DATABASE_URL", url)
    monkeypatch.setenv("COLUMNS", "300")
    database = db.connect(url)
    db.migrate(database)
    write(database)

    def run(*arguments: str) -> tuple[int, str]:
        found = CliRunner().invoke(app, ["audit", *arguments])
        return found.exit_code, found.output

    code, told = run("verify")
    noted = re.search(rf"^{LINES} ([0-9a-f]{{64}})$", told, re.MULTILINE)
    assert code == 0 and noted
    assert run("verify", "--head", noted[1].upper())[0] == 0
    assert run("verify", "--head", "f" * 64)[0] == 1
    assert run("verify", "--head", "f" * 63)[0] == 1
    code, told = run("list", "--subject", "item:3")
    assert code == 0 and told.count("review.settle") == 2
    assert "nothing" in run("list", "--subject", "item:99")[1]
    with Session(database) as session:
        behind(session)
        put(session, 4, who="somebody else")
        session.commit()
    code, told = run("verify")
    assert code == 1
    assert "line 4: it was altered" in told
    database.dispose()

"""Batches come in once, are counted right at any moment, and give back one row a text."""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import Engine, event, update
from sqlmodel import func, select

from service import batches, db, queue, route
from service.batches import BatchCreate, TextCreate
from service.errors import Conflict, Invalid, NotFound, TooLarge
from service.models import Batch, Item, Review, State, fingerprint
from service.queue import Result
from service.route import Code, Outcome, Policy
from service.schema import Schema
from service.settings import Settings
from tests.databases import SCHEMA, post, sure

RECIPE = "r" * 64
log = logging.getLogger(__name__)


def new(*texts: str, **fields: Any) -> BatchCreate:
    return BatchCreate.model_validate({"texts": [{"text": text} for text in texts], "schema": "notes", **fields})


def submit(database: Engine, create: BatchCreate, key: str | None = None, **more: Any) -> tuple[Batch, bool]:
    schema, prompt = more.get("schema", SCHEMA), more.get("prompt", "line.v1")
    with db.begin(database) as session:
        return batches.submit(
            session, more.get("client", "me"), key, create, schema, prompt, Settings(max_texts=200_000)
        )


def label(database: Engine, outcome: Outcome = Outcome.accepted, limit: int = 1000) -> int:
    """Claim and store once; how many."""
    with db.begin(database) as session:
        queue.keep_recipe(session, RECIPE, {})
        claim = queue.claim(session, "a", limit, 60)
        if claim is None:
            return 0
        decision = route.Decision(outcome=outcome)
        return queue.store(session, claim, [Result(x.id, decision, sure(x.text), RECIPE) for x in claim.items])


def rows(database: Engine, batch: str, **page: int) -> list[dict[str, Any]]:
    with db.read(database) as session:
        return batches.results(session, batch, **page)


def problem(error: pytest.ExceptionInfo[ValidationError]) -> tuple[tuple[int | str, ...], str]:
    first = error.value.errors()[0]
    return first["loc"], first["msg"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text", "a\0b", "a NUL character at 1"),
        ("text", "ab\ud83d", "half a surrogate pair at 2"),
        ("id", "\0", "a NUL character at 0"),
        ("id", "\udc00", "half a surrogate pair at 0"),
        ("id", "", "at least 1 character"),
        ("id", "x" * 201, "at most 200 characters"),
        ("id", 5, "valid string"),
        ("meta", {"a": {"b": ["\0"]}}, "a NUL character at 0"),
        ("meta", {"\ud800": 1}, "half a surrogate pair at 0"),
        ("meta", {"a": float("nan")}, "without NaN"),
        ("meta", {"a": "x" * 10_000}, "at most 10,000 characters as JSON"),
        ("meta", {"a": [[[[[[[[1]]]]]]]]}, "nested more than 8 deep"),
        ("meta", [1], "valid dictionary"),
        ("state", "accepted", "Extra inputs"),
    ],
)
def test_a_bad_text_is_refused_with_its_index_and_the_reason(field: str, value: object, message: str) -> None:
    good: dict[str, object] = {"text": "a"}
    with pytest.raises(ValidationError) as error:
        BatchCreate.model_validate({"texts": [good, good | {field: value}], "schema": "notes"})
    where, said = problem(error)
    assert where[:3] == ("texts", 1, field)
    assert message in said


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"texts": []}, "texts"),
        ({"schema": ""}, "schema"),
        ({"schema": "a\0"}, "schema"),
        ({"schema_version": 0}, "schema_version"),
        ({"policy": {"choice_confidence": 1.1}}, "policy"),
        ({"policy": {"nonsense": 1}}, "policy"),
        ({"state": "accepted"}, "state"),
        ({"client": "other"}, "client"),
    ],
)
def test_a_bad_batch_is_refused_with_its_field(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError) as error:
        BatchCreate.model_validate({"texts": [{"text": "a"}], "schema": "notes"} | fields)
    assert problem(error)[0][0] == where


def test_ids_are_unique_in_a_batch_also_against_the_positions_that_stand_in_for_them() -> None:
    for ids, message in (
        (["x", "x"], "texts[1]: the id 'x' is that of texts[0]"),
        (["1", None], "texts[1]: the id '1'"),
    ):
        with pytest.raises(ValidationError) as error:
            BatchCreate.model_validate({"texts": [{"text": "a", "id": ref} for ref in ids], "schema": "notes"})
        assert message in problem(error)[1]


def test_the_same_post_again_is_the_same_batch(database: Engine) -> None:
    first, was_new = submit(database, new("a", "b"), "key")
    again, is_new = submit(database, new("a", "b"), "key")
    assert (was_new, is_new) == (True, False)
    assert first.id == again.id
    with db.read(database) as session:
        assert session.exec(select(func.count()).select_from(Item)).one() == 2


def test_the_same_key_with_other_content_is_a_conflict(database: Engine) -> None:
    submit(database, new("a"), "key")
    for other in (new("b"), new("a", policy={"complete": 0.9}), new("a", gold="g"), new("a", "a")):
        with pytest.raises(Conflict):
            submit(database, other, "key")
    assert submit(database, new("b"), "key", client="somebody else")[1]


def test_a_retry_finds_its_batch_after_the_newest_schema_has_changed(database: Engine) -> None:
    first, _ = submit(database, new("a"), "key")
    newer = SCHEMA.model_copy(update={"version": 2})
    assert submit(database, new("a"), "key", schema=newer, prompt="line.v2")[0].id == first.id


def test_without_a_key_the_content_is_the_key(database: Engine) -> None:
    first, _ = submit(database, new("a"))
    assert submit(database, new("a"))[0].id == first.id
    assert submit(database, new("b"))[1]
    assert submit(database, new("a"), prompt="line.v2")[1]
    assert submit(database, new("a"), schema=SCHEMA.model_copy(update={"version": 2}))[1]
    assert submit(database, new("a"), "twice")[1]


def test_content_that_was_cancelled_may_come_anew(database: Engine) -> None:
    first, _ = submit(database, new("a"))
    with db.begin(database) as session:
        batches.cancel(session, first.id)
    second, is_new = submit(database, new("a"))
    assert is_new
    assert second.id != first.id


@pytest.mark.parametrize("key", ["", "x" * 201, "a\0", "sha256:abc"])
def test_a_key_that_cannot_be_one_is_refused(database: Engine, key: str) -> None:
    with pytest.raises(Invalid):
        submit(database, new("a"), key)


@pytest.mark.parametrize("key", ["key", None])
def test_the_same_post_many_times_at_once_makes_one_batch(database: Engine, key: str | None) -> None:
    create = new(*["a"] * 500)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: submit(database, create, key), range(8)))
    assert len({batch.id for batch, _ in answers}) == 1
    assert sum(is_new for _, is_new in answers) == 1
    with db.read(database) as session:
        assert session.exec(select(func.count()).select_from(Item)).one() == 500


def test_too_many_texts_and_too_long_ones_are_refused(database: Engine) -> None:
    small = Settings(max_texts=2, max_text=3)
    with db.begin(database) as session:
        with pytest.raises(TooLarge, match="at most 2 texts"):
            batches.submit(session, "me", None, new("a", "b", "c"), SCHEMA, "line.v1", small)
        with pytest.raises(TooLarge, match=r"texts\[1\]: at most 3 characters, not 4"):
            batches.submit(session, "me", None, new("a", "🙂🙂🙂🙂"), SCHEMA, "line.v1", small)
        batches.submit(session, "me", None, new("", "🙂🙂🙂"), SCHEMA, "line.v1", small)


def test_a_schema_is_kept_once_and_never_changes(database: Engine) -> None:
    with db.begin(database) as session:
        first = batches.save_schema(session, SCHEMA)
        assert batches.save_schema(session, SCHEMA).id == first.id
        batches.save_schema(session, SCHEMA.model_copy(update={"version": 3}))
        with pytest.raises(Conflict, match="raise its version"):
            batches.save_schema(session, SCHEMA.model_copy(update={"guideline": "other"}))
    with db.read(database) as session:
        assert batches.find_schema(session, "notes", 1) == SCHEMA
        assert batches.find_schema(session, "notes", 1).sha256 == SCHEMA.sha256
        assert batches.find_schema(session, "notes").version == 3
        for name, version in (("notes", 2), ("none", None)):
            with pytest.raises(NotFound):
                batches.find_schema(session, name, version)


def test_counts_name_every_state_and_add_up(database: Engine) -> None:
    batch = post(database, ["a"] * 10)
    label(database, Outcome.accepted, 3)
    label(database, Outcome.review, 2)
    with db.begin(database) as session:
        queue.claim(session, "b", 1, 60)
    with db.read(database) as session:
        found = batches.progress(session, batch)
    expected = {State.queued: 4, State.leased: 1, State.accepted: 3, State.review: 2}
    assert found.counts == {state: expected.get(state, 0) for state in State}
    assert (found.total, found.done) == (10, 5)
    assert found.rate > 0
    assert found.seconds_left == pytest.approx(5 / found.rate)


def test_progress_without_a_rate_knows_no_end_and_a_finished_batch_needs_none(database: Engine) -> None:
    batch = post(database, ["a"])
    with db.read(database) as session:
        assert batches.progress(session, batch).seconds_left is None
    label(database)
    with db.read(database) as session:
        assert batches.progress(session, batch).seconds_left == 0.0


def test_what_does_not_exist_is_not_found(database: Engine) -> None:
    with db.begin(database) as session:
        for ask in (batches.counts, batches.progress, batches.cancel, batches.results, batches.find):
            with pytest.raises(NotFound):
                ask(session, "none")


def test_rows_say_what_the_model_and_the_decision_said(database: Engine) -> None:
    create = BatchCreate.model_validate(
        {"texts": [{"text": "tea 🙂", "id": "x", "meta": {"b": 1, "a": [1.0, None]}}, {"text": "b"}], "schema": "notes"}
    )
    batch, _ = submit(database, create)
    label(database, Outcome.accepted, 1)
    first, second = rows(database, batch.id)
    assert (first["id"], first["text"], first["state"], first["recipe"]) == ("x", "tea 🙂", "accepted", RECIPE)
    assert (first["decision"], first["reasons"], first["complete"]) == ("accepted", [], 0.9)
    assert first["mood"]["label"] == "good"
    assert first["things"] == [
        {"start": 0, "end": 3, "label": "thing", "text": "tea", "confidence": 0.9, "start_utf16": 0, "end_utf16": 3}
    ]
    assert json.dumps(first["meta"]) == '{"b": 1, "a": [1.0, null]}'
    assert second == {"id": "1", "text": "b", "state": "queued", "meta": {}}


def test_a_settled_row_shows_the_persons_labels_and_keeps_the_models(database: Engine) -> None:
    batch = post(database, ["tea"])
    label(database, Outcome.review)
    with db.begin(database) as session:
        item = session.exec(select(Item)).one()
        session.add(Review(item_id=item.id or 0, reviewer="ann", changed=True, labels={"mood": "bad", "things": []}))
        session.exec(update(Item).values(state=State.resolved))
    (row,) = rows(database, batch)
    assert (row["state"], row["reviewer"], row["mood"]["label"], row["things"]) == ("resolved", "ann", "bad", [])
    assert "complete" not in row
    assert row["proposed"]["mood"]["label"] == "good"
    assert row["proposed"]["complete"] == 0.9


def test_a_row_that_could_not_be_labelled_says_why(database: Engine) -> None:
    batch = post(database, ["tea"])
    with db.begin(database) as session:
        claim = queue.claim(session, "a", 1, 60)
        assert claim is not None
        queue.store(session, claim, [Result(claim.items[0].id, route.refuse(Code.failed, "no answer"))])
    (row,) = rows(database, batch)
    assert (row["state"], row["decision"], row["recipe"]) == ("review", "review", None)
    assert (row["reasons"][0]["code"], row["reasons"][0]["detail"]) == ("failed", "no answer")
    assert "mood" not in row


def test_pages_follow_one_another_without_gap_or_repetition(database: Engine) -> None:
    batch = post(database, [str(n) for n in range(25)])
    label(database)
    texts, after = [], -1
    while page := rows(database, batch, after=after, limit=10):
        texts += [row["text"] for row in page]
        after += len(page)
    assert texts == [str(n) for n in range(25)]


def test_a_page_costs_the_same_few_statements_however_long_it_is(database: Engine) -> None:
    batch = post(database, ["tea"] * 200)
    label(database)
    statements: list[str] = []
    event.listen(database, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for limit in (1, 200):
        statements.clear()
        assert len(rows(database, batch, limit=limit)) == limit
        assert len(statements) <= 6


def test_twenty_thousand_texts_come_in_are_counted_and_read_in_seconds(database: Engine) -> None:
    started = time.monotonic()
    batch = post(database, ["tea is hot"] * 20_000)
    submitted = time.monotonic()
    assert label(database, limit=100) == 100
    labelled = time.monotonic()
    with db.read(database) as session:
        assert batches.progress(session, batch).total == 20_000
    counted = time.monotonic()
    assert len(rows(database, batch, after=19_000)) == 999
    read = time.monotonic()
    times = (submitted - started, labelled - submitted, counted - labelled, read - counted)
    log.info("submit %.3f s, claim and store 100 %.3f s, progress %.3f s, page of 999 %.3f s", *times)
    assert times[0] < 60  # generous: the machine is shared
    assert max(times[1:]) < 5


anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)


@hypothesis_settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
@given(
    text=anything,
    ref=st.none() | anything.filter(bool),
    meta=st.dictionaries(
        anything, anything | st.integers() | st.floats(allow_nan=False, allow_infinity=False), max_size=3
    ),
)
@example(text="\r\n\u2028\ufeff e\u0301 \U0010ffff\ufffe", ref="\ufeff", meta={"": 1e22})
def test_any_text_comes_back_code_point_for_code_point(
    database: Engine, text: str, ref: str | None, meta: dict[str, Any]
) -> None:
    create = BatchCreate(texts=(TextCreate(text=text, id=ref, meta=meta),), schema_name="notes", policy=Policy())
    batch, _ = submit(database, create)
    (row,) = rows(database, batch.id)
    assert (row["text"], row["id"], row["meta"]) == (text, ref or "0", meta)
    with db.read(database) as session:
        item = session.exec(select(Item).where(Item.batch_id == batch.id)).one()
    assert item.text_sha256 == fingerprint(text)


def test_a_schema_body_reads_back_as_the_same_schema(database: Engine) -> None:
    post(database, ["a"])
    with db.begin(database) as session:
        claim = queue.claim(session, "a", 1, 60)
    assert claim is not None
    assert Schema.model_validate(claim.batch.schema) == SCHEMA
    assert claim.batch.schema_sha256 == SCHEMA.sha256

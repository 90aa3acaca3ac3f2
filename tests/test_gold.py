"""Gold sets take what is right, refuse the rest by name, and measure the model and not the people after it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, delete
from sqlmodel import Session, col, select

from service import db, gold, review
from service.errors import Invalid, NotFound
from service.labels import from_row
from service.models import Annotation, Batch, GoldItem, Item, ItemDecision, Measurement, Recipe, State, fingerprint
from service.route import Code, Decision, Outcome, Reason
from service.schema import Schema
from tests.stage import ACCEPTED, DOUBT, FAILED, RECIPE, SCHEMA, Play, labels, stage

ANN = {"start": 0, "end": 3, "label": "person", "text": "Ann"}
MISMATCH = Decision(outcome=Outcome.review, reasons=(Reason(code=Code.gold_mismatch, task="sentiment"),))


def upload(
    engine: Engine, records: Iterable[Mapping[str, Any]], name: str = "set", schema: Schema = SCHEMA
) -> dict[str, int]:
    with db.begin(engine) as session:
        return gold.upload(session, name, schema, records)


def agreement(engine: Engine, batch: str, name: str = "set") -> dict[str, Any]:
    with db.begin(engine) as session:
        found = gold.agreement(session, batch, name)
    return json.loads(json.dumps(found, allow_nan=False))  # type: ignore[no-any-return]


def measured(engine: Engine) -> dict[tuple[str, str], tuple[int, int]]:
    with db.read(engine) as session:
        return {(x.task, x.label): (x.agreed, x.uses) for x in session.exec(select(Measurement))}


def test_an_upload_counts_what_is_new_what_is_replaced_and_what_stays(database: Engine) -> None:
    records: list[dict[str, Any]] = [
        {"id": "a", "text": "Ann", "sentiment": "neutral", "entities": [ANN], "source": "x", "meta": {"any": 1}},
        {"id": "b", "text": "Ben", "sentiment": "positive"},
        {"id": 3, "text": "Cem", "entities": []},
    ]
    assert upload(database, records) == {"added": 3, "replaced": 0, "unchanged": 0}
    again = [{**records[0], "source": "y"}, {**records[1], "sentiment": "negative"}, {**records[2], "text": "Cem!"}]
    assert upload(database, again) == {"added": 0, "replaced": 2, "unchanged": 1}
    with db.read(database) as session:
        (listed,) = gold.sets(session)
        assert (listed["name"], listed["size"], listed["tasks"]) == ("set", 3, {"entities": 2, "sentiment": 2})
        page = gold.items(session, "set", limit=2)
        assert page.rows == [
            {"id": "a", "text": "Ann", "sentiment": "neutral", "entities": [ANN]},
            {"id": "b", "text": "Ben", "sentiment": "negative"},
        ]
        assert gold.items(session, "set", after=page.after or 0).rows == [{"id": "3", "text": "Cem!", "entities": []}]
        stored = session.exec(select(GoldItem).where(GoldItem.ref == "3")).one()
        assert stored.text_sha256 == fingerprint("Cem!")
        assert from_row(stored.labels, stored.text, SCHEMA).mentions["entities"].spans == ()


def test_a_record_without_an_id_is_named_by_its_text(database: Engine) -> None:
    assert upload(database, [{"text": "Ann", "sentiment": "neutral"}])["added"] == 1
    assert upload(database, [{"text": "Ann", "sentiment": "positive"}])["replaced"] == 1


def test_a_record_that_stands_twice_counts_once_and_a_contradiction_is_refused(database: Engine) -> None:
    one = {"id": "a", "text": "Ann", "sentiment": "neutral"}
    assert upload(database, [one, one]) == {"added": 1, "replaced": 0, "unchanged": 1}
    many = [{"id": str(n), "text": "Ann", "sentiment": "neutral"} for n in range(600)]
    with pytest.raises(Invalid, match=r"record 601 \('7'\): id: expected an id that no other record"):
        upload(database, [*many, {**many[7], "sentiment": "positive"}])
    with db.read(database) as session:
        assert gold.sets(session)[0]["size"] == 1  # nothing of the refused upload was kept
    assert upload(database, many)["added"] == 600
    assert upload(database, iter(many))["unchanged"] == 600


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({"id": "a", "sentiment": "neutral"}, r"record 1 \('a'\): text: expected a text"),
        ({"id": "a", "text": "", "sentiment": "neutral"}, "text: expected a text that is not empty"),
        ({"id": "a", "text": "N\0L", "sentiment": "neutral"}, "without NUL"),
        ({"id": "a", "text": "\ud83d", "sentiment": "neutral"}, "lone surrogates"),
        ({"id": "a\0", "text": "Ann", "sentiment": "neutral"}, "id: expected 1 to 200"),
        ({"id": "a" * 201, "text": "Ann", "sentiment": "neutral"}, "id: expected 1 to 200"),
        ({"id": True, "text": "Ann", "sentiment": "neutral"}, "id: expected 1 to 200"),
        ({"id": "a", "text": "Ann", "sentimant": "neutral"}, "sentimant: expected a task of the schema shop"),
        ({"id": "a", "text": "Ann"}, r"record 1 \('a'\): expected a label for at least one of entities, sentiment"),
        ({"id": "a", "text": "Ann", "sentiment": "furious"}, r"record 1 \('a'\): sentiment: expected a label"),
        (
            {"id": "a", "text": "Ann", "entities": [{**ANN, "end": 4}]},
            r"record 1 \('a'\): entities\[0\]: expected code point",
        ),
        ({"id": "a", "text": "Ann", "entities": [{**ANN, "text": "Bob"}]}, r"record 1 \('a'\): entities\[0\].text"),
        (["Ann"], "record 1: expected an object"),
    ],
)
def test_a_wrong_record_is_refused_by_number_and_field(database: Engine, record: Any, names: str) -> None:
    with pytest.raises(Invalid, match=names):
        upload(database, [record])


@pytest.mark.parametrize("name", ["", "x" * 101, "\0"])
def test_a_set_needs_a_name_that_can_be_stored(database: Engine, name: str) -> None:
    with pytest.raises(Invalid, match="a gold set"):
        upload(database, [], name)


def test_two_uploads_of_one_set_at_once_do_not_fail_on_each_other(database: Engine) -> None:
    records = [{"id": str(n), "text": "Ann", "sentiment": "neutral"} for n in range(50)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: upload(database, records), range(8)))
    with db.read(database) as session:
        assert gold.sets(session)[0]["size"] == 50


def test_what_is_not_there_is_not_found(database: Engine) -> None:
    batch, _ = stage(database, [Play("Ann", labels("Ann", "neutral"))])
    with db.read(database) as session:
        assert gold.sets(session) == []
        with pytest.raises(NotFound, match="no gold set 'none'"):
            gold.items(session, "none")
        with pytest.raises(NotFound, match="no gold set"):
            gold.agreement(session, batch, "none")
        with pytest.raises(NotFound, match="no batch"):
            gold.agreement(session, "none", "set")


def test_every_item_of_the_batch_is_accounted_for(database: Engine) -> None:
    upload(
        database,
        [
            {"id": "a", "text": "one", "sentiment": "neutral"},
            {"id": "b", "text": "two", "sentiment": "neutral"},
            {"id": "c", "text": "three", "sentiment": "neutral"},
            {"id": "d1", "text": "twice", "sentiment": "neutral"},
            {"id": "d2", "text": "twice", "sentiment": "positive"},
            {"id": "e", "text": "four", "sentiment": "neutral"},
        ],
    )

    def said(text: str, ref: str) -> Play:
        return Play(text, labels(text, "neutral"), DOUBT, ref)

    batch, items = stage(
        database,
        [
            said("one", "a"),  # by id
            said("two", "x"),  # by text
            said("one", "b"),  # the id stands for another text, and the text is known: the text decides
            said("other", "c"),  # the id stands for another text
            said("twice", "d2"),  # the text has two answers, and the id says which
            said("twice", "y"),  # the text has two answers
            said("nowhere", "z"),
            Play("four", None, FAILED, "e"),
            said("four", "queued"),
            said("four", "cancelled"),
        ],
    )
    with db.begin(database) as session:
        for item, state in ((items[8], State.queued), (items[9], State.cancelled)):
            row = session.get(Item, item)
            assert row is not None
            row.state = state
        for left in items[8:]:
            clear(session, left)
    found = agreement(database, batch)
    assert found["coverage"] == {
        "items": 10,
        "matched": 7,
        "by_id": 3,
        "by_text": 4,
        "compared": 4,
        "failed": 1,
        "waiting": 1,
        "cancelled": 1,
        "unmatched": 1,
        "conflict": 1,
        "ambiguous": 1,
        "gold_size": 6,
        "gold_used": 3,
    }
    assert found["conflicts"] == [{"item": items[3], "id": "c"}]
    assert found["tasks"]["sentiment"]["n"] == 4
    assert found["recipes"] == [RECIPE]


def clear(session: Session, item: int) -> None:
    """As before any worker touched it."""
    session.execute(delete(Annotation).where(col(Annotation.item_id) == item))
    session.execute(delete(ItemDecision).where(col(ItemDecision.item_id) == item))


GOLD: list[dict[str, Any]] = [
    {
        "id": "0",
        "text": "Ann met Ben",
        "sentiment": "neutral",
        "entities": [ANN, {"start": 8, "end": 11, "label": "person"}],
    },
    {"id": "1", "text": "Ann again", "sentiment": "negative", "entities": [ANN]},
    {"id": "2", "text": "Ghent", "sentiment": "positive"},
    {"id": "3", "text": "nothing", "sentiment": "negative", "entities": []},
]
SAID = [
    Play(
        "Ann met Ben", labels("Ann met Ben", "neutral", [(0, 3, "person")], 0.9, complete=0.7), ACCEPTED
    ),  # one missed
    Play("Ann again", labels("Ann again", "neutral", [(0, 9, "person")], 0.8), MISMATCH),  # wrong, and too long
    Play("Ghent", labels("Ghent", "positive", [(0, 5, "place")], 0.6), DOUBT),  # entities were not labelled
    Play("nothing", labels("nothing", "positive", [], 0.3), DOUBT),
]


def test_agreement_is_counted_for_each_task_that_both_label(database: Engine) -> None:
    upload(database, GOLD)
    batch, _ = stage(database, SAID)
    found = agreement(database, batch)
    sentiment, entities = found["tasks"]["sentiment"], found["tasks"]["entities"]
    assert (sentiment["kind"], sentiment["n"], sentiment["agreed"], sentiment["exact"]["value"]) == (
        "choice",
        4,
        2,
        0.5,
    )
    assert sentiment["kappa"] == pytest.approx((1 / 2 - 1 / 4) / (1 - 1 / 4))  # by chance: (1*2 + 2*0 + 1*2) / 16
    assert (entities["kind"], entities["n"], entities["gold"], entities["said"], entities["agreed"]) == (
        "spans",
        3,
        3,
        2,
        1,
    )
    assert (entities["missed"], entities["wrong_boundary"], entities["spurious"]) == (1, 1, 0)
    assert [(x["id"], x["task"], x["confidence"]) for x in found["disagreements"]] == [
        ("1", "entities", 0.9),  # one is missing, and the model was this sure that none is
        ("1", "sentiment", 0.8),
        ("0", "entities", 0.7),
        ("3", "sentiment", 0.3),
    ]
    # Gold itself speaks against the second: without gold it would have been accepted, wrongly.
    assert (found["routing"]["accepted"], found["routing"]["wrongly_accepted"]) == (2, 2)
    assert found["routing"]["needlessly_reviewed"] == 1


def test_the_model_is_measured_and_not_the_person_after_it(database: Engine) -> None:
    upload(database, GOLD)
    batch, _ = stage(database, SAID)
    before = agreement(database, batch)
    with db.begin(database) as session:
        while task := review.next_item(session, "ann", lease_seconds=60):
            review.resolve(session, task.item, task.fence, "ann", {"sentiment": "negative", "entities": []})
    assert agreement(database, batch) == before


def test_labels_that_the_schema_lacks_are_named(database: Engine) -> None:
    wider = Schema.model_validate(
        {"name": "wide", "tasks": [{"name": "sentiment", "kind": "choice", "labels": ["neutral", "mixed"]}]}
    )
    upload(database, [{"id": "0", "text": "Ann", "sentiment": "mixed"}], schema=wider)
    batch, _ = stage(database, [Play("Ann", labels("Ann", "neutral"))])
    assert agreement(database, batch)["tasks"]["sentiment"]["outside_schema"] == ["mixed"]


def test_nothing_in_common_is_said_without_numbers(database: Engine) -> None:
    upload(database, [{"id": "0", "text": "elsewhere", "sentiment": "neutral"}])
    batch, _ = stage(database, [Play("Ann", labels("Ann", "neutral"), ref="x")])
    found = agreement(database, batch)
    assert (found["tasks"], found["disagreements"], found["recipes"]) == ({}, [], [])
    assert found["routing"]["share_accepted"] is None


def test_what_a_recipe_says_is_counted_by_label_over_all_batches_and_once_a_text(database: Engine) -> None:
    upload(database, GOLD)
    first, _ = stage(database, SAID[:2])
    agreement(database, first)
    assert measured(database) == {
        ("sentiment", "neutral"): (1, 2),
        ("entities", "person"): (1, 2),
    }
    second, _ = stage(database, [SAID[2], SAID[1]])
    again = agreement(database, second)
    assert again["coverage"]["compared"] == 2
    expected = {
        ("sentiment", "neutral"): (1, 2),
        ("sentiment", "positive"): (1, 1),
        ("entities", "person"): (1, 2),
    }
    assert measured(database) == expected
    agreement(database, first)
    assert measured(database) == expected  # whichever batch is asked about
    other, _ = stage(database, SAID, recipe="s" * 64)
    agreement(database, other)
    with db.read(database) as session:
        assert set(session.exec(select(Measurement.recipe))) == {RECIPE, "s" * 64}
        assert len(session.exec(select(Recipe)).all()) == 2
        assert len(session.exec(select(Batch)).all()) == 3


def test_evaluations_at_once_leave_one_count(database: Engine) -> None:
    upload(database, GOLD)
    batch, _ = stage(database, SAID)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: agreement(database, batch), range(8)))
    assert all(one == found[0] for one in found)
    assert measured(database)["sentiment", "positive"] == (1, 2)

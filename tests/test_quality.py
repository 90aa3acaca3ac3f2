"""What leads are told of labels and reviewers is what the rows say, on both databases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine
from sqlmodel import select

from service import db, gold, quality
from service.errors import NotFound
from service.labels import Alternative, Choice, Labels, Mentions, plain
from service.models import Batch, Item, ItemDecision, Review, State
from service.route import Code, Decision, Outcome, Reason
from service.scope import Scope
from tests.serving import post_batch
from tests.stage import ACCEPTED, DOUBT, SCHEMA, Play, labels, stage

MONDAY = datetime(2026, 11, 16, 9, tzinfo=UTC)  # of 2026-W47
AUDIT = Decision(outcome=Outcome.audit, reasons=(Reason(code=Code.audit, value=0.01, threshold=0.02),), inclusion=0.02)
TEXT = "Ann is in Ghent"
SAID = labels(TEXT, "neutral", [(0, 3, "person")])
AS_PROPOSED = plain(SAID)
NEGATIVE = AS_PROPOSED | {"sentiment": "negative"}
NO_MENTION = AS_PROPOSED | {"entities": []}


def put(
    engine: Engine, decisions: list[Decision], said: Labels | None = SAID, hidden: float = 0.0, text: str = TEXT
) -> tuple[str, list[int]]:
    """A batch of one text over and over, decided on Monday."""
    batch, items = stage(engine, [Play(text, said, decision) for decision in decisions])
    with db.begin(engine) as session:
        found = session.get_one(Batch, batch)
        found.policy = {"proposal_hidden": hidden}
        for decision in session.exec(select(ItemDecision)):
            decision.created_at = MONDAY
    return batch, items


def answer(
    engine: Engine, item: int, reviewer: str, given: Mapping[str, Any] = AS_PROPOSED, stands: bool = True, **more: Any
) -> None:
    """A person's answer, given on Monday unless told otherwise."""
    fields: dict[str, Any] = {"created_at": MONDAY, "changed": given != AS_PROPOSED} | more
    with db.begin(engine) as session:
        session.add(Review(item_id=item, reviewer=reviewer, labels=dict(given), stands=stands, **fields))
        if stands:
            session.get_one(Item, item).state = State.resolved


def told(engine: Engine, section: str, scope: Scope | None = None) -> Any:
    with db.read(engine) as session:
        found = quality.document(session, scope or Scope(), [section])
    assert json.loads(json.dumps(found)) == found  # plain data, finite
    return found[section]


def value(estimate: Mapping[str, float] | None) -> float | None:
    return estimate["value"] if estimate else None


def test_coverage_counts_every_item_once_and_states_the_hours_saved(database: Engine) -> None:
    _, items = put(database, [ACCEPTED] * 6 + [AUDIT] * 2 + [DOUBT] * 4)
    answer(database, items[6], "ann", seconds=7.0)
    for item, seconds in zip(items[8:11], (20.0, 60.0, 30.0), strict=True):
        answer(database, item, "ann", seconds=seconds)
    answer(database, items[11], "ann", stands=False, shown=False, seconds=500.0)  # hidden: not of a shown review
    found = told(database, "coverage")
    names = ("labelled", "accepted", "audited", "for_people", "settled", "waiting", "disputed")
    assert [found[name] for name in names] == [12, 6, 2, 4, 4, 2, 0]
    assert value(found["share_accepted"]) == 8 / 12
    assert found["seconds_shown"] == 30.0
    assert found["hours_saved"] == 6 * 30 / 3600
    assert found["hours_audited"] is None  # a single reading of the audit tells nothing
    assert "median seconds" in found["formulas"]["hours_saved"]


def test_the_audit_gives_the_fair_figure_once_there_are_twenty_readings(database: Engine) -> None:
    _, items = put(database, [AUDIT] * 20 + [ACCEPTED] * 10)
    for number, item in enumerate(items[:20], start=1):
        answer(database, item, "ann", seconds=float(number))
    found = told(database, "coverage")
    assert (found["seconds_audited"], found["hours_audited"]) == (10.5, 10 * 10.5 / 3600)
    assert found["seconds_shown"] is None and found["hours_saved"] is None


def test_the_speed_of_each_reviewer_leaves_out_bulk_and_what_was_taken_back(database: Engine) -> None:
    _, items = put(database, [DOUBT] * 6)
    for item, seconds in zip(items[:4], (1.0, 2.0, 4.0, 9.0), strict=True):
        answer(database, item, "ann", NEGATIVE if seconds > 3 else AS_PROPOSED, seconds=seconds)
    answer(database, items[4], "ann", bulk="b1")
    answer(database, items[5], "ann", stands=False, withdrawn_at=MONDAY, seconds=100.0)
    answer(database, items[5], "ben", {}, stands=False, kind="flag", note="what is it?")
    (ann, ben) = told(database, "speed")["rows"]
    assert (ann["reviewer"], ann["answers"], ann["bulk"], ann["withdrawn"], ann["flagged"]) == ("ann", 5, 1, 1, 0)
    assert (ann["seconds"], ann["timed"], value(ann["changed"])) == (3.0, 4, 0.5)
    assert (ben["reviewer"], ben["answers"], ben["flagged"], ben["seconds"], ben["changed"]) == (
        "ben",
        0,
        1,
        None,
        None,
    )


def test_weeks_run_from_monday_in_utc_and_tell_agreement_changes_and_seconds(database: Engine) -> None:
    _, items = put(database, [DOUBT] * 4)
    sunday = MONDAY.replace(hour=0) - timedelta(seconds=1)
    answer(database, items[0], "ann", seconds=5.0, created_at=sunday)
    answer(database, items[1], "ann", NEGATIVE, seconds=8.0)
    answer(database, items[1], "ben", NEGATIVE, stands=False, seconds=6.0, created_at=MONDAY + timedelta(days=6))
    answer(database, items[2], "ben", stands=False, created_at=sunday)
    answer(database, items[2], "ann", NEGATIVE, stands=False, seconds=7.0)
    before, week = told(database, "weeks")
    assert [before["week"], week["week"], week["from"]] == ["2026-W46", "2026-W47", "2026-11-16"]
    assert (before["answers"], before["reviewers"], before["doubles"], before["agreed"]) == (2, 2, 0, None)
    assert (week["answers"], week["seconds"], value(week["changed"])) == (3, 7.0, 1.0)
    assert (week["doubles"], value(week["agreed"])) == (2, 0.5)
    assert quality.iso_week("2027-01-01") == "2026-W53"


def test_labels_by_week_are_those_of_the_model_and_those_that_stand(database: Engine) -> None:
    _, items = put(database, [DOUBT] * 3)
    answer(database, items[0], "ann", NEGATIVE)
    answer(database, items[1], "ann", NO_MENTION)
    answer(database, items[1], "ben", NEGATIVE, stands=False)
    sentiment, entities = told(database, "labels")
    assert (sentiment["task"], sentiment["schema"]) == ("sentiment", "shop")
    assert sentiment["model"] == [{"week": "2026-W47", "n": 3, "labels": {"neutral": 3}}]
    assert sentiment["people"] == [{"week": "2026-W47", "n": 2, "labels": {"negative": 1, "neutral": 1}}]
    assert entities["model"] == [{"week": "2026-W47", "n": 3, "labels": {"person": 3}}]
    assert entities["people"] == [{"week": "2026-W47", "n": 1, "labels": {"person": 1}}]


def test_agreement_is_between_two_readers_and_with_what_stands(database: Engine) -> None:
    _, items = put(database, [DOUBT] * 5)
    for item in items[:3]:  # they agree
        answer(database, item, "ann", NEGATIVE)
        answer(database, item, "ben", NEGATIVE, stands=False)
    answer(database, items[3], "ann", NO_MENTION, stands=False)  # both tasks differ, and a lead sides with ben
    answer(database, items[3], "ben", NEGATIVE, stands=False)
    answer(database, items[3], "lea", NEGATIVE, kind="adjudication")
    answer(database, items[4], "ann")  # read once: tells nothing of agreement
    found = told(database, "agreement")
    assert (found["items"], found["read"]) == (4, 4)
    sentiment, entities = found["tasks"]
    assert (sentiment["n"], value(sentiment["people"])) == (4, 0.75)
    assert value(entities["f1"]) == pytest.approx(6 / 7)  # three mentions twice, one once
    (pair,) = sentiment["pairs"]
    assert (pair["first"], pair["second"], pair["n"]) == ("ann", "ben", 4)
    ann, ben = found["reviewers"]
    assert [(one["task"], one["n"], value(one["score"])) for one in ann["consensus"]] == [
        ("entities", 4, pytest.approx(6 / 7)),
        ("sentiment", 4, 0.75),
    ]
    assert [value(one["score"]) for one in ben["consensus"]] == [1.0, 1.0]
    assert "lea" not in (ann["reviewer"], ben["reviewer"])


def test_gold_counts_where_it_was_there_before_the_answer(database: Engine) -> None:
    _, items = put(database, [DOUBT] * 2)
    _, (other,) = put(database, [DOUBT], said=labels("Bo", "neutral"), text="Bo")
    with db.begin(database) as session:
        gold.upload(session, "mails", SCHEMA, [{"text": TEXT, "sentiment": "negative"}])
    later = datetime.now(UTC) + timedelta(hours=1)
    answer(database, items[0], "ann", NEGATIVE, created_at=later)
    answer(database, items[1], "ann", created_at=MONDAY - timedelta(days=9))  # before the gold: it may be its source
    answer(database, other, "ann", {"sentiment": "neutral", "entities": []}, created_at=later)
    (ann,) = told(database, "agreement")["reviewers"]
    assert [(one["task"], one["n"], value(one["score"])) for one in ann["gold"]] == [("sentiment", 1, 1.0)]


def test_assistance_compares_what_the_lot_hid_with_the_rest(database: Engine) -> None:
    _, items = put(database, [DOUBT] * 40, hidden=0.5)
    _, (other,) = put(database, [DOUBT])  # a batch that hides nothing
    for number, item in enumerate(items):
        shown = number % 2 == 0
        given = AS_PROPOSED if shown or number % 4 == 1 else NEGATIVE
        answer(database, item, "ann", given, shown=shown, seconds=10.0 if shown else 20.0)
    answer(database, other, "ann", seconds=900.0)
    found = told(database, "assistance")
    assert (found["looked_at"], found["shown"]["n"], found["hidden"]["n"]) == (40, 20, 20)
    assert (value(found["ratio"]), value(found["saved"])) == (0.5, 0.5)
    assert {shift["task"]: value(shift["difference"]) for shift in found["shifts"]} == {
        None: 0.5,
        "entities": 0.0,
        "sentiment": 0.5,
    }


def sure(label: str, confidence: float) -> Labels:
    others = tuple(
        Alternative(label=other, confidence=(1 - confidence) / 2)
        for other in ("negative", "neutral", "positive")
        if other != label
    )
    choice = Choice(label=label, confidence=confidence, alternatives=others)
    return Labels(choices={"sentiment": choice}, mentions={"entities": Mentions(complete=0.9)})


def test_a_label_against_a_sure_model_is_suspect_and_the_other_reader_says_whose(database: Engine) -> None:
    negative, positive = ({"sentiment": name, "entities": []} for name in ("negative", "positive"))
    _, usual = put(database, [DOUBT] * 12, said=sure("negative", 0.8))
    for item in usual[:6]:
        answer(database, item, "ann", negative)
    for item in usual[6:]:  # so that "positive" has a threshold too
        answer(database, item, "ann", positive)
    _, (alone, with_model, with_person) = put(database, [DOUBT] * 3, said=sure("negative", 0.99))
    for item in (alone, with_model, with_person):
        answer(database, item, "ann", positive)
    answer(database, with_model, "ben", negative, stands=False)
    answer(database, with_person, "ben", positive, stands=False)
    found = told(database, "suspects")
    assert (found["looked_at"], found["found"]) == (15, 9)
    surest = {row["item"]: (row["given"], row["likely"], row["blame"], row["others"]) for row in found["rows"][:3]}
    assert surest == {
        alone: ("positive", "negative", "open", []),
        with_model: ("positive", "negative", "reviewer", ["ben"]),
        with_person: ("positive", "negative", "model", ["ben"]),
    }
    assert found["rows"][0]["text"] == TEXT and found["rows"][0]["probability"] == 0.99


def test_the_audit_stream_is_told_of_the_recipes_in_use(database: Engine) -> None:
    _, items = put(database, [AUDIT] * 3)
    for item in items:
        answer(database, item, "ann", NEGATIVE)
    (watched,) = told(database, "audits")
    whole = watched["errors"][0]
    assert (whole["task"], whole["n"], whole["wrong"], watched["audits"]["waiting"]) == (None, 3, 3, 0)


def test_a_scope_narrows_to_a_batch_and_a_stretch_of_time(database: Engine) -> None:
    first, (one,) = put(database, [DOUBT])
    _, (two,) = put(database, [DOUBT])
    answer(database, one, "ann")
    answer(database, two, "ben", created_at=MONDAY + timedelta(days=7))

    def people(scope: Scope) -> list[str]:
        return [row["reviewer"] for row in told(database, "speed", scope)["rows"]]

    assert people(Scope(batch=first)) == ["ann"]
    assert people(Scope(since=MONDAY + timedelta(days=1))) == ["ben"]
    assert people(Scope(until=MONDAY + timedelta(days=1))) == ["ann"]
    assert told(database, "coverage", Scope(batch=first))["labelled"] == 1
    with pytest.raises(NotFound):
        told(database, "speed", Scope(batch="nothing"))


def test_an_empty_database_has_an_empty_document(database: Engine) -> None:
    with db.read(database) as session:
        found = quality.document(session, Scope())
    assert found["coverage"]["labelled"] == 0 and found["coverage"]["share_accepted"] is None
    assert (found["weeks"], found["labels"], found["audits"], found["suspects"]["rows"]) == ([], [], [], [])
    assert found["assistance"]["saved"] is None and found["assistance"]["notes"]["ratio"]


def test_days_are_whole_days_in_utc() -> None:
    day = date(2026, 11, 16)
    assert quality.moment(day) == datetime(2026, 11, 16, tzinfo=UTC)
    assert quality.moment(day, last=True) == datetime(2026, 11, 17, tzinfo=UTC)
    assert quality.moment(MONDAY, last=True) == MONDAY
    assert quality.moment(None) is None


def test_the_document_is_served_as_json(client: TestClient) -> None:
    batch = post_batch(client, "a Samsung")
    found = client.get("/v1/quality", params={"batch": batch, "since": "2026-01-01", "until": ""})
    assert found.status_code == 422  # a day, or nothing at all
    found = client.get("/v1/quality", params={"batch": batch, "since": "2026-01-01"})
    assert found.status_code == 200 and found.json().keys() == {
        *quality.SECTIONS,
        "made_at",
        "batch",
        "since",
        "until",
    }
    assert client.get("/v1/quality", params={"batch": "none"}).status_code == 404

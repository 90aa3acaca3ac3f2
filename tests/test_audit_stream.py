"""Watching accepted labels: only audited items tell their error, in the order in which they were accepted."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, update
from sqlmodel import col, select

from service import audit, db, review, standards
from service.api.audit import SHOWN, AuditReport
from service.errors import NotFound
from service.metrics import Metrics
from service.models import Item, ItemDecision, Recipe, Review, now
from service.route import Code, Decision, Outcome, Reason
from service.schema import Schema
from tests.serving import error, finished, post_batch, serving
from tests.stage import ACCEPTED, DOUBT, FAILED, RECIPE, SCHEMA, Play, labels, stage

TEXT = "Ann is in Ghent"
SPANS = [(0, 3, "person")]
RIGHT: dict[str, Any] = {"sentiment": "neutral", "entities": [{"start": 0, "end": 3, "label": "person"}]}
WRONG: dict[str, Any] = {"sentiment": "negative", "entities": []}


def audited(inclusion: float = 0.02) -> Decision:
    reason = Reason(code=Code.audit, value=inclusion / 2, threshold=inclusion)
    return Decision(outcome=Outcome.audit, reasons=(reason,), inclusion=inclusion)


def play(decision: Decision, sentiment: str = "neutral", confidence: float = 0.9) -> Play:
    return Play(TEXT, labels(TEXT, sentiment, SPANS, confidence), decision)


def audits(database: Engine, count: int, inclusion: float = 0.02) -> list[int]:
    return stage(database, [play(audited(inclusion))] * count)[1]


def settle(database: Engine, items: Sequence[int], wrong: Collection[int] = (), answer: Any = WRONG) -> None:
    """People settle these items: those that are wrong with another answer, the others as proposed."""
    with db.begin(database) as session:
        for number in items:
            item = session.get_one(Item, number)
            item.lease_owner, item.lease_until = "ann", now()
            review.resolve(session, number, item.fence, "ann", answer if number in wrong else RIGHT)


def watch(database: Engine, promised: float | None = None, recipe: str = RECIPE) -> dict[str, Any]:
    with db.read(database) as session:
        found = audit.watch(session, recipe, promised)
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    told = found["audits"]
    assert told["drawn"] == told["waiting"] + told["held_back"] + told["left_out"] + told["counted"]
    AuditReport.model_validate({"recipes": [found]})
    return found


def by_task(entries: Sequence[dict[str, Any]]) -> dict[str | None, dict[str, Any]]:
    return {entry["task"]: entry for entry in entries}


# --- the error of accepted labels


def test_routed_items_never_enter_the_error(database: Engine) -> None:
    items = audits(database, 30)
    settle(database, items, wrong=items[:3])
    alone = watch(database, 0.03)
    _, routed = stage(database, [play(DOUBT)] * 40)
    settle(database, routed, wrong=routed)
    stage(database, [play(ACCEPTED)] * 5 + [Play("?", None, FAILED), play(DOUBT)])
    among = watch(database, 0.03)
    for part in ("audits", "errors", "drift", "alarms"):
        assert among[part] == alone[part]
    assert among["windows"]["labelled"] == alone["windows"]["labelled"] + 46  # all but the one that failed


def test_the_error_is_told_of_whole_items_and_of_each_task(database: Engine) -> None:
    items = audits(database, 20)
    settle(database, items[:1], wrong=items[:1], answer=WRONG | {"entities": RIGHT["entities"]})
    settle(database, items[1:2], wrong=items[1:2], answer=RIGHT | {"entities": []})
    settle(
        database, items[2:3], wrong=items[2:3], answer=RIGHT | {"entities": [{"start": 0, "end": 3, "label": "place"}]}
    )
    settle(database, items[3:])
    found = by_task(watch(database)["errors"])
    assert {task: one["wrong"] for task, one in found.items()} == {None: 3, "sentiment": 1, "entities": 2}
    assert found[None]["error"]["value"] == pytest.approx(3 / 20)
    assert {one["n"] for one in found.values()} == {20}
    assert found[None]["path"][-1] == {"audited": 20} | found[None]["error"]


def test_an_audit_that_waits_holds_back_those_accepted_after_it(database: Engine) -> None:
    items = audits(database, 10)
    settle(database, [*items[:4], *items[5:]], wrong=items[5:])
    held = watch(database)
    assert held["audits"] | {"counted": 4, "held_back": 5, "waiting": 1} == held["audits"]
    assert held["audits"]["oldest_waiting"]["item"] == items[4]
    assert held["errors"][0]["wrong"] == 0
    settle(database, items[4:5])
    free = watch(database)
    assert free["audits"] | {"counted": 10, "held_back": 0, "oldest_waiting": None} == free["audits"]
    assert free["errors"][0]["wrong"] == 5


def test_the_order_is_that_of_acceptance_and_not_that_of_the_verdicts(database: Engine) -> None:
    items = audits(database, 40)
    shuffled = random.Random(3).sample(items, len(items))
    for part in (shuffled[:11], shuffled[11:]):
        settle(database, part, wrong=items[:5])
    path = watch(database)["errors"][0]["path"]
    assert [(moment["audited"], moment["value"]) for moment in path[:6]] == [(k, min(1, 5 / k)) for k in range(1, 7)]


def test_people_who_change_nothing_give_no_error_and_an_honest_bound(database: Engine) -> None:
    settle(database, audits(database, 60))
    found = watch(database, 0.03)
    for one in found["errors"]:
        assert (one["wrong"], one["error"]["value"], one["error"]["low"]) == (0, 0, 0)
        assert 3 / 60 < one["error"]["high"] < 0.2  # 3 / n would do for a single look
    assert not any(one["raised"] for one in found["drift"])
    assert found["alarms"] == []


def test_items_weigh_by_the_chance_with_which_they_were_drawn(database: Engine) -> None:
    rare, often = audits(database, 10, 0.1), audits(database, 10, 0.2)
    settle(database, [*rare, *often], wrong=rare[:2])
    found = watch(database)["errors"][0]
    assert found["error"]["value"] == pytest.approx(2 / (10 + 10 / 2))
    assert found["effective"] == pytest.approx(15)


def test_the_answer_that_stands_is_the_verdict(database: Engine) -> None:
    items = audits(database, 6)
    settle(database, items, wrong=items[:2])
    with db.begin(database) as session:
        overruled = update(Review).where(col(Review.item_id).in_([items[0], items[5]])).values(stands=False)
        session.exec(overruled.execution_options(synchronize_session=False))
        session.add(Review(item_id=items[0], reviewer="lead", changed=False, labels=RIGHT))
        mentions = {"sentiment": "neutral", "entities": []}
        session.add(Review(item_id=items[5], reviewer="lead", changed=True, labels=mentions))
    found = by_task(watch(database)["errors"])
    assert {task: one["wrong"] for task, one in found.items()} == {None: 2, "sentiment": 1, "entities": 2}


def test_before_any_verdict_the_error_is_unknown_and_not_zero(database: Engine) -> None:
    audits(database, 3)
    found = watch(database, 0.03)
    assert found["audits"]["waiting"] == 3
    assert all(one["error"] is None and one["notes"] for one in found["errors"])
    assert all(one["p"] == 1 and not one["raised"] for one in found["drift"])


def test_a_long_stream_begins_anew_in_steps(database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SPAN", 10)
    items = audits(database, 35)
    settle(database, items[:19], wrong=items[:4])
    assert watch(database)["audits"]["counted"] == 19
    settle(database, items[19:])
    found = watch(database)
    assert (found["audits"]["left_out"], found["audits"]["counted"], found["errors"][0]["wrong"]) == (20, 15, 0)


# --- drift in error


def test_an_error_that_rises_is_raised_with_where_it_began(database: Engine) -> None:
    items = audits(database, 220)
    settle(database, items, wrong=[*items[40:42], *items[160::3]])
    found = watch(database, 0.03)
    drifts = by_task(found["drift"])
    for task in (None, "sentiment", "entities"):
        assert drifts[task]["raised"]
        assert drifts[task]["p"] <= 0.05
        assert 155 < drifts[task]["since"] <= drifts[task]["at"] <= 185
        assert drifts[task]["error_since"] == pytest.approx(1 / 3, abs=0.05)
        assert found["audits"]["since"] < drifts[task]["since_accepted"] <= drifts[task]["at_accepted"]
    assert [(one["what"], one["task"]) for one in found["alarms"]] == [
        ("error", None),
        ("error", "sentiment"),
        ("error", "entities"),
    ]
    assert "promised 0.03" in found["alarms"][0]["says"]


def test_an_error_within_the_promise_raises_nothing(database: Engine) -> None:
    items = audits(database, 220)
    settle(database, items, wrong=items[20::50])
    found = watch(database, 0.03)
    assert not any(one["raised"] or one["at"] or one["since"] for one in found["drift"])
    assert watch(database)["drift"] == []  # nothing was promised


# --- drift in what the model says


def test_only_what_the_standard_in_force_decided_is_held_to_its_promise(database: Engine) -> None:
    before = audits(database, 60)
    settle(database, before, wrong=before)
    held = {"lines": [{"task": None, "threshold": 0.9, "error": 0.03, "level": 0.95}], "calibrators": {}}
    with db.begin(database) as session:
        version = standards.put(session, RECIPE, {}, {"standard": held}).id
    after = stage(database, [play(audited().model_copy(update={"standard": version}))] * 40)[1]
    settle(database, after)
    found = watch(database)
    assert (found["standard"], found["audits"]["counted"]) == (version, 40)
    assert [(one["task"], one["promised"], one["raised"]) for one in found["drift"]] == [(None, 0.03, False)]
    assert found["errors"][0]["error"]["value"] == 0.0


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "REFERENCE", 120)
    monkeypatch.setattr(audit, "RECENT", 60)


def said(sentiments: Sequence[str], confidence: float = 0.9) -> list[Play]:
    """Accepted, routed and audited in turns: all are labelled items."""
    decisions = (ACCEPTED, DOUBT, audited())
    return [play(decisions[i % 3], sentiment, confidence - i % 10 / 100) for i, sentiment in enumerate(sentiments)]


MIXED = ["negative", "neutral", "neutral", "positive"]


@pytest.mark.usefixtures("small_windows")
def test_labels_that_come_otherwise_are_raised_with_their_shares(database: Engine) -> None:
    stage(database, said(MIXED * 30) + said(["negative", "negative", "negative", "positive"] * 15))
    found = watch(database)
    (raised,) = [one for one in found["shifts"] if one["raised"]]
    assert (raised["task"], raised["what"], raised["reference"], raised["recent"]) == ("sentiment", "labels", 120, 60)
    assert {one["name"]: (one["reference"], one["recent"]) for one in raised["moved"]} == {
        "negative": (0.25, 0.75),
        "neutral": (0.5, 0),
        "positive": (0.25, 0.25),
    }
    (alarm,) = found["alarms"]
    assert (alarm["what"], alarm["task"]) == ("labels", "sentiment")
    assert "negative: 0.250 before, 0.750 now" in alarm["says"]


@pytest.mark.usefixtures("small_windows")
def test_confidence_that_sinks_is_raised_for_every_task_that_it_sinks_in(database: Engine) -> None:
    stage(database, said(MIXED * 30) + said(MIXED * 15, confidence=0.7))
    found = watch(database)
    raised = {(one["task"], one["what"]) for one in found["shifts"] if one["raised"]}
    assert raised == {("sentiment", "confidence"), ("entities", "confidence")}


@pytest.mark.usefixtures("small_windows")
def test_the_same_stream_raises_nothing(database: Engine) -> None:
    stage(database, said(MIXED * 60))
    found = watch(database, 0.03)
    assert (found["windows"]["look"], len(found["shifts"]), found["alarms"]) == (2, 4, [])


@pytest.mark.usefixtures("small_windows")
def test_asking_again_within_a_block_is_no_new_look(database: Engine) -> None:
    stage(database, said(MIXED * 44))
    assert watch(database)["windows"]["note"] == "a comparison needs 180 labelled items; there are 176"
    stage(database, said(MIXED))
    first = watch(database)
    assert first["windows"]["look"] == 1
    stage(database, said(["negative"] * 59))
    again = watch(database)
    assert again["windows"] | {"labelled": 180} == first["windows"]
    assert again["shifts"] == first["shifts"]
    stage(database, said(["negative"]))
    assert watch(database)["windows"]["look"] == 2
    assert [one["task"] for one in watch(database)["alarms"]] == ["sentiment"]


# --- alarms that stand


def standing(database: Engine) -> dict[str, int]:
    """As counted, and as a scrape tells them."""
    with db.begin(database) as session:
        found = audit.alarms(session, RECIPE)
        session.get_one(Recipe, RECIPE).body = {"schema": {"name": SCHEMA.name}}
    page = Metrics(lambda: database, lambda: None).page().decode()
    told = [line for line in page.splitlines() if line.startswith("concord_audit_alarms{")]
    labels = f'recipe="{RECIPE}",schema="{SCHEMA.name}"'
    assert sorted(told) == sorted(f'concord_audit_alarms{{{labels},what="{kind}"}} {n}.0' for kind, n in found.items())
    return found


@pytest.mark.usefixtures("small_windows")
def test_alarms_are_counted_by_kind_as_the_audit_raises_them(database: Engine) -> None:
    stage(database, said(MIXED * 44))
    assert standing(database) == {}  # nothing can be tested yet, which is not the same as nothing being raised
    stage(database, said(MIXED))
    assert standing(database) == {"labels": 0, "confidence": 0}
    stage(database, said(["negative"] * 60, confidence=0.7))
    assert standing(database) == {"labels": 1, "confidence": 2}
    held = {"lines": [{"task": None, "threshold": 0.9, "error": 0.03, "level": 0.95}], "calibrators": {}}
    with db.begin(database) as session:
        version = standards.put(session, RECIPE, {}, {"standard": held}).id
    decided = stage(database, [play(audited().model_copy(update={"standard": version}))] * 30)[1]
    with db.begin(database) as session:
        waiting = select(ItemDecision.item_id).where(col(ItemDecision.outcome) == Outcome.audit)
        before = list(session.exec(waiting.where(col(ItemDecision.standard).is_(None))))
    settle(database, before)
    assert standing(database)["error"] == 0
    settle(database, decided, wrong=decided[10:])
    found = standing(database)
    assert found["error"] == 1
    alarms = Counter(one["what"] for one in watch(database)["alarms"])
    assert {kind: alarms[kind] for kind in found} == found


# --- recipes, names, big tables


def test_recipes_are_watched_apart_and_found_by_their_schema(database: Engine) -> None:
    mine, other, unused = "a" * 64, "b" * 64, "c" * 64
    with db.begin(database) as session:
        for recipe, name in ((mine, "shop"), (other, "shop"), (unused, "shop"), ("d" * 64, "another")):
            session.add(Recipe(sha256=recipe, body={"schema": {"name": name}}))
    _, bad = stage(database, [play(audited())] * 8, recipe=mine)
    _, good = stage(database, [play(audited())] * 9, recipe=other)
    settle(database, [*bad, *good], wrong=bad)
    assert watch(database, recipe=mine)["errors"][0]["error"]["value"] == 1
    assert watch(database, recipe=other)["errors"][0]["error"]["value"] == 0
    with db.read(database) as session:
        assert audit.recipes(session, "shop") == [other, mine]  # the one last in use first
        assert audit.recipes(session, "another") == []
        for recipe in (unused, "e" * 64, "'; DROP TABLE decision; --"):
            with pytest.raises(NotFound, match="no item was labelled by the recipe"):
                audit.watch(session, recipe)


@pytest.mark.usefixtures("small_windows")
def test_hostile_names_of_labels_are_only_names(database: Engine) -> None:
    names = ["<script>alert(1)</script>", "\u05e9\u05dc\u05d5\u05dd {}", "%s'; DROP TABLE item; --", "e\u0301😀"]
    schema = Schema.model_validate(
        {"name": "odd", "tasks": [{"name": "sentiment", "kind": "choice", "labels": [*names, "plain"]}]}
    )
    odd = labels(TEXT, "plain").model_copy(update={"mentions": {}})
    plays = [Play(TEXT, odd, audited())] * 120
    for number in range(60):
        choice = odd.choices["sentiment"].model_copy(update={"label": names[number % 4]})
        plays.append(Play(TEXT, odd.model_copy(update={"choices": {"sentiment": choice}}), audited()))
    _, items = stage(database, plays, schema)
    with db.begin(database) as session:
        for number in items[:5]:
            item = session.get_one(Item, number)
            item.lease_owner, item.lease_until = "<b>\u202eann</b>'--", now()
            review.resolve(session, number, item.fence, "<b>\u202eann</b>'--", {"sentiment": names[0]}, note="{}%s<i>")
    found = watch(database, 0.03)
    assert found["errors"][0]["wrong"] == 5
    assert {one["name"] for one in found["shifts"][0]["moved"]} == {*names, "plain"}
    assert "ann" not in json.dumps(found, ensure_ascii=False)


@pytest.mark.usefixtures("small_windows")
def test_no_question_reads_all_decisions(database: Engine) -> None:
    if database.dialect.name != "sqlite":
        pytest.skip("PostgreSQL plans by the size of its tables")
    items = stage(database, said(MIXED * 60))[1]
    settle(database, items[2:90:3], wrong=items[2:30:3])
    asked: list[tuple[str, Any]] = []
    event.listen(database, "before_cursor_execute", lambda _c, _k, sql, values, _x, _m: asked.append((sql, values)))
    with db.read(database) as session:
        audit.watch(session, RECIPE, 0.03)
    read = [one for one in asked if one[0].startswith("SELECT")]
    assert len(read) > 8
    with database.connect() as connection:
        for sql, values in read:
            plan = [str(row[3]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)]
            assert not [step for step in plan if step.startswith("SCAN")], (sql, plan)
            if "ORDER BY decision.created_at" in sql:
                assert not [step for step in plan if "TEMP B-TREE" in step], (sql, plan)


# --- over HTTP


def answered(client: TestClient, right: int, wrong: int) -> None:
    """People settle this many audits as proposed, then this many otherwise."""
    for number in range(right + wrong):
        task = client.post("/v1/reviews/next", json={"reason": "audit", "order": "oldest"}).json()
        answer = {"accept": True} if number < right else {"labels": {"sentiment": "positive", "entities": []}}
        settled = client.post(f"/v1/reviews/{task['item']}/resolve", json={"fence": task["fence"]} | answer)
        assert settled.status_code == 200, settled.text


def test_the_service_tells_the_error_of_what_it_accepted(fresh: TestClient) -> None:
    assert fresh.get("/v1/audit?schema=mood").json() == {"recipes": []}
    batch = post_batch(
        fresh, *(f"Samsung, says Zebulon {n}" for n in range(14)), "I doubt it", policy={"audit_share": 1}
    )
    assert finished(fresh, batch)["counts"]["audit"] == 14
    assert 'concord_audits{schema="mood",verdict="waiting"} 14.0' in fresh.get("/metrics").text
    answered(fresh, right=4, wrong=8)
    (found,) = fresh.get("/v1/audit?schema=mood&promised=0.03").json()["recipes"]
    assert (found["schema"], found["version"], found["promised"]) == ("mood", 1, 0.03)
    assert found["audits"] | {"drawn": 14, "waiting": 2, "counted": 12} == found["audits"]
    assert {one["task"]: one["wrong"] for one in found["errors"]} == {None: 8, "sentiment": 8, "entities": 8}
    assert all(one["raised"] and one["since"] == 5 for one in found["drift"])
    assert len(found["alarms"]) == 3
    assert fresh.get("/v1/audit", params={"recipe": found["recipe"], "promised": 0.03}).json() == {"recipes": [found]}
    assert "ebulon" not in json.dumps(found)


def test_metrics_carry_the_error_by_task_and_no_names(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.metrics.COUNT_SECONDS", 0)
    with serving(tmp_path) as client:
        finished(client, post_batch(client, *(f"Zebulon {n}" for n in range(4)), policy={"audit_share": 1}))
        assert "concord_audit_error{" not in client.get("/metrics").text  # unknown is not 0
        answered(client, right=3, wrong=1)
        page = client.get("/metrics").text
    for task in ("", "sentiment"):
        assert f'concord_audit_error{{schema="mood",task="{task}"}} 0.25' in page
    assert 'concord_audit_error{schema="mood",task="entities"} 0.0' in page
    assert 'concord_audit_error_high{schema="mood",task="sentiment"} 0.' in page
    assert 'concord_audit_error_low{schema="mood",task="sentiment"} 0.' in page
    assert 'concord_audits{schema="mood",verdict="counted"} 4.0' in page
    assert "ebulon" not in page


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 422, "invalid"),
        ("?recipe=x&schema=mood", 422, "invalid"),
        ("?recipe=x", 404, "not_found"),
        ("?recipe=%3Cb%3E%E2%80%AE%F0%9F%98%80'--", 404, "not_found"),
        ("?recipe=a%00b", 422, "invalid"),
        ("?recipe=" + "r" * 65, 422, "invalid"),
        ("?schema=none", 404, "not_found"),
        ("?schema=mood&promised=0", 422, "invalid"),
        ("?schema=mood&promised=1", 422, "invalid"),
        ("?schema=mood&promised=nan", 422, "invalid"),
    ],
)
def test_a_question_that_is_wrong_is_told_so(client: TestClient, query: str, status: int, code: str) -> None:
    error(client.get(f"/v1/audit{query}"), status, code)


def test_the_example_is_an_answer() -> None:
    assert AuditReport.model_validate({"recipes": [SHOWN]}).recipes[0].schema_name == "support"

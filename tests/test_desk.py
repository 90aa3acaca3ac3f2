"""The desk with several people: two blind readers, hidden proposals, flags, taking back, leads, many at once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from sqlmodel import Session, col, select

from service import accounts, adjudication, audit, batches, bulk, db, export, gold, review, similar, undo, workload
from service.errors import Conflict, Invalid, NotFound
from service.models import Item, LedgerEntry, Review, Role, State
from service.review import Cost
from service.route import ONCE, Code, Decision, Outcome, Policy, Readings, Reason, lot, readings
from tests.serving import error, make_app
from tests.stage import DOUBT, RECIPE, Play, labels, stage
from tests.test_desk_machine import Clock
from tests.test_review import answer, claim, claimed, entries

__all__ = ["clock"]

from tests.test_desk_machine import clock

TWICE, BLIND = Readings(2), Readings(1, 1)
AUDIT = Decision(outcome=Outcome.audit, reasons=(Reason(code=Code.audit, value=0.001, threshold=0.02),), inclusion=0.02)


def play(
    confidence: float = 0.5,
    readings: Readings = ONCE,
    decision: Decision = DOUBT,
    sentiment: str = "neutral",
    words: str = "Ann is in Ghent",
) -> Play:
    return Play(words, labels(words, sentiment, (), confidence), decision, readings=readings)


def said(sentiment: str) -> dict[str, Any]:
    return {"sentiment": sentiment, "entities": []}


def state(engine: Engine, item: int) -> Item:
    with db.read(engine) as session:
        return session.get_one(Item, item)


def read_by_two(engine: Engine, first: str, second: str) -> tuple[Review, Review]:
    """Ann's answer and Ben's."""
    one = answer(engine, claimed(engine, "ann"), "ann", said(first))
    return one, answer(engine, claimed(engine, "ben"), "ben", said(second))


# --- who is shown what, and how often an item is read -----------------------------------------------------------------


@given(st.integers(0, 9), st.text(max_size=5), st.integers(0, 10**6))
def test_the_draws_are_the_same_whenever_they_are_asked_for(seed: int, batch: str, position: int) -> None:
    policy = Policy(reviewed_twice=0.5, proposal_hidden=0.5)
    assert readings(policy, seed, batch, position) == readings(policy, seed, batch, position)
    assert readings(Policy(reviewed_twice=0, proposal_hidden=0), seed, batch, position) == Readings()
    assert readings(Policy(reviewed_twice=1, proposal_hidden=1), seed, batch, position) == Readings(2, 3)


def test_the_shares_are_those_of_the_policy_and_independent_of_one_another() -> None:
    policy = Policy(reviewed_twice=0.3, proposal_hidden=0.2)
    drawn = [readings(policy, 0, "b", n) for n in range(20_000)]
    assert sum(one.readers == 2 for one in drawn) / len(drawn) == pytest.approx(0.3, abs=0.02)
    for turn in (0, 1):
        hidden = [one.hidden >> turn & 1 for one in drawn]
        assert sum(hidden) / len(drawn) == pytest.approx(0.2, abs=0.02)
        both = sum(h and one.readers == 2 for h, one in zip(hidden, drawn, strict=True))
        assert both / len(drawn) == pytest.approx(0.06, abs=0.01)
    audited = [n for n in range(20_000) if lot(0, "b", n) < 0.5]
    assert sum(drawn[n].readers == 2 for n in audited) / len(audited) == pytest.approx(0.3, abs=0.03)


def test_what_is_hidden_is_in_no_answer_that_its_reader_can_get(database: Engine) -> None:
    _, (item,) = stage(database, [play(0.5, BLIND)])
    task = claimed(database)
    assert not task.shown
    assert (task.proposal, task.complete, task.confidence, task.reasons) == (None, {}, None, [])
    (entry,) = entries(database)
    assert (entry.proposal, entry.reasons) == (None, [])
    with db.read(database) as session:
        assert similar.alike(session, item, "ann").items == []
        assert similar.alike(session, item, "ann").why == {"labels": {}, "reasons": []}
    told = str(asdict(task)) + str(asdict(entry))
    assert "neutral" not in told
    with pytest.raises(Invalid, match="not shown"):
        answer(database, task, labels=None, accept=True)
    made = answer(database, task, labels=said("neutral"))
    assert (made.shown, made.changed) == (False, False)


def test_the_second_reader_learns_nothing_of_the_first(database: Engine) -> None:
    batch, _ = stage(database, [play(0.5, TWICE)])
    answer(database, claimed(database, "ann"), "ann", said("negative"), note="plainly")
    assert claim(database, "ann") is None
    task = claimed(database, "ben")
    (entry,) = entries(database)
    assert (entry.labels, entry.note, entry.changed) == (None, "", None)
    assert "negative" not in str(asdict(task)) + str(asdict(entry))
    assert entries(database, reviewer="ann") == []
    with db.read(database) as session:
        (row,) = batches.results(session, batch)
        told = workload.workload(session, "ben")
    assert row["sentiment"]["label"] == "neutral"
    assert "reviewer" not in row
    assert told.people is None
    assert told.mine.recent == []
    assert list(export.rows(database, batch=batch, settled=True)) == []


def test_two_who_agree_settle_it_and_the_first_answer_stands(database: Engine) -> None:
    _, (item,) = stage(database, [play(0.5, TWICE)])
    one, other = read_by_two(database, "negative", "negative")
    assert state(database, item).state == State.resolved
    with db.read(database) as session:
        assert [review.stands for review in review_history(session, item)] == [True, False]
    assert one.id != other.id
    assert [row["reviewer"] for row in export.rows(database, settled=True)] == ["ann"]


def review_history(session: Session, item: int) -> list[Review]:
    return review.history(session, [item])[item]


def test_two_who_differ_wait_for_a_lead_and_nothing_stands_meanwhile(database: Engine) -> None:
    batch, (item,) = stage(database, [play(0.5, TWICE)])
    read_by_two(database, "negative", "positive")
    assert state(database, item).state == State.adjudication
    assert list(export.rows(database, batch=batch)) == []
    with db.read(database) as session:
        assert batches.counts(session, batch)[State.adjudication] == 1
        (row,) = adjudication.listing(session).rows
    assert (row.kind, [one.labels["sentiment"] for one in row.answers]) == ("disagreement", ["negative", "positive"])
    assert json.dumps(asdict(row), default=str)


def test_an_audited_item_counts_once_it_is_settled_by_what_stands(database: Engine) -> None:
    _, (item,) = stage(database, [play(0.9, TWICE, AUDIT)])
    read_by_two(database, "neutral", "positive")
    with db.read(database) as session:
        waiting = audit.stream(session, RECIPE)
    assert (waiting.drawn, waiting.waiting, waiting.accepted_at) == (1, 1, ())
    settle(database, item, "lea", "positive")
    with db.read(database) as session:
        found = audit.stream(session, RECIPE)
    assert (found.waiting, found.wrong[None], found.wrong["sentiment"]) == (0, (True,), (True,))


# --- leases, flags, taking back ---------------------------------------------------------------------------------------


def test_a_lease_is_renewed_also_after_it_ended_unless_somebody_else_was_given_the_item(
    database: Engine, clock: Clock
) -> None:
    stage(database, [play()])
    task = claimed(database)
    clock.time += timedelta(seconds=61)
    with db.begin(database) as session:
        until = review.renew(session, task.item, task.fence, "ann", 60)
    assert until == clock.time + timedelta(seconds=60)
    assert claim(database, "ben") is None
    clock.time += timedelta(seconds=61)
    taken = claimed(database, "ben")
    with db.begin(database) as session:
        with pytest.raises(Conflict, match="given out again"):
            review.renew(session, task.item, task.fence, "ann", 60)
        with pytest.raises(Conflict, match="not in your hands"):
            review.renew(session, task.item, taken.fence, "ann", 60)
        with pytest.raises(NotFound):
            review.renew(session, 10**9, 1, "ann", 60)


def test_a_flag_goes_to_a_lead_with_its_note_and_never_back_to_its_reader(database: Engine) -> None:
    _, (item,) = stage(database, [play()])
    task = claimed(database)
    with db.begin(database) as session:
        for bad in ("", "  ", "x" * 4001, "\0"):
            with pytest.raises(Invalid, match="note"):
                review.flag(session, item, task.fence, "ann", bad)
        made = review.flag(session, item, task.fence, "ann", "is a city a place?")
        assert review.flag(session, item, task.fence, "ann", "is a city a place?").id == made.id
    assert (made.kind, made.labels, made.stands) == ("flag", {}, False)
    assert claim(database) is None
    with db.read(database) as session:
        (row,) = adjudication.listing(session).rows
    assert (row.kind, row.answers[0].note) == ("guideline_gap", "is a city a place?")


def back(engine: Engine, made: Review, reviewer: str = "ann") -> undo.Undone:
    with db.begin(engine) as session:
        return undo.one(session, made.id or 0, reviewer, 60)


@pytest.mark.parametrize("decision", [DOUBT, AUDIT])
def test_what_is_taken_back_is_as_before_and_in_the_same_hands(database: Engine, decision: Decision) -> None:
    _, (item,) = stage(database, [play(0.5, Readings(), decision)])
    task = claimed(database)
    before = state(database, item)
    made = answer(database, task)
    done = back(database, made)
    after = state(database, item)
    same = {"state", "answers", "read_by", "priority", "readers", "hidden"}
    assert after.model_dump(include=same) == before.model_dump(include=same)
    assert done.task is not None
    assert (done.undone, done.task.fence, done.task.text) == ([item], task.fence + 1, task.text)
    with pytest.raises(Conflict, match="given out again"):
        answer(database, task, labels=said("positive"))
    again = back(database, made)
    assert ([one.why for one in again.refused], again.task) == (["it was taken back already"], done.task)
    assert answer(database, done.task, labels=said("positive")).id != made.id
    with db.read(database) as session:
        history = review_history(session, item)
        lines = session.exec(select(LedgerEntry.action).order_by(col(LedgerEntry.number))).all()
    assert [(one.stands, one.withdrawn_at is None) for one in history] == [(False, False), (True, True)]
    assert lines == ["review.settle", "review.undo", "review.settle"]


def test_nobody_takes_back_what_others_built_on(database: Engine) -> None:
    stage(database, [play(0.5, TWICE)])
    one, other = read_by_two(database, "negative", "positive")
    assert back(database, one).refused[0].why == "somebody else has answered it since"
    with pytest.raises(NotFound):
        back(database, one, "ben")
    with db.begin(database) as session:
        adjudication.claim(session, one.item_id, "lea", 60)
    assert back(database, other, "ben").refused[0].why == "somebody else has it in their hands"
    settle(database, one.item_id, "lea", "neutral")
    assert back(database, other, "ben").refused[0].why == "a lead has decided it"


def test_a_first_answer_is_taken_back_until_the_second_reader_has_the_item(database: Engine) -> None:
    _, (item,) = stage(database, [play(0.5, TWICE)])
    made = answer(database, claimed(database))
    done = back(database, made)
    assert done.task
    made = answer(database, done.task)
    task = claimed(database, "ben")
    assert back(database, made).refused[0].why == "somebody else has it in their hands"
    answer(database, task, "ben")
    assert state(database, item).state == State.resolved


# --- leads ------------------------------------------------------------------------------------------------------------


def settle(engine: Engine, item: int, lead: str, word: str, reason: str = "see 2.1", alone: bool = False) -> Review:
    with db.begin(engine) as session:
        held = adjudication.claim(session, item, lead, 60, alone=alone)
        return adjudication.settle(session, item, held.fence, lead, said(word), reason, alone=alone)[0]


def test_one_lead_decides_at_a_time_and_not_who_disagreed(database: Engine) -> None:
    _, (item,) = stage(database, [play(0.5, TWICE)])
    read_by_two(database, "negative", "positive")
    with db.begin(database) as session:
        held = adjudication.claim(session, item, "lea", 60)
        assert adjudication.claim(session, item, "lea", 60).fence == held.fence
        with pytest.raises(Conflict, match="in the hands of lea"):
            adjudication.claim(session, item, "max", 60)
        with pytest.raises(Conflict, match="not in your hands"):
            adjudication.settle(session, item, held.fence, "max", said("neutral"), "so")
        with pytest.raises(Invalid, match="reason"):
            adjudication.settle(session, item, held.fence, "lea", said("neutral"), " ")
        adjudication.release(session, item, held.fence, "lea")
        with pytest.raises(Conflict, match="an answer of yours"):
            adjudication.claim(session, item, "ben", 60)
    made = settle(database, item, "max", "neutral", "neither")
    assert (made.kind, made.note, made.stands, made.changed) == ("adjudication", "neither", True, False)
    assert [row["reviewer"] for row in export.rows(database, settled=True)] == ["max"]
    with db.begin(database) as session:
        again, own = adjudication.settle(session, item, 0, "max", said("neutral"), "neither")
        assert (again.id, own) == (made.id, False)
        with pytest.raises(Conflict, match="waits for no lead"):
            adjudication.claim(session, item, "lea", 60)


def test_who_is_alone_decides_what_they_answered_and_the_answer_says_so(database: Engine) -> None:
    _, (item,) = stage(database, [play(0.5, TWICE)])
    read_by_two(database, "negative", "positive")
    with db.begin(database) as session:
        held = adjudication.claim(session, item, "ann", 60, alone=True)
        found, own = adjudication.settle(session, item, held.fence, "ann", said("negative"), "sure", alone=True)
    assert (found.reviewer, own) == ("ann", True)


def test_a_lead_settles_their_own_dispute_only_where_no_other_lead_could(tmp_path: Path) -> None:
    app = make_app(tmp_path, host="0.0.0.0", workers=0)
    with TestClient(app) as client:
        database = app.state.running.database
        _, (item,) = stage(database, [play(0.5, TWICE)])
        for name, word in (("lea", "negative"), ("admin", "positive")):
            answer(database, claimed(database, name), name, said(word))

        def lead(name: str) -> dict[str, str]:
            with db.begin(database) as session:
                accounts.add(session, name, [Role.lead], who="tests")
                _, key = accounts.add_key(session, name, "", who="tests")
            return {"Authorization": f"Bearer {key}"}

        lea, dispute = lead("lea"), f"/v1/adjudications/{item}"
        held_by_lea = client.post(f"{dispute}/claim", headers=lea).json()
        assert held_by_lea["own"] is True
        client.post(f"{dispute}/release", headers=lea, json={"fence": held_by_lea["fence"]})
        max_ = lead("max")
        error(client.post(f"{dispute}/claim", headers=lea), 409, "conflict")
        held_by_max = client.post(f"{dispute}/claim", headers=max_).json()
        decision = {"labels": said("neutral"), "reason": "see 2.1"}
        decided = client.post(f"{dispute}/resolve", headers=max_, json={"fence": held_by_max["fence"], **decision})
        assert (held_by_max["own"], decided.json()["own"]) == (False, False)


# --- many at once -----------------------------------------------------------------------------------------------------


def test_alike_are_those_with_the_same_choice_and_reasons_most_similar_first(database: Engine) -> None:
    texts = [
        "the parcel came late",
        "the parcel came late!",
        "the parcel came",
        "blue whales sing",
        "the parcel came late",
    ]
    plays = [play(0.3 + n / 100, words=words) for n, words in enumerate(texts)]
    plays += [
        play(0.3, TWICE, words=texts[0]),
        play(0.3, BLIND, words=texts[0]),
        play(0.3, decision=AUDIT, words=texts[0]),
        play(0.3, sentiment="positive", words=texts[0]),
    ]
    _, ids = stage(database, plays)
    task = claimed(database, "ann", order="oldest")
    assert task.item == ids[0]
    with db.read(database) as session:
        found = similar.alike(session, task.item, "ann")
        with pytest.raises(Conflict):
            similar.alike(session, task.item, "ben")
    assert found.why == {"labels": {"sentiment": "neutral"}, "reasons": ["low_confidence"]}
    assert [one.item for one in found.items] == [ids[4], ids[1], ids[2], ids[3]]
    assert found.items[0].similarity == 1.0
    assert found.items[-1].similarity < 0.2


def test_many_are_settled_in_one_act_and_taken_back_in_one(database: Engine) -> None:
    plays = [play(), play(), play(0.5, TWICE), play(0.5, BLIND), play(0.9, decision=AUDIT), play()]
    _, ids = stage(database, plays)
    taken = claimed(database, "ben", order="oldest")
    with db.begin(database) as session:
        done = bulk.settle(session, [*ids, 10**9, ids[1]], "ann", {"sentiment": "positive"}, "all alike")
        with pytest.raises(Invalid, match=r"relabel\.mood"):
            bulk.settle(session, ids, "ann", {"mood": "x"})
        with pytest.raises(Invalid, match=r"relabel\.sentiment: expected a label"):
            bulk.settle(session, ids, "ann", {"sentiment": "x"})
    assert (taken.item, done.settled) == (ids[0], [ids[1], ids[5]])
    assert {one.item for one in done.refused} == {ids[0], ids[2], ids[3], ids[4], 10**9}
    with db.read(database) as session:
        made = session.exec(select(Review)).all()
    assert {(one.labels["sentiment"], one.changed, one.bulk, one.stands) for one in made} == {
        ("positive", True, done.bulk, True)
    }
    with db.begin(database) as session:
        with pytest.raises(NotFound):
            undo.many(session, done.bulk or "", "ben")
        assert undo.many(session, done.bulk or "", "ann").undone == [ids[1], ids[5]]
    assert claimed(database, "cem", order="oldest").item == ids[1]


def test_the_informative_order_shows_what_is_unlike_what_was_read(database: Engine) -> None:
    words = ["the parcel came late", "the parcel came late again", "the parcel was late", "purple quokkas juggle"]
    _, ids = stage(database, [play(0.1 + n / 10, words=one) for n, one in enumerate(words)])
    with db.read(database) as session:
        assert similar.informative(session, "ann") == []  # nothing was read: the least sure comes first
    answer(database, claimed(database))
    with db.read(database) as session:
        first = similar.informative(session, "ann")
    assert first[0] == ids[3]
    assert sorted(first) == ids[1:]
    assert claimed(database, "ann", first=first).item == ids[3]
    assert claimed(database, "ben", first=first).item == first[1]  # the one before is taken


# --- numbers, gold, old tables ----------------------------------------------------------------------------------------


def test_everybody_sees_their_own_work_and_a_lead_that_of_all(database: Engine, clock: Clock) -> None:
    batch, _ = stage(database, [play(0.1 * n, TWICE if n == 1 else Readings()) for n in range(1, 6)])
    stage(database, [play(0.9)])
    first = answer(database, claimed(database), cost=Cost(4.0, 3))
    answer(database, claimed(database), cost=Cost(8.0, 1))
    clock.time += timedelta(days=1)
    answer(database, claimed(database))
    task = claimed(database, "ben", order="oldest")
    with db.begin(database) as session:
        review.flag(session, task.item, task.fence, "ben", "?")
    claimed(database, "cem")
    with db.read(database) as session:
        mine = workload.workload(session, "ann", batch)
        lead = workload.workload(session, "ben", everybody=True)
    assert (mine.waiting, mine.held, mine.adjudication, mine.for_others) == (2, 1, 1, 0)
    assert (mine.mine.settled, mine.mine.today, mine.mine.median_seconds, mine.people) == (3, 1, 6.0, None)
    assert [one.undoable for one in mine.mine.recent] == [True, True, False]
    assert mine.mine.recent[-1].review == first.id
    assert lead.waiting == 3
    assert [(one.reviewer, one.settled, one.flagged) for one in lead.people or []] == [("ann", 3, 0), ("ben", 0, 1)]


def test_what_waits_for_somebody_else_is_told_apart(database: Engine) -> None:
    stage(database, [play(0.5, TWICE)])
    answer(database, claimed(database))
    with db.read(database) as session:
        assert (workload.workload(session, "ann").waiting, workload.workload(session, "ann").for_others) == (1, 1)
        assert workload.workload(session, "ben").for_others == 0


def test_what_stands_becomes_gold_and_is_then_not_taken_back(database: Engine) -> None:
    one, (item, waiting) = stage(database, [play(0.1, words="first"), play(0.2)])
    made = answer(database, claimed(database))
    other, (same,) = stage(database, [play(0.1, words="another text, the same ref")])
    answer(database, claimed(database, "ann", batch=other))
    with db.begin(database) as session:
        assert gold.from_reviews(session, "g", "lea", batch=one) == {"added": 1, "replaced": 0, "unchanged": 0}
        assert gold.from_reviews(session, "g", "lea", items=[same])["added"] == 1
        assert gold.from_reviews(session, "g", "lea", items=[item])["unchanged"] == 1
        with pytest.raises(Conflict, match="not settled"):
            gold.from_reviews(session, "g", "lea", items=[waiting])
        with pytest.raises(NotFound):
            gold.from_reviews(session, "g", "lea", items=[10**9])
    with db.read(database) as session:
        assert [row["id"] for row in gold.items(session, "g").rows] == ["0", f"{other}:0"]
    assert back(database, made).refused[0].why == "it went into a gold set"


def test_reviews_of_before_stand_and_their_readers_saw_the_proposal(empty_database_url: str) -> None:
    engine = db.connect(empty_database_url)
    _to(engine, "0005")
    with engine.begin() as connection:
        for statement in OLD:
            connection.execute(text(statement))
    db.migrate(engine)
    with db.read(engine) as session:
        (found,) = session.exec(select(Review)).all()
        item = session.get_one(Item, 1)
    assert (found.kind, found.stands, found.shown, found.withdrawn_at) == ("answer", True, True, None)
    assert (item.answers, item.readers, item.hidden, item.read_by) == (1, 1, 0, None)
    _to(engine, "0005", down=True)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM review")).scalar_one() == 1
    engine.dispose()


OLD = (
    "INSERT INTO schema_version VALUES (1, 'mood', 1, 'x', '{}', '2030-01-01')",
    "INSERT INTO batch (id, client, key, content_sha256, schema_id, prompt, policy, total, created_at)"
    " VALUES ('b', 'c', 'k', 'x', 1, 'line.v1', '{}', 1, '2030-01-01')",
    "INSERT INTO item (id, batch_id, position, ref, text, text_sha256, meta, state, attempt, fence, priority,"
    " updated_at) VALUES (1, 'b', 0, '0', 'x', 'x', '{}', 'resolved', 1, 2, 0, '2030-01-01')",
    "INSERT INTO review (id, item_id, reviewer, changed, labels, note, created_at)"
    " VALUES (1, 1, 'ann', false, '{}', '', '2030-01-01')",
)


def _to(engine: Engine, revision: str, *, down: bool = False) -> None:
    config = Config()
    config.set_main_option("script_location", str(db.MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(config, revision)


# --- at the same time -------------------------------------------------------------------------------------------------


def test_many_at_once_settle_each_item_once_and_read_each_of_two_apart(database: Engine) -> None:
    batch, items = stage(database, [play(n / 100, TWICE if n % 3 == 0 else Readings()) for n in range(30)])

    def work(who: str) -> list[int]:
        done = []
        while task := claim(database, who, batch=batch):
            made = answer(database, task, who, said("negative"))
            if len(done) % 4 == 3:
                again = back(database, made, who).task
                if again is None:  # somebody else has it already
                    done.append(task.item)
                    continue
                answer(database, again, who, said("negative"))
            done.append(task.item)
        return done

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(work, [f"reader {n}" for n in range(6)]))
    done += [work("late"), work("last")]  # what only those were left to read who had read it, or while it was held
    assert all(len(set(one)) == len(one) for one in done)
    assert sorted(item for one in done for item in one) == sorted([*items, *items[::3]])
    with db.read(database) as session:
        assert batches.counts(session, batch)[State.resolved] == len(items)
        assert sorted(session.exec(select(Review.item_id).where(Review.stands)).all()) == items
        numbers = session.exec(select(LedgerEntry.number).order_by(col(LedgerEntry.number))).all()
    assert list(numbers) == list(range(1, len(numbers) + 1))


def test_two_leads_at_once_are_not_both_given_an_item(database: Engine) -> None:
    _, items = stage(database, [play(n / 10, TWICE) for n in range(4)])
    for _ in items:
        read_by_two(database, "negative", "positive")

    def take(lead: str) -> list[int]:
        got = []
        for item in items:
            try:
                with db.begin(database) as session:
                    adjudication.claim(session, item, lead, 60)
                got.append(item)
            except Conflict:
                pass
        return got

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(take, ["lea", "max", "noa", "oda"]))
    assert sorted(item for one in got for item in one) == items

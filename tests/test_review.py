"""The desk: every item is settled once, by somebody who held it, and no answer overtakes another."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine, text
from sqlmodel import col, select

from service import db, review
from service.errors import Conflict, Invalid, NotFound
from service.models import Item, Review, State
from service.review import Entry, ReviewTask
from service.route import Code, Decision, Outcome, Reason
from tests.stage import ACCEPTED, DOUBT, FAILED, Play, labels, stage

ANSWER: dict[str, Any] = {"sentiment": "negative", "entities": []}


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.time = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(review, "now", clock)
    return clock


def play(confidence: float, decision: Decision = DOUBT) -> Play:
    return Play("Ann is in Ghent", labels("Ann is in Ghent", "neutral", [(0, 3, "person")], confidence), decision)


def claim(engine: Engine, reviewer: str = "ann", **filters: Any) -> ReviewTask | None:
    with db.begin(engine) as session:
        return review.next_item(session, reviewer, lease_seconds=60, **filters)


def claimed(engine: Engine, reviewer: str = "ann", **filters: Any) -> ReviewTask:
    task = claim(engine, reviewer, **filters)
    assert task is not None
    return task


def answer(engine: Engine, task: ReviewTask, reviewer: str = "ann", labels: Any = ANSWER, **more: Any) -> Review:
    with db.begin(engine) as session:
        return review.resolve(session, task.item, task.fence, reviewer, labels, **more)


def entries(engine: Engine, **filters: Any) -> list[Entry]:
    with db.read(engine) as session:
        return review.listing(session, **filters).rows


def test_a_task_carries_all_that_a_person_needs(database: Engine, clock: Clock) -> None:
    batch, (item,) = stage(database, [play(0.5)])
    task = claimed(database)
    assert (task.item, task.fence, task.batch, task.ref, task.text) == (item, 2, batch, "0", "Ann is in Ghent")
    assert (task.schema, task.version, task.decision) == ("shop", 1, "review")
    assert task.lease_until == clock.time + timedelta(seconds=60)
    assert task.proposal is not None
    assert task.proposal["sentiment"]["label"] == "neutral"
    assert task.proposal["entities"][0] == {
        "start": 0,
        "end": 3,
        "label": "person",
        "text": "Ann",
        "confidence": 0.5,
        "start_utf16": 0,
        "end_utf16": 3,
    }
    assert (task.confidence, task.complete) == (0.5, {"entities": 0.9})
    assert (task.reasons[0]["value"], task.reasons[0]["threshold"]) == (0.5, 0.6)
    assert json.dumps(asdict(task) | {"lease_until": None})


def test_the_least_sure_comes_first_or_the_oldest(database: Engine) -> None:
    _, (sure, unsure, failed) = stage(database, [play(0.5), play(0.1), Play("?", None, FAILED)])
    assert [claimed(database, who).item for who in ("a", "b", "c")] == [failed, unsure, sure]
    assert claim(database, "d") is None
    stage(database, [play(0.5), play(0.1)])
    first, second = claimed(database, "d", order="oldest"), claimed(database, "e", order="oldest")
    assert first.item < second.item


def test_the_audit_is_spread_among_the_doubtful_by_its_lot(database: Engine) -> None:
    def audit(draw: float) -> Play:
        reason = Reason(code=Code.audit, value=draw, threshold=0.02)
        return play(0.99, Decision(outcome=Outcome.audit, reasons=(reason,), inclusion=0.02))

    _, (low, high, doubtful, _) = stage(database, [audit(0.001), audit(0.019), play(0.5), play(0.99, ACCEPTED)])
    order = [claimed(database, who).item for who in ("a", "b", "c")]
    assert order == [low, doubtful, high]
    assert claim(database, "d") is None  # what was accepted waits for nobody


def test_who_asks_again_gets_the_same_item_under_the_same_fence(database: Engine, clock: Clock) -> None:
    stage(database, [play(0.1), play(0.2)])
    first = claimed(database)
    clock.advance(30)
    again = claimed(database)
    assert (again.item, again.fence) == (first.item, first.fence)
    assert again.lease_until == clock.time + timedelta(seconds=60)
    assert claimed(database, "ben").item != first.item


def test_an_expired_lease_goes_to_the_next_and_the_late_answer_is_refused(database: Engine, clock: Clock) -> None:
    stage(database, [play(0.1)])
    late = claimed(database)
    assert claim(database, "ben") is None
    clock.advance(60)
    taken = claimed(database, "ben")
    assert taken.item == late.item
    assert taken.fence == late.fence + 1
    with pytest.raises(Conflict, match="given out again"):
        answer(database, late)
    assert answer(database, taken, "ben").reviewer == "ben"
    with pytest.raises(Conflict, match="settled by ben"):
        answer(database, late)


def test_an_answer_after_the_lease_counts_while_nobody_else_has_the_item(database: Engine, clock: Clock) -> None:
    stage(database, [play(0.1)])
    task = claimed(database)
    clock.advance(3600)
    assert claimed(database).fence == task.fence  # after lunch the same item is still there
    clock.advance(3600)
    assert answer(database, task).item_id == task.item


def test_what_was_handed_back_goes_to_others_first(database: Engine) -> None:
    stage(database, [play(0.1), play(0.2)])
    hard = claimed(database)
    with db.begin(database) as session:
        review.release(session, hard.item, hard.fence, "ann")
    with pytest.raises(Conflict, match="not in your hands"):
        answer(database, hard)
    easy = claimed(database)
    assert easy.item != hard.item
    answer(database, easy)
    assert claimed(database).item == hard.item  # nobody else took it
    assert claim(database, "ben") is None


def test_handing_back_what_one_no_longer_holds_changes_nothing(database: Engine, clock: Clock) -> None:
    stage(database, [play(0.1)])
    late = claimed(database)
    clock.advance(61)
    taken = claimed(database, "ben")
    with db.begin(database) as session:
        review.release(session, late.item, late.fence, "ann")
        review.release(session, late.item, taken.fence, "ann")
        with pytest.raises(NotFound):
            review.release(session, 10**9, 1, "ann")
    assert answer(database, taken, "ben").reviewer == "ben"


def test_a_page_that_goes_away_leaves_the_item_to_the_page_that_has_taken_it_up_again(
    database: Engine, clock: Clock
) -> None:
    stage(database, [play(0.1)])
    old = claimed(database)
    clock.advance(1)
    new = claimed(database)
    assert (new.item, new.fence) == (old.item, old.fence)
    with db.begin(database) as session:
        review.release(session, old.item, old.fence, "ann", old.lease_until)
    assert claim(database, "ben") is None
    with db.begin(database) as session:
        review.release(session, new.item, new.fence, "ann", new.lease_until)
    assert claim(database, "ben") is not None


def test_somebody_elses_fence_is_of_no_use(database: Engine) -> None:
    stage(database, [play(0.1)])
    task = claimed(database)
    with pytest.raises(Conflict, match="not in your hands"):
        answer(database, task, "ben")


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({}, "sentiment: expected an answer"),
        ({"sentiment": "negative"}, "entities: expected an answer"),
        ({"sentiment": None, "entities": []}, "sentiment: expected an answer"),
        ({"sentiment": "furious", "entities": []}, "sentiment: expected a label"),
        ({**ANSWER, "intent": "refund"}, "intent: expected a task of the schema shop: sentiment, entities"),
        (
            {"sentiment": "negative", "entities": [{"start": 0, "end": 99, "label": "person"}]},
            r"entities\[0\]: expected code",
        ),
        ({"sentiment": "negative", "entities": [{"start": 0, "end": 3, "label": "person", "text": "Bob"}]}, "'Ann'"),
        (
            {
                "sentiment": "negative",
                "entities": [{"start": 0, "end": 3, "label": "person"}, {"start": 1, "end": 6, "label": "place"}],
            },
            "do not overlap",
        ),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_by_name(database: Engine, said: dict[str, Any], names: str) -> None:
    stage(database, [play(0.1)])
    task = claimed(database)
    with pytest.raises(Invalid, match=names):
        answer(database, task, labels=said)
    assert claimed(database).fence == task.fence  # still in the same hands


def test_a_proposal_can_be_accepted_as_it_stands_or_sent_back_as_it_came(database: Engine) -> None:
    stage(database, [play(0.1), play(0.2), play(0.3)])
    first = claimed(database)
    accepted = answer(database, first, labels=None, accept=True)
    assert not accepted.changed
    assert accepted.labels == {
        "sentiment": "neutral",
        "entities": [{"start": 0, "end": 3, "label": "person", "text": "Ann"}],
    }
    second = claimed(database)
    assert not answer(database, second, labels=second.proposal).changed
    third = claimed(database)
    with pytest.raises(Invalid, match="without labels"):
        answer(database, third, accept=True)
    assert answer(database, third).changed


def test_an_item_that_could_not_be_labelled_is_settled_all_the_same(database: Engine) -> None:
    stage(database, [Play("Ann", None, FAILED)])
    task = claimed(database)
    assert task.proposal is None
    assert task.confidence is None
    assert task.recipe is None
    assert task.reasons[0]["code"] == "failed"
    with pytest.raises(Invalid, match="no proposal to accept"):
        answer(database, task, labels=None, accept=True)
    assert answer(database, task).changed


def test_the_same_answer_twice_is_one_review_and_another_is_refused(database: Engine) -> None:
    stage(database, [play(0.1)])
    task = claimed(database)
    first = answer(database, task, note="sarcasm")
    assert answer(database, task, note="sarcasm").id == first.id
    for who, said, note in (
        ("ann", ANSWER, ""),
        ("ann", {**ANSWER, "sentiment": "positive"}, "sarcasm"),
        ("ben", ANSWER, "sarcasm"),
    ):
        with pytest.raises(Conflict, match="was settled by ann at"):
            answer(database, task, who, labels=said, note=note)
    with db.read(database) as session:
        assert len(session.exec(select(Review)).all()) == 1


@pytest.mark.parametrize("bad", ["\0", "\ud800", ""])
def test_a_name_that_cannot_be_stored_is_refused(database: Engine, bad: str) -> None:
    stage(database, [play(0.1)])
    task = claimed(database)
    with pytest.raises(Invalid, match="reviewer"):
        claim(database, bad)
    with pytest.raises(Invalid, match="reviewer"):
        answer(database, task, bad)
    if bad:
        with pytest.raises(Invalid, match="note"):
            answer(database, task, note=bad)


def test_an_item_that_is_not_there_or_waits_for_nobody_is_said_to_be_so(database: Engine) -> None:
    _, (item,) = stage(database, [play(0.9, ACCEPTED)])
    with db.begin(database) as session:
        with pytest.raises(NotFound, match="no item 999"):
            review.resolve(session, 999, 1, "ann", ANSWER)
        with pytest.raises(Conflict, match="accepted and waits for nobody"):
            review.resolve(session, item, 1, "ann", ANSWER)


def test_the_desk_can_be_narrowed_by_batch_reason_and_task(database: Engine) -> None:
    span = Decision(
        outcome=Outcome.review,
        reasons=(
            Reason(code=Code.low_confidence, task="entities", detail='"code": "audit", "task": "sentiment"'),
            Reason(code=Code.ambiguous, task="sentiment"),
        ),
    )
    one, (a, b) = stage(database, [play(0.1), play(0.2, span)])
    two, (c,) = stage(database, [Play("?", None, FAILED)])

    def found(**filters: Any) -> set[int]:
        return {entry.item for entry in entries(database, **filters)}

    assert found() == {a, b, c}
    assert found(batch=one) == {a, b}
    assert found(reason=Code.low_confidence) == {a, b}
    assert found(task="entities") == {b}
    assert found(task="sentiment") == {a, b}
    assert found(reason=Code.low_confidence, task="sentiment") == {a}  # one reason must do both
    assert found(reason=Code.audit) == set()
    assert claimed(database, "ann", batch=two).item == c
    assert claimed(database, "ann", task="entities").item == b  # what is held does not fit: another one is claimed
    assert claimed(database, "ann", reason=Code.failed).item == c
    assert claim(database, "ben", reason=Code.failed) is None


def test_the_list_goes_on_where_it_stopped_and_names_who_holds_and_who_settled(database: Engine, clock: Clock) -> None:
    _, items = stage(database, [play(n / 10) for n in range(5)] + [play(0.9, ACCEPTED)])
    held, settled = claimed(database, "ann"), claimed(database, "ben")
    answer(database, settled, "ben", note="clear")
    with db.read(database) as session:
        seen, after = [], 0
        while True:
            page = review.listing(session, after=after, limit=2)
            seen += page.rows
            if page.after is None:
                break
            after = page.after
    assert [entry.item for entry in seen] == items[:5]
    by_item = {entry.item: entry for entry in seen}
    assert by_item[held.item].reviewer == "ann"
    assert by_item[held.item].labels is None
    done = by_item[settled.item]
    assert (done.reviewer, done.state, done.changed, done.note, done.labels) == (
        "ben",
        "resolved",
        True,
        "clear",
        ANSWER,
    )
    assert done.proposal is not None
    assert done.proposal["sentiment"] == "neutral"
    assert [entry.item for entry in entries(database, reviewer="ann")] == [held.item]
    assert [entry.item for entry in entries(database, reviewer="ben", state=State.resolved)] == [settled.item]
    assert entries(database, state=State.accepted) == []
    clock.advance(61)
    assert entries(database, reviewer="ann") == []
    assert entries(database, batch="none") == []


def test_many_reviewers_at_once_settle_each_item_once(database: Engine) -> None:
    batch, items = stage(database, [play(n / 100) for n in range(60)])

    def work(reviewer: str) -> list[int]:
        settled = []
        while (task := claim(database, reviewer, batch=batch)) is not None:
            answer(database, task, reviewer)
            settled.append(task.item)
        return settled

    with ThreadPoolExecutor(8) as pool:
        settled = [item for done in pool.map(work, [f"reviewer {n}" for n in range(8)]) for item in done]
    assert sorted(settled) == items
    with db.read(database) as session:
        assert sorted(session.exec(select(Review.item_id)).all()) == items


def test_the_next_item_is_found_by_an_index_and_not_by_sorting(database: Engine) -> None:
    stage(database, [play(0.1)])
    query = "SELECT id FROM item WHERE state IN ('review', 'audit') ORDER BY priority, id LIMIT 1"
    with db.read(database) as session:
        explain = "EXPLAIN QUERY PLAN " if database.dialect.name == "sqlite" else "EXPLAIN "
        if database.dialect.name == "postgresql":
            session.exec(text("SET LOCAL enable_seqscan = off"))  # type: ignore[call-overload]
        plan = str(session.exec(text(explain + query)).all())  # type: ignore[call-overload]
    assert "ix_item_for_people" in plan
    assert "B-TREE" not in plan
    assert "Sort" not in plan


@dataclass
class Known:
    """What the model of the desk knows of an item."""

    fence: int = 1
    owner: str | None = None
    until: datetime | None = None
    settled: tuple[str, str, int] | None = None  # by whom, how, and the review


class CrashError(Exception):
    pass


REVIEWERS = st.sampled_from(["ann", "ben", "cem"])


class Desk(RuleBasedStateMachine):
    """Several reviewers at one desk, in any order of events; a plain dict says what must come of it."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        super().__init__()
        self.engine, self.clock = engine, clock
        self.batch, items = stage(engine, [play(n / 10) for n in range(3)])
        self.items = {item: Known() for item in items}
        self.given: list[tuple[ReviewTask, str]] = []

    def _free(self, known: Known) -> bool:
        return known.settled is None and (known.until is None or known.until <= self.clock.time)

    def _holds(self, known: Known, reviewer: str, fence: int) -> bool:
        return known.settled is None and (known.owner, known.fence) == (reviewer, fence) and known.until is not None

    @rule(reviewer=REVIEWERS, order=st.sampled_from(["uncertain", "oldest"]))
    def asks_for_the_next(self, reviewer: str, order: str) -> None:
        mine = [i for i, x in self.items.items() if self._holds(x, reviewer, x.fence)]
        free = [i for i, x in self.items.items() if self._free(x)]
        task = claim(self.engine, reviewer, batch=self.batch, order=order)
        if task is None:
            assert not mine
            assert not free
            return
        known = self.items[task.item]
        assert task.item in mine or (not mine and task.item in free)
        assert task.fence == known.fence + (not mine)
        known.fence, known.owner, known.until = task.fence, reviewer, task.lease_until
        self.given.append((task, reviewer))

    @precondition(lambda self: self.given)
    @rule(data=st.data(), reviewer=REVIEWERS | st.none(), sentiment=st.sampled_from(["negative", "positive"]))
    def answers(self, data: st.DataObject, reviewer: str | None, sentiment: str) -> None:
        task, holder = data.draw(st.sampled_from(self.given))
        who = reviewer or holder
        known = self.items[task.item]
        said = {"sentiment": sentiment, "entities": []}
        if self._holds(known, who, task.fence):
            found = answer(self.engine, task, who, said)
            known.settled = (who, sentiment, found.id or 0)
        elif known.settled and known.settled[:2] == (who, sentiment):
            assert answer(self.engine, task, who, said).id == known.settled[2]
        else:
            with pytest.raises(Conflict):
                answer(self.engine, task, who, said)

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def hands_back(self, data: st.DataObject) -> None:
        task, who = data.draw(st.sampled_from(self.given))
        with db.begin(self.engine) as session:
            review.release(session, task.item, task.fence, who)
        if self._holds(self.items[task.item], who, task.fence):
            self.items[task.item].until = None

    @rule(seconds=st.sampled_from([1, 30, 60]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(reviewer=REVIEWERS)
    def dies_while_asking(self, reviewer: str) -> None:
        def ask(session: Any) -> None:
            review.next_item(session, reviewer, lease_seconds=60, batch=self.batch)

        self._die(ask)

    @precondition(lambda self: any(self._holds(self.items[t.item], who, t.fence) for t, who in self.given))
    @rule()
    def dies_while_answering(self) -> None:
        task, who = next((t, who) for t, who in self.given if self._holds(self.items[t.item], who, t.fence))
        self._die(lambda session: review.resolve(session, task.item, task.fence, who, ANSWER))

    def _die(self, act: Callable[[Any], Any]) -> None:
        def dying() -> None:
            with db.begin(self.engine) as session:
                act(session)
                raise CrashError

        with pytest.raises(CrashError):
            dying()

    @invariant()
    def the_tables_say_the_same(self) -> None:
        with db.read(self.engine) as session:
            rows = session.exec(select(Item).where(col(Item.batch_id) == self.batch)).all()
            reviews = session.exec(select(Review).where(col(Review.item_id).in_(list(self.items)))).all()
        settled = {item: known.settled for item, known in self.items.items() if known.settled}
        assert sorted((r.item_id, r.reviewer, r.id) for r in reviews) == sorted(
            (i, s[0], s[2]) for i, s in settled.items()
        )
        for row in rows:
            known = self.items[row.id or 0]
            assert row.state == (State.resolved if known.settled else State.review)
            assert row.fence == known.fence
            if known.settled is None:
                assert (row.lease_owner, row.lease_until) == (known.owner, known.until)
            else:
                assert (row.lease_owner, row.lease_until) == (None, None)

    def teardown(self) -> None:
        """Nothing is lost: whatever happened, the rest can be settled."""
        self.clock.advance(61)
        while (task := claim(self.engine, "zoe", batch=self.batch)) is not None:
            answer(self.engine, task, "zoe")
        assert {e.state for e in entries(self.engine, batch=self.batch)} == {"resolved"}
        assert len(entries(self.engine, batch=self.batch)) == len(self.items)


def test_whatever_the_reviewers_do_each_item_is_settled_exactly_once(database: Engine, clock: Clock) -> None:
    def desk() -> Desk:
        return Desk(database, clock)

    machine: Any = desk  # typed as a class, where a function serves
    run_state_machine_as_test(machine, settings=settings(max_examples=30, stateful_step_count=20, deadline=None))

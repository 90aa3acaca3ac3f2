"""The worker labels everything it can, blames the right one for what it cannot, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Engine as Database
from sqlmodel import Session, select

from service import batches, db, queue, standards, worker
from service.annotate import Annotated, Failure, Plan
from service.engine import Completion, Engine, Identity, Request
from service.errors import EngineError, Unavailable
from service.models import Batch, GoldItem, Item, ItemDecision, Measurement, Recipe, State, fingerprint
from service.route import Calibrators, Code, Line, Standard
from service.settings import Settings
from tests.databases import post, sure

SETTINGS = Settings(chunk=8, lease_seconds=30)


class Fake:
    """An engine and an `annotate` in one, told by the texts what to do. Seconds a text takes: `seconds`."""

    identity = Identity("fake", "fake")
    in_flight = 16

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.down = False
        self.noticed = False  # somebody asked while it was down
        self.asked: list[str] = []
        self.open = self.most_open = self.cancelled = 0

    async def ready(self) -> None:
        if self.down:
            self.noticed = True
            raise EngineError("down", retryable=True)

    async def close(self) -> None:
        return None

    async def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Completion | EngineError]]:
        raise AssertionError("the fake answers in annotate")
        yield

    async def crash(self) -> None:
        self.down, self.noticed = True, False
        while not self.noticed:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        self.down = False

    async def annotate(
        self, texts: Sequence[str], plan: Plan, engine: Engine
    ) -> AsyncIterator[tuple[int, Annotated | Failure]]:
        self.asked += texts
        if "raises" in texts:
            raise ValueError("raises: here stands the text")
        self.open += len(texts)
        self.most_open = max(self.most_open, self.open)
        answered = 0
        try:
            for index, text in sorted(enumerate(texts), key=lambda pair: pair[1].startswith("slow")):
                answer = await self._answer(text)
                if answer is not None:
                    self.open -= 1
                    answered += 1
                    yield index, answer
        except asyncio.CancelledError:
            self.cancelled += len(texts) - answered
            raise
        finally:
            self.open -= len(texts) - answered

    async def _answer(self, text: str) -> Annotated | Failure | None:
        await asyncio.sleep(self.seconds + (float(text.split()[1]) if text.startswith("slow") else 0))
        if text == "kills the engine" and not self.down:
            asyncio.get_running_loop().create_task(self.crash())
            await asyncio.sleep(0)
        if self.down:
            return Failure(Code.failed, "connection lost", retryable=True)
        if text == "silent":
            return None
        if text == "never":
            return Failure(Code.ungrounded, "no such mention", retryable=False)
        if text == "later":
            return Failure(Code.failed, "timed out", retryable=True)
        return Annotated(sure(text), truncated=text == "cut")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RETRY_SECONDS", (0.02, 0.1))
    monkeypatch.setattr(worker, "STORE_SECONDS", 0.1)


async def _until(done: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(done):
        assert time.monotonic() < deadline, "the worker did not get there"
        await asyncio.sleep(0.02)


def run(
    database: Database, fake: Fake, until: Callable[[], bool], settings: Settings = SETTINGS, meanwhile: Any = None
) -> None:
    async def both() -> None:
        stop = asyncio.Event()
        working = asyncio.create_task(
            worker.work("w", database, fake, settings, settings.prompts, stop, annotate=fake.annotate)
        )
        if meanwhile is not None:
            await meanwhile()
        await _until(lambda: working.done() or until())
        stop.set()
        await working

    asyncio.run(both())


def states(database: Database, batch: str) -> dict[State, int]:
    with db.read(database) as session:
        return {state: count for state, count in batches.counts(session, batch).items() if count}


def finished(database: Database, *ids: str) -> Callable[[], bool]:
    return lambda: not any(set(states(database, batch)) & {State.queued, State.leased} for batch in ids)


def items(database: Database) -> list[Item]:
    with db.read(database) as session:
        return list(session.exec(select(Item).order_by(Item.position)))  # type: ignore[arg-type]


def reasons(database: Database, text: str) -> list[tuple[str, str]]:
    with db.read(database) as session:
        query = select(ItemDecision).join(Item).where(Item.text == text)
        return [(reason["code"], reason["detail"]) for reason in session.exec(query).one().reasons]


def test_every_text_is_labelled_and_names_its_recipe(database: Database) -> None:
    batch = post(database, [f"tea {n}" for n in range(100)], policy={"audit_share": 0})
    run(database, Fake(), finished(database, batch))
    assert states(database, batch) == {State.accepted: 100}
    with db.read(database) as session:
        recipe = session.exec(select(Recipe)).one()
        rows = batches.results(session, batch)
    assert {row["recipe"] for row in rows} == {recipe.sha256}
    assert recipe.body["engine"]["engine"] == "fake"
    assert [row["things"][0]["text"] for row in rows] == ["tea"] * 100


def test_the_engine_has_more_to_do_than_it_can_hold(database: Database) -> None:
    batch = post(database, ["tea"] * 200)
    fake = Fake(seconds=0.1)  # longer than a claim takes, however busy the machine
    run(database, fake, finished(database, batch))
    assert Fake.in_flight + SETTINGS.chunk <= fake.most_open < Fake.in_flight + 2 * SETTINGS.chunk


def test_a_failure_that_no_try_will_help_is_a_review_with_its_reason(database: Database) -> None:
    batch = post(database, ["tea", "never", "cut", "tea"], policy={"audit_share": 0})
    fake = Fake()
    run(database, fake, finished(database, batch))
    assert states(database, batch) == {State.accepted: 2, State.review: 2}
    assert reasons(database, "never") == [("ungrounded", "no such mention")]
    assert reasons(database, "cut")[0][0] == "truncated"
    assert fake.asked.count("never") == 1


@pytest.mark.parametrize(("text", "detail"), [("later", "timed out"), ("silent", "no answer")])
def test_a_text_that_is_never_answered_is_a_review_after_three_tries(
    database: Database, text: str, detail: str
) -> None:
    batch = post(database, ["tea"] * 20 + [text] + ["tea"] * 20, policy={"audit_share": 0})
    fake = Fake()
    run(database, fake, finished(database, batch))
    assert states(database, batch) == {State.accepted: 40, State.review: 1}
    assert reasons(database, text) == [("failed", detail)]
    assert fake.asked.count(text) == 3


def test_a_text_that_makes_our_own_code_raise_is_a_review_and_its_neighbours_are_labelled(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    batch = post(database, ["tea"] * 20 + ["raises"] + ["tea"] * 20, policy={"audit_share": 0})
    with caplog.at_level(logging.DEBUG):
        run(database, Fake(), finished(database, batch))
    assert states(database, batch) == {State.accepted: 40, State.review: 1}
    assert reasons(database, "raises")[0][1].startswith("ValueError at test_worker.py")
    assert "here stands the text" not in caplog.text


def test_nothing_is_claimed_before_the_engine_answers(database: Database) -> None:
    batch = post(database, ["tea"] * 20)
    fake = Fake()
    fake.down = True

    async def wait() -> None:
        await asyncio.sleep(0.3)
        assert states(database, batch) == {State.queued: 20}
        fake.down = False

    run(database, fake, finished(database, batch), meanwhile=wait)
    assert {item.attempt for item in items(database)} == {1}


def test_an_outage_costs_no_item_an_attempt(database: Database) -> None:
    batch = post(database, ["tea"] * 300, policy={"audit_share": 0})
    fake = Fake(seconds=0.003)

    async def outages() -> None:
        for least in (30, 110, 190):  # between two the worker has found its pace again
            while await asyncio.to_thread(lambda: states(database, batch).get(State.accepted, 0)) <= least:
                await asyncio.sleep(0.02)
            await fake.crash()

    run(database, fake, finished(database, batch), meanwhile=outages)
    assert states(database, batch) == {State.accepted: 300}
    assert len(fake.asked) > 300
    assert {item.attempt for item in items(database)} == {1}


def test_a_text_that_brings_the_engine_down_each_time_is_a_review_in_the_end(database: Database) -> None:
    batch = post(database, ["tea"] * 30 + ["kills the engine"] + ["tea"] * 30, policy={"audit_share": 0})
    fake = Fake()
    run(database, fake, finished(database, batch))
    assert states(database, batch) == {State.accepted: 60, State.review: 1}
    assert reasons(database, "kills the engine") == [("failed", "connection lost")]
    assert 3 <= fake.asked.count("kills the engine") <= 6


def test_a_lease_is_renewed_while_the_engine_is_slow(database: Database) -> None:
    batch = post(database, ["slow 6"])
    fake = Fake()
    run(database, fake, finished(database, batch), settings=Settings(chunk=1, lease_seconds=4))
    assert fake.asked == ["slow 6"]


def test_a_straggler_does_not_hold_up_the_others(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.1)
    batch = post(database, ["tea"] * 7 + ["slow 60"], policy={"audit_share": 0})
    started = time.monotonic()
    run(database, Fake(), lambda: states(database, batch).get(State.accepted) == 7)
    assert time.monotonic() - started < 20


def test_stopping_gives_back_what_is_not_finished(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "GRACE_SECONDS", 0.1)
    batch = post(database, ["tea"] * 4 + ["slow 60"] * 4, policy={"audit_share": 0})
    fake = Fake()
    started = time.monotonic()
    run(database, fake, lambda: states(database, batch).get(State.accepted) == 4)
    assert time.monotonic() - started < 10
    assert states(database, batch) == {State.accepted: 4, State.queued: 4}
    assert {item.attempt for item in items(database) if item.state == State.queued} == {0}
    assert fake.cancelled == 4


def test_an_idle_worker_starts_at_once_when_woken(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "IDLE_SECONDS", (60, 60))
    made: list[str] = []

    async def wait() -> None:
        await asyncio.sleep(0.3)
        made.append(await asyncio.to_thread(post, database, ["tea"]))
        await asyncio.to_thread(worker.wake)

    run(database, Fake(), lambda: bool(made) and finished(database, *made)(), meanwhile=wait)


def test_a_database_that_is_away_for_a_while_loses_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = post(database, ["tea"] * 40, policy={"audit_share": 0})
    calls = Counter[str]()
    for name in ("claim", "store", "release"):
        real = getattr(queue, name)

        def sometimes(session: Session, *args: Any, name: str = name, real: Any = real, **named: Any) -> Any:
            calls[name] += 1
            if calls[name] % 3:
                raise Unavailable("away")
            return real(session, *args, **named)

        monkeypatch.setattr(queue, name, sometimes)
    fake = Fake()
    run(database, fake, finished(database, batch))
    assert states(database, batch) == {State.accepted: 40}
    assert len(fake.asked) == 40


def test_a_cancelled_batch_is_no_longer_worked_on(database: Database) -> None:
    batch = post(database, ["slow 60"] * 8)
    fake = Fake()

    async def cancel() -> None:
        await _until(lambda: states(database, batch) == {State.leased: 8})
        with db.begin(database) as session:
            batches.cancel(session, batch)

    run(database, fake, lambda: fake.cancelled == 8, settings=Settings(chunk=8, lease_seconds=3), meanwhile=cancel)
    assert states(database, batch) == {State.cancelled: 8}


def test_a_batch_whose_prompt_is_missing_is_explained(database: Database) -> None:
    batch = post(database, ["tea", "coffee"], prompt="none.v9")
    run(database, Fake(), finished(database, batch))
    assert states(database, batch) == {State.review: 2}
    assert "none.v9" in reasons(database, "tea")[0][1]


def _gold(session: Session, text: str, ref: str, labels: dict[str, Any]) -> None:
    session.add(GoldItem(gold="g", ref=ref, text=text, text_sha256=fingerprint(text), labels=labels))


def test_gold_that_says_otherwise_sends_an_item_to_review(database: Database) -> None:
    with db.begin(database) as session:
        _gold(session, "tea", "x", {"mood": "bad"})
        _gold(session, "milk", "y", {"mood": "good"})
        _gold(session, "milk", "3", {"mood": "bad"})  # the same text twice: the one with the item's own ref counts
        _gold(session, "beer", "z", {"mood": "no such label"})
        _gold(session, "rum", "1", {"mood": "bad"})  # another text's ref says nothing
    texts = ["tea", "coffee", "milk", "milk", "beer"]
    batch = post(database, texts, policy={"audit_share": 0}, gold="g")
    other = post(database, ["tea"], policy={"audit_share": 0})
    run(database, Fake(), finished(database, batch, other))
    found = [item.state for item in items(database) if item.batch_id == batch]
    assert found == [State.review, State.accepted, State.accepted, State.review, State.review]
    assert states(database, other) == {State.accepted: 1}
    assert "do not fit the schema" in reasons(database, "beer")[0][1]


def test_a_label_that_agreed_too_seldom_with_gold_sends_an_item_to_review(database: Database) -> None:
    first = post(database, ["tea"], policy={"audit_share": 0})
    run(database, Fake(), finished(database, first))
    with db.begin(database) as session:
        recipe = session.exec(select(Recipe)).one().sha256
        session.add(Measurement(recipe=recipe, gold="g", task="mood", label="good", agreed=3, uses=30))
    second = post(database, ["coffee"], policy={"audit_share": 0})
    run(database, Fake(), finished(database, second))
    assert (states(database, first), states(database, second)) == ({State.accepted: 1}, {State.review: 1})
    assert reasons(database, "coffee") == [("low_agreement", "3 of 30 uses on gold")]


def test_the_audit_is_drawn_from_what_was_accepted(database: Database) -> None:
    batch = post(database, ["tea"] * 200, policy={"audit_share": 0.5})
    run(database, Fake(), finished(database, batch))
    found = states(database, batch)
    assert set(found) == {State.accepted, State.audit}
    assert 70 < found[State.audit] < 130
    with db.read(database) as session:
        assert set(session.exec(select(ItemDecision.inclusion))) == {0.5}


IDENTITY = {"kind": "identity", "n": 0, "texts": 0, "knots": []}


def hold(database: Database, *lines: tuple[str | None, float]) -> int:
    """Put a standard in force for the one recipe that has spoken."""
    drawn = tuple(Line(task=task, threshold=threshold, error=0.03, level=0.95) for task, threshold in lines)
    made = Standard(lines=drawn, calibrators={"mood": Calibrators(each=IDENTITY)})
    with db.begin(database) as session:
        recipe = session.exec(select(Recipe)).one().sha256
        return standards.put(session, recipe, {}, {"standard": made.model_dump(mode="json")}).id or 0


def test_what_comes_in_is_decided_by_the_standard_that_is_in_force_then(database: Database) -> None:
    first = post(database, ["tea"], policy={"audit_share": 0})
    run(database, Fake(), finished(database, first))
    version = hold(database, ("mood", 0.96))
    texts = ["coffee", "milk", "never", "cut"]
    second = post(database, texts, policy={"audit_share": 0})
    own = post(database, ["tea"], key="own", policy={"audit_share": 0, "choice_confidence": 0.5})
    old = post(database, ["tea"], key="old", policy={"audit_share": 0})
    with db.begin(database) as session:  # as it was stored before there were standards
        batch = session.get_one(Batch, old)
        batch.policy = {name: value for name, value in batch.policy.items() if name != "standard"}
        session.add(batch)
    run(database, Fake(), finished(database, second, own, old))
    assert states(database, first) == states(database, own) == states(database, old) == {State.accepted: 1}
    assert states(database, second) == {State.review: 4}
    with db.read(database) as session:
        found = {row["text"]: row for row in batches.results(session, second)}
        others = [row for batch in (first, own, old) for row in batches.results(session, batch)]
    assert found["coffee"]["standard"] == found["cut"]["standard"] == version
    assert found["coffee"]["reasons"][0]["threshold"] == 0.96
    assert found["coffee"]["mood"]["probability"] == 0.95
    assert found["coffee"]["probability"] == pytest.approx(0.95 * 0.9 * 0.9)
    assert [reason["code"] for reason in found["cut"]["reasons"]] == ["low_confidence", "truncated"]
    assert "standard" not in found["never"]
    assert not any("standard" in row for row in others)


def test_a_standard_accepts_what_the_usual_thresholds_would_not_and_keeps_to_gold(database: Database) -> None:
    with db.begin(database) as session:
        _gold(session, "beer", "z", {"mood": "no such label"})
    first = post(database, ["tea"], policy={"audit_share": 0, "complete": 1.0})
    run(database, Fake(), finished(database, first))
    version = hold(database, ("mood", 0.6), (None, 0.7))
    second = post(database, ["tea", "beer"], policy={"audit_share": 0, "complete": 1.0, "standard": True}, gold="g")
    run(database, Fake(), finished(database, second))
    assert states(database, first) == {State.review: 1}
    assert states(database, second) == {State.accepted: 1, State.review: 1}
    with db.read(database) as session:
        assert [row["standard"] for row in batches.results(session, second)] == [version, version]

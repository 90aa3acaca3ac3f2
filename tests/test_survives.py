"""Processes die and freeze; no item is lost, none is doubled, and a poison text hurts only itself.

The workers are real processes (`tests/mortal.py`), killed and frozen with signals. Seed 7.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.context import ForkServerProcess

import pytest
from sqlalchemy import Engine
from sqlmodel import select

from service import batches, db
from service.models import Annotation, Item, ItemDecision, State
from service.route import Code
from tests import mortal
from tests.databases import post, sure

SEED = 7
log = logging.getLogger(__name__)
Start = Callable[..., ForkServerProcess]


@pytest.fixture
def start(durable_database_url: str) -> Iterator[Start]:
    """Start a worker process; all are dead when the test is over."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.mortal"])  # a new life costs milliseconds, not seconds of imports
    processes: list[ForkServerProcess] = []

    def start(owner: str, lease_seconds: float, seconds: float, model: str = "fixed") -> ForkServerProcess:
        arguments = (durable_database_url, owner, lease_seconds, seconds, model)
        process = context.Process(target=mortal.live, args=arguments, daemon=True)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        kill(process)
        process.close()


@pytest.fixture
def database(durable_database_url: str) -> Iterator[Engine]:
    engine = db.connect(durable_database_url)
    yield engine
    engine.dispose()


def kill(process: ForkServerProcess) -> None:
    process.kill()
    process.join()


def freeze(process: ForkServerProcess, database: Engine) -> None:
    """Stop it between its transactions: who is stopped within one on SQLite holds up all others until he wakes or dies,
    and a worker that waits for its engine looks into the queue now and then."""
    assert process.pid is not None
    with db.begin(database) as session:
        session.connection()  # on SQLite the write lock is ours now, so it is not the worker's
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.1)  # a signal takes effect soon, not at once


def states(database: Engine, batch: str) -> dict[State, int]:
    with db.read(database) as session:
        found = batches.counts(session, batch)
        assert sum(found.values()) == batches.find(session, batch).total
    return {state: number for state, number in found.items() if number}


def is_finished(database: Engine, batch: str) -> bool:
    return not {State.queued, State.leased} & states(database, batch).keys()


def wait(until: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def check(database: Engine, batch: str) -> Counter[str]:
    """Every item decided once, every label its own text's and there once; the outcomes."""
    with db.read(database) as session:
        items = session.exec(select(Item).where(Item.batch_id == batch)).all()
        decisions = {row.item_id: row for row in session.exec(select(ItemDecision))}
        annotations = session.exec(select(Annotation)).all()
    by_item: dict[int, list[Annotation]] = {}
    for row in annotations:
        by_item.setdefault(row.item_id, []).append(row)
    assert decisions.keys() == {item.id for item in items}
    for item in items:
        decision = decisions[item.id or 0]
        assert decision.outcome == item.state
        assert item.lease_owner is None
        said = by_item.pop(item.id or 0, [])
        if decision.recipe is None:
            assert (said, [reason["code"] for reason in decision.reasons]) == ([], [Code.failed])
            continue
        assert sorted(row.task for row in said) == ["mood", "things"]
        (things,) = (row.value for row in said if row.task == "things")
        assert things == sure(item.text).mentions["things"].model_dump(mode="json")
    assert by_item == {}
    return Counter("failed" if decision.recipe is None else decision.outcome for decision in decisions.values())


def test_twenty_kills_lose_nothing_and_double_nothing(database: Engine, start: Start) -> None:
    """Two workers, lease 1 s. An innocent text that is in the hands of three killed processes, the third time alone,
    goes to review as `failed`: that is accounted for, but must stay rare."""
    chance = random.Random(SEED)
    batch = post(database, [f"tea{n} is hot" for n in range(2_000)], policy={"audit_share": 0})
    owners = (f"owner {n}" for n in count())
    begun = time.monotonic()
    workers = [start(next(owners), 1.0, 0.03) for _ in range(2)]
    for _ in range(20):
        time.sleep(chance.uniform(0.1, 1.5))
        assert not is_finished(database, batch), "the kills came too late to mean anything"
        kill(workers.pop(chance.randrange(2)))
        workers.append(start(next(owners), 1.0, 0.03))
    killed = time.monotonic()
    done = 2_000 - sum(states(database, batch).get(state, 0) for state in (State.queued, State.leased))
    wait(lambda: is_finished(database, batch))
    outcomes = check(database, batch)
    log.info("kills %.1f s, %d done by then; all %.1f s, %s", killed - begun, done, time.monotonic() - begun, outcomes)
    assert outcomes["accepted"] + outcomes["failed"] == 2_000
    assert outcomes["failed"] <= 20


def test_a_text_that_kills_its_process_is_a_review_and_its_neighbours_are_labelled(
    database: Engine, start: Start
) -> None:
    texts = [f"tea{n} is hot" for n in range(80)]
    texts[random.Random(SEED).randrange(80)] = "poison"
    batch = post(database, texts, policy={"audit_share": 0})
    deaths = 0
    process = start("owner 0", 1.0, 0.005)
    while not is_finished(database, batch):
        if not process.is_alive():
            assert process.exitcode == -signal.SIGKILL
            deaths += 1
            process = start(f"owner {deaths}", 1.0, 0.005)
        time.sleep(0.02)
    assert deaths == 3
    assert check(database, batch) == {"accepted": 79, "failed": 1}
    with db.read(database) as session:
        assert session.exec(select(Item.text).where(Item.state == State.review)).one() == "poison"


def test_a_frozen_worker_that_wakes_after_its_lease_writes_nothing(database: Engine, start: Start) -> None:
    batch = post(database, [f"tea{n}" for n in range(9)], policy={"audit_share": 0})
    frozen = start("frozen", 3.0, 0.25, "the frozen one's model")
    wait(lambda: states(database, batch) == {State.leased: 9})
    freeze(frozen, database)
    start("other", 3.0, 0.0)
    wait(lambda: is_finished(database, batch))
    with db.read(database) as session:
        before = [row.model_dump() for table in (Item, ItemDecision, Annotation) for row in session.exec(select(table))]
    assert frozen.pid is not None
    os.kill(frozen.pid, signal.SIGCONT)
    time.sleep(4)  # its chunk takes two and a quarter
    assert frozen.is_alive()
    with db.read(database) as session:
        after = [row.model_dump() for table in (Item, ItemDecision, Annotation) for row in session.exec(select(table))]
    assert after == before
    assert check(database, batch) == {"accepted": 9}

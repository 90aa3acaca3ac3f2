"""The queue hands every item to one owner at a time, loses none, and isolates what kills its workers."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text, update
from sqlmodel import col, select

from service import batches, db, queue, route
from service.models import Annotation, Item, ItemDecision, State, now
from service.queue import Claim, Result
from service.route import Code, Outcome
from tests.databases import post, sure

RECIPE = "r" * 64
ACCEPTED = route.Decision(outcome=Outcome.accepted, inclusion=0.02)


@pytest.fixture(autouse=True)
def _recipe(database: Engine) -> None:
    with db.begin(database) as session:
        queue.keep_recipe(session, RECIPE, {"schema": "notes"})
        queue.keep_recipe(session, RECIPE, {"schema": "notes"})


def claim(database: Engine, owner: str = "a", limit: int = 100, lease: float = 60) -> Claim | None:
    with db.begin(database) as session:
        return queue.claim(session, owner, limit, lease)


def claimed(database: Engine, owner: str = "a", limit: int = 100, lease: float = 60) -> Claim:
    found = claim(database, owner, limit, lease)
    assert found is not None
    return found


def store(database: Engine, claim: Claim, ids: Sequence[int] | None = None) -> int:
    items = [item for item in claim.items if ids is None or item.id in ids]
    results = [Result(item.id, ACCEPTED, sure(item.text), RECIPE) for item in items]
    with db.begin(database) as session:
        return queue.store(session, claim, results)


def release(database: Engine, claim: Claim, count_attempt: bool) -> int:
    with db.begin(database) as session:
        return queue.release(session, claim, [item.id for item in claim.items], count_attempt)


def expire(database: Engine, owner: str | None = None) -> None:
    """What a lease's time passing does, at once."""
    statement = update(Item).where(col(Item.state) == State.leased).values(lease_until=now().replace(year=2000))
    with db.begin(database) as session:
        session.exec(statement if owner is None else statement.where(col(Item.lease_owner) == owner))


def states(database: Engine, batch: str) -> dict[State, int]:
    with db.read(database) as session:
        return {state: count for state, count in batches.counts(session, batch).items() if count}


def positions(claim: Claim | None) -> list[int]:
    return [item.position for item in claim.items] if claim else []


def test_a_claim_takes_items_of_one_batch_in_order_of_position(database: Engine) -> None:
    post(database, ["a", "b", "c"])
    first = claimed(database, limit=2)
    assert positions(first) == [0, 1]
    assert [(item.text, item.attempt, item.fence, item.ref) for item in first.items] == [
        ("a", 1, 1, "0"),
        ("b", 1, 1, "1"),
    ]
    assert first.batch.schema["name"] == "notes"
    assert (first.batch.prompt, first.batch.gold) == ("line.v1", None)
    assert positions(claim(database, limit=2)) == [2]
    assert claim(database) is None


def test_a_stored_item_has_its_annotations_its_decision_and_its_state(database: Engine) -> None:
    batch = post(database, ["tea is hot", ""])
    assert store(database, claimed(database)) == 2
    assert states(database, batch) == {State.accepted: 2}
    with db.read(database) as session:
        rows = session.exec(select(Annotation.task, Annotation.recipe)).all()
        items = session.exec(select(Item)).all()
    assert Counter(rows) == {("mood", RECIPE): 2, ("things", RECIPE): 2}
    assert all(item.lease_owner is None and item.lease_until is None for item in items)


def test_storing_the_same_recipe_again_replaces_its_annotation(database: Engine) -> None:
    post(database, ["tea"])
    store(database, claimed(database))
    with db.begin(database) as session:
        session.exec(update(Item).values(state=State.queued, attempt=0))
    assert store(database, claimed(database)) == 1
    with db.read(database) as session:
        assert len(session.exec(select(Annotation)).all()) == 2
        assert len(session.exec(select(ItemDecision)).all()) == 1


def test_an_expired_lease_is_claimed_by_another_and_the_late_result_is_dropped(database: Engine) -> None:
    batch = post(database, ["tea"])
    late = claimed(database, "a")
    assert claim(database, "b") is None
    expire(database)
    taken = claimed(database, "b")
    assert taken.items[0].fence == late.items[0].fence + 1
    assert store(database, late) == 0
    assert states(database, batch) == {State.leased: 1}
    assert store(database, taken) == 1


def test_a_lease_that_ran_out_but_was_not_claimed_again_still_counts(database: Engine) -> None:
    batch = post(database, ["tea"])
    slow = claimed(database)
    expire(database)
    assert store(database, slow) == 1
    assert states(database, batch) == {State.accepted: 1}


def test_renewing_keeps_a_lease_and_says_when_it_is_lost(database: Engine) -> None:
    post(database, ["tea", "coffee"])
    held = claimed(database, "a", lease=0.0)
    with db.begin(database) as session:
        assert queue.renew(session, held, 60) == 2
    assert claim(database, "b") is None
    store(database, held, [held.items[0].id])
    with db.begin(database) as session:
        assert queue.renew(session, held, 0.0) == 1
    assert claim(database, "b", lease=60) is not None
    with db.begin(database) as session:
        assert queue.renew(session, held, 60) == 0


def test_a_cancelled_item_stays_cancelled(database: Engine) -> None:
    batch = post(database, ["tea", "coffee", "milk"])
    held = claimed(database, limit=2)
    store(database, held, [held.items[0].id])
    with db.begin(database) as session:
        assert batches.cancel(session, batch) == 2
        assert batches.cancel(session, batch) == 0
    assert store(database, held) == 0
    assert release(database, held, True) == 0
    expire(database)
    assert claim(database) is None
    assert states(database, batch) == {State.accepted: 1, State.cancelled: 2}


def test_batches_take_turns(database: Engine) -> None:
    big = post(database, ["x"] * 50, "big")
    small = post(database, ["y"] * 4, "small")
    turns = [claimed(database, limit=2).batch.id for _ in range(6)]
    assert Counter(turns) == {big: 4, small: 2}
    assert turns[0] == big  # the older one first
    assert set(turns[:2]) == set(turns[2:4]) == {big, small}


def test_a_release_that_does_not_count_can_happen_any_number_of_times(database: Engine) -> None:
    post(database, ["tea"])
    for _ in range(5):
        held = claimed(database)
        assert held.items[0].attempt == 1
        assert release(database, held, False) == 1


def test_suspects_go_out_in_ever_smaller_portions_and_then_to_review(database: Engine) -> None:
    batch = post(database, ["tea"] * 16)
    sizes = []
    while (held := claim(database, limit=16)) is not None:
        sizes.append((held.items[0].attempt, len(held.items)))
        release(database, held, True)
    assert Counter(sizes) == {(1, 16): 1, (2, 4): 4, (3, 1): 16}
    assert states(database, batch) == {State.review: 16}
    with db.read(database) as session:
        decision = session.exec(select(ItemDecision)).first()
    assert decision is not None
    assert decision.recipe is None
    assert decision.reasons[0]["code"] == Code.failed


def test_who_holds_a_suspect_holds_nothing_else(database: Engine) -> None:
    post(database, ["tea"] * 40)
    lost = claimed(database, "dead", limit=9)
    fresh = claimed(database, "a", limit=9)
    expire(database, "dead")
    assert positions(claim(database, "a", limit=9)) == list(range(18, 27))  # busy: fresh items, not the suspects
    suspects = claimed(database, "b", limit=9)
    assert suspects.suspect
    assert positions(suspects) == positions(lost)[:3]
    assert claim(database, "b", limit=9) is None  # nothing beside them
    assert not fresh.suspect
    store(database, suspects)
    assert positions(claim(database, "b", limit=9)) == positions(lost)[3:6]


def test_suspects_that_have_waited_for_a_lease_go_before_fresh_items(database: Engine) -> None:
    post(database, ["tea"] * 9)
    lost = claimed(database, "dead", limit=4)
    held = claimed(database, "a", limit=1)
    expire(database, "dead")
    another = claimed(database, "a", limit=1)  # the suspects are in the queue from here on
    with db.begin(database) as session:
        session.exec(update(Item).where(col(Item.state) == State.queued).values(updated_at=now().replace(year=2000)))
    assert claim(database, "a", limit=4) is None
    store(database, held)
    store(database, another)
    assert positions(claim(database, "a", limit=4)) == positions(lost)[:2]


@pytest.mark.parametrize("seed", range(3))
def test_a_poison_text_ends_in_review_and_its_neighbours_are_labelled(database: Engine, seed: int) -> None:
    """Owners with three overlapping chunks die whenever the poison is among what they hold."""
    poison = random.Random(seed).randrange(60)
    batch = post(database, ["poison" if position == poison else "tea" for position in range(60)])
    deaths = 0
    while set(states(database, batch)) & {State.queued, State.leased}:
        held = [claim(database, f"owner {deaths}", limit=9) for _ in range(3)]
        if any(item.text == "poison" for one in held if one for item in one.items):
            deaths += 1
            expire(database)
            continue
        for one in held:
            if one:
                store(database, one)
    assert deaths == 3
    assert states(database, batch) == {State.accepted: 59, State.review: 1}
    with db.read(database) as session:
        assert session.exec(select(Item.position).where(Item.state == State.review)).one() == poison


def test_many_owners_at_once_get_each_item_once(database: Engine) -> None:
    batch = post(database, ["tea"] * 300)

    def run(owner: str) -> list[int]:
        got: list[int] = []
        while (held := claim(database, owner, limit=7)) is not None:
            got += positions(held)
            store(database, held)
        return got

    with ThreadPoolExecutor(8) as pool:
        got = [position for one in pool.map(run, [f"owner {n % 4}" for n in range(8)]) for position in one]
    # PostgreSQL may answer None to one that finds the last rows locked by another; that other has them.
    assert sorted(got) == list(range(300))
    assert states(database, batch) == {State.accepted: 300}


def test_storing_while_cancelling_does_not_deadlock(database: Engine) -> None:
    for _ in range(5):
        batch = post(database, ["tea"] * 100, key=str(random.random()))
        held = [claimed(database, limit=50), claimed(database, limit=50)]

        def cancel(batch: str = batch) -> None:
            with db.begin(database) as session:
                batches.cancel(session, batch)

        tasks: list[Callable[[], object]] = [cancel, *(lambda one=one: store(database, one) for one in held)]
        with ThreadPoolExecutor() as pool:
            for future in [pool.submit(task) for task in tasks]:
                future.result()
        found = states(database, batch)
        assert sum(found.values()) == 100
        assert set(found) <= {State.accepted, State.cancelled}


def test_a_detail_that_no_database_takes_is_cleaned(database: Engine) -> None:
    post(database, ["tea"])
    held = claimed(database)
    decision = route.refuse(Code.failed, "NUL \0 and half a pair \ud800")
    with db.begin(database) as session:
        assert queue.store(session, held, [Result(held.items[0].id, decision)]) == 1
    with db.read(database) as session:
        assert session.exec(select(ItemDecision)).one().reasons[0]["detail"] == "NUL \ufffd and half a pair ?"


OWNERS = st.sampled_from(["a", "b", "c"])


class Queue(RuleBasedStateMachine):
    """Several owners claim, store, give back, fall silent and come back late, in any order; a client cancels."""

    database: Engine
    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        with db.begin(self.database) as session:
            for table in ("annotation", "decision", "item", "batch"):
                session.connection().execute(text(f"DELETE FROM {table}"))
            queue.keep_recipe(session, RECIPE, {})
        self.batches = [post(self.database, ["tea"] * size, str(size)) for size in (7, 3)]
        self.live: dict[int, tuple[str, int]] = {}  # item: owner and fence of the lease that counts
        self.ended: dict[int, State] = {}

    @rule(target=claims, owner=OWNERS, limit=st.integers(1, 6))
    def claims_some(self, owner: str, limit: int) -> Claim | MultipleResults[Claim]:
        held = claim(self.database, owner, limit, 600)
        if held is None:
            return multiple()
        assert len({item.batch_id for item in held.items}) == 1
        for item in held.items:
            assert item.id not in self.live, "two live leases"
            assert item.id not in self.ended
            self.live[item.id] = (owner, item.fence)
        mine = [one for one in self.live.values() if one[0] == owner]
        assert not held.suspect or len(mine) == len(held.items), "a suspect with something beside it"
        return held

    def _current(self, held: Claim) -> list[int]:
        return [item.id for item in held.items if self.live.get(item.id) == (held.owner, item.fence)]

    @rule(held=consumes(claims), share=st.floats(0, 1))
    def stores(self, held: Claim, share: float) -> None:
        part = [item.id for item in held.items][: round(len(held.items) * share)]
        expected = set(self._current(held)) & set(part)
        assert store(self.database, held, part) == len(expected)
        for item in expected:
            del self.live[item]
            self.ended[item] = State.accepted

    @rule(held=claims)
    def stores_and_goes_on(self, held: Claim) -> None:
        self.stores(held, 0.5)

    @rule(held=consumes(claims), counted=st.booleans())
    def gives_back(self, held: Claim, counted: bool) -> None:
        expected = self._current(held)
        assert release(self.database, held, counted) == len(expected)
        for item in expected:
            del self.live[item]

    @rule(held=claims)
    def renews(self, held: Claim) -> None:
        with db.begin(self.database) as session:
            assert queue.renew(session, held, 600) == len(self._current(held))

    @rule(owner=OWNERS)
    def falls_silent(self, owner: str) -> None:
        """Its leases run out, and the next claim of anyone returns them to the queue."""
        expire(self.database, owner)
        for item in [item for item, (who, _) in self.live.items() if who == owner]:
            del self.live[item]
        with db.begin(self.database) as session:
            queue._reclaim(session, now())

    @rule(index=st.integers(0, 1))
    def cancels(self, index: int) -> None:
        with db.begin(self.database) as session:
            batches.cancel(session, self.batches[index])
            gone = session.exec(
                select(Item.id).where(Item.batch_id == self.batches[index], Item.state == State.cancelled)
            )
            for item in gone:
                with suppress(KeyError):
                    del self.live[item or 0]
                self.ended.setdefault(item or 0, State.cancelled)

    @invariant()
    def every_item_is_in_one_state_and_counts_add_up(self) -> None:
        with db.read(self.database) as session:
            for batch in self.batches:
                found = batches.progress(session, batch)
                assert sum(found.counts.values()) == found.total
            rows = {item.id or 0: item for item in session.exec(select(Item))}
            decided = set(session.exec(select(ItemDecision.item_id)))
            spoken = Counter(session.exec(select(Annotation.item_id)))
        leased = {key: (item.lease_owner, item.fence) for key, item in rows.items() if item.state == State.leased}
        assert leased == self.live
        for key, state in self.ended.items():
            assert rows[key].state == state
        settled = {key for key, item in rows.items() if item.state in (State.accepted, State.review)}
        assert decided == settled
        assert spoken == {key: 2 for key, item in rows.items() if item.state == State.accepted}
        assert all(item.attempt >= queue.ATTEMPTS for item in rows.values() if item.state == State.review)


def test_no_order_of_events_loses_or_doubles_an_item(database: Engine) -> None:
    machine = type("QueueOnDatabase", (Queue,), {"database": database})
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    options = settings(
        max_examples=30,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=slow,
        database=None,
    )
    run_state_machine_as_test(machine, settings=options)

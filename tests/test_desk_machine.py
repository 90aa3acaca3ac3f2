"""The desk under any order of events: what each client is told, and what the tables say, follows from a small model.

By default some schedules on each database; CONCORD_SCHEDULES=3000 for a long run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine, event
from sqlmodel import Session, col, select

from service import adjudication, batches, bulk, db, gold, ledger, review, similar, undo, workload
from service.errors import Conflict, Invalid, NotFound, ServiceError
from service.models import Item, LedgerEntry, Review, State
from service.route import Code, Decision, Outcome, Readings, Reason
from tests.stage import Play, labels, stage

SCHEDULES = int(os.environ.get("CONCORD_SCHEDULES", "70"))
LEASE = 60.0
PROPOSED, OTHERS = "neutral", ("negative", "positive")
READERS, LEADS = ("ann", "ben", "cem"), ("cem", "dot")
AUDIT = Decision(outcome=Outcome.audit, reasons=(Reason(code=Code.audit, value=0.001, threshold=0.02),), inclusion=0.02)
DRAWN = (Readings(), Readings(2), Readings(1, 1), Readings(2, 2), Readings(2, 1), Readings())


class Clock:
    def __init__(self) -> None:
        self.time = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (review, undo, adjudication, bulk, similar, workload):
        monkeypatch.setattr(module, "now", clock)
    return clock


@pytest.fixture
def quick(database: Engine) -> Engine:
    """The same database, without waiting for the disk: no test here pulls the plug."""
    if database.dialect.name == "sqlite":
        event.listen(database, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        database.dispose()
    return database


@dataclass
class Spoken:
    """A review as the model has it."""

    id: int
    who: str
    kind: str
    said: str
    shown: bool
    bulk: str | None = None
    stands: bool = False
    withdrawn: bool = False
    gold: bool = False


@dataclass
class Known:
    """An item as the model has it."""

    base: str
    readers: int
    hidden: int
    state: str
    fence: int = 1
    owner: str | None = None
    until: datetime | None = None
    past: list[Spoken] = field(default_factory=list)

    @property
    def live(self) -> list[Spoken]:
        return [one for one in self.past if not one.withdrawn]

    @property
    def answers(self) -> list[Spoken]:
        return [one for one in self.live if one.kind == "answer"]

    @property
    def waits(self) -> bool:
        return self.state in ("review", "audit")

    @property
    def shown(self) -> bool:
        return not self.hidden >> len(self.answers) & 1

    def holds(self, who: str, fence: int) -> bool:
        return (self.owner, self.fence) == (who, fence) and self.until is not None

    def let_go(self) -> None:
        self.owner = self.until = None


@dataclass(frozen=True)
class Token:
    """What a client remembers of a claim."""

    item: int
    fence: int
    who: str


class CrashError(Exception):
    pass


def said(sentiment: str) -> dict[str, Any]:
    return {"sentiment": sentiment, "entities": []}


class Desk(RuleBasedStateMachine):
    def __init__(self, engine: Engine, clock: Clock) -> None:
        super().__init__()
        self.engine, self.clock = engine, clock
        plays = [
            Play("Ghent is far", labels("Ghent is far", PROPOSED, (), n / 10), *([AUDIT] if n == 3 else []), readings=r)
            for n, r in enumerate(DRAWN)
        ]
        self.batch, ids = stage(engine, plays)
        self.items = {
            item: Known("audit" if n == 3 else "review", r.readers, r.hidden, "audit" if n == 3 else "review")
            for n, (item, r) in enumerate(zip(ids, DRAWN, strict=True))
        }
        self.tokens: list[Token] = []

    def act(self, act: Callable[[Session], Any]) -> Any:
        with db.begin(self.engine) as session:
            return act(session)

    def free(self, known: Known) -> bool:
        return known.until is None or known.until <= self.clock.time

    # --- readers ------------------------------------------------------------------------------------------------------

    @rule(who=st.sampled_from(READERS), order=st.sampled_from(["uncertain", "oldest", "informative"]))
    def asks_for_the_next(self, who: str, order: str) -> None:
        self.take(who, order)

    @rule(
        turns=st.lists(
            st.tuples(st.sampled_from(READERS), st.sampled_from([*OTHERS, PROPOSED])), min_size=2, max_size=6
        )
    )
    def people_read(self, turns: list[tuple[str, str]]) -> None:
        """Without mishaps, so that schedules get as far as to where people disagree."""
        for who, word in turns:
            token = self.take(who, "oldest")
            if token is not None:
                self.say(token, who, word)

    def take(self, who: str, order: str) -> Token | None:
        mine = [i for i, x in self.items.items() if x.waits and x.holds(who, x.fence)]
        free = [
            i for i, x in self.items.items() if x.waits and self.free(x) and who not in [one.who for one in x.answers]
        ]
        first: list[int] = []
        if order == "informative":
            with db.read(self.engine) as session:
                first = similar.informative(session, who, self.batch)
            order = "uncertain"
        wanted: Any = order
        task = self.act(
            lambda s: review.next_item(s, who, lease_seconds=LEASE, batch=self.batch, order=wanted, first=first)
        )
        if task is None:
            assert not mine
            assert not free
            return None
        known = self.items[task.item]
        assert task.item in mine or (not mine and task.item in free)
        assert task.fence == known.fence + (not mine)
        assert task.shown == known.shown == bool(task.proposal) == bool(task.reasons)
        assert task.lease_until == self.clock.time + timedelta(seconds=LEASE)
        known.fence, known.owner, known.until = task.fence, who, task.lease_until
        self.tokens.append(Token(task.item, task.fence, who))
        return self.tokens[-1]

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), who=st.sampled_from(READERS) | st.none(), word=st.sampled_from([*OTHERS, PROPOSED, None]))
    def answers(self, data: st.DataObject, who: str | None, word: str | None) -> None:
        token = self.token(data)
        self.say(token, who or token.who, word)

    @precondition(lambda self: self.stale())
    @rule(data=st.data(), word=st.sampled_from(OTHERS))
    def a_page_from_before_answers(self, data: st.DataObject, word: str) -> None:
        """The reader holds the item again, under another fence than the page that they forgot."""
        token = data.draw(st.sampled_from(self.stale()))
        self.say(token, token.who, word)

    def say(self, token: Token, who: str, word: str | None) -> None:
        known = self.items[token.item]
        mine = next((one for one in known.answers if one.who == who), None)

        def answer(session: Session) -> int:
            given = None if word is None else said(word)
            return review.resolve(session, token.item, token.fence, who, given, accept=word is None).id or 0

        if word is None and not (mine.shown if mine else known.shown):
            with pytest.raises(Invalid, match="not shown"):
                self.act(answer)
        elif mine:
            if mine.said == (word or PROPOSED):
                assert self.act(answer) == mine.id
            else:
                with pytest.raises(Conflict):
                    self.act(answer)
        elif known.waits and known.holds(who, token.fence):
            shown = known.shown
            one = Spoken(self.act(answer), who, "answer", word or PROPOSED, shown)
            known.past.append(one)
            known.let_go()
            if len(known.answers) == known.readers:
                first = known.answers[0]
                known.state = "resolved" if first.said == one.said else "adjudication"
                first.stands = first.said == one.said
        else:
            with pytest.raises(Conflict):
                self.act(answer)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), who=st.sampled_from(READERS) | st.none())
    def flags(self, data: st.DataObject, who: str | None) -> None:
        token = self.token(data)
        who, known = who or token.who, self.items[token.item]
        mine = next((one for one in known.live if (one.who, one.kind) == (who, "flag")), None)

        def flag(session: Session) -> int:
            return review.flag(session, token.item, token.fence, who, "what of cities?").id or 0

        if mine:
            assert self.act(flag) == mine.id
        elif known.waits and known.holds(who, token.fence):
            shown = known.shown
            known.past.append(Spoken(self.act(flag), who, "flag", "", shown))
            known.state = "adjudication"
            known.let_go()
        else:
            with pytest.raises(Conflict):
                self.act(flag)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def renews(self, data: st.DataObject) -> None:
        token = self.token(data)
        known = self.items[token.item]

        def renew(session: Session) -> datetime:
            return review.renew(session, token.item, token.fence, token.who, LEASE)

        if known.state != "resolved" and known.holds(token.who, token.fence):
            known.until = self.act(renew)
            assert known.until == self.clock.time + timedelta(seconds=LEASE)
        else:
            with pytest.raises(Conflict):
                self.act(renew)

    @precondition(lambda self: self.tokens)
    @rule(data=st.data())
    def hands_back(self, data: st.DataObject) -> None:
        token = self.token(data)
        known = self.items[token.item]
        self.act(lambda s: review.release(s, token.item, token.fence, token.who))
        if known.waits and known.holds(token.who, token.fence):
            known.until = None

    @precondition(lambda self: any(known.past for known in self.items.values()))
    @rule(data=st.data(), other=st.booleans())
    def takes_back(self, data: st.DataObject, other: bool) -> None:
        item, one = data.draw(st.sampled_from([(i, one) for i, x in self.items.items() for one in x.past]))
        if other:
            with pytest.raises(NotFound):
                self.act(lambda s: undo.one(s, one.id, "zoe", LEASE))
            return
        may = self.may_take_back(self.items[item], one)
        done = self.act(lambda s: undo.one(s, one.id, one.who, LEASE))
        assert (done.undone, [refused.item for refused in done.refused]) == (([item], []) if may else ([], [item]))
        if may:
            self.taken_back(item, one)
            known = self.items[item]
            known.owner, known.until = one.who, self.clock.time + timedelta(seconds=LEASE)
            assert done.task.fence == known.fence
            self.tokens.append(Token(item, known.fence, one.who))

    @rule(
        who=st.sampled_from(READERS),
        chosen=st.sets(st.integers(0, len(DRAWN) - 1)),
        word=st.sampled_from([None, *OTHERS]),
    )
    def settles_many(self, who: str, chosen: set[int], word: str | None) -> None:
        ids = [item for n, item in enumerate(self.items) if n in chosen]
        could = [
            item
            for item in ids
            if (known := self.items[item]).state == "review"
            and (known.readers, known.hidden & 1, known.answers) == (1, 0, [])
            and (self.free(known) or known.owner == who)
        ]
        done = self.act(lambda s: bulk.settle(s, ids, who, word and {"sentiment": word}))
        assert done.settled == could
        assert sorted([*could, *(refused.item for refused in done.refused)]) == ids
        assert (done.bulk is None) == (not could)
        with db.read(self.engine) as session:
            made = session.exec(select(Review).where(Review.bulk == done.bulk, col(Review.item_id).in_(could))).all()
        for one in made:
            known = self.items[one.item_id]
            known.past.append(Spoken(one.id or 0, who, "answer", word or PROPOSED, True, done.bulk, stands=True))
            known.state = "resolved"
            known.let_go()

    @precondition(lambda self: self.acts())
    @rule(data=st.data())
    def takes_an_act_back(self, data: st.DataObject) -> None:
        act = data.draw(st.sampled_from(self.acts()))
        found = [(i, one) for i, x in self.items.items() for one in x.past if one.bulk == act]
        could = [(i, one) for i, one in found if self.may_take_back(self.items[i], one)]
        done = self.act(lambda s: undo.many(s, act, found[0][1].who))
        assert done.undone == [i for i, _ in could]
        assert sorted([*done.undone, *(refused.item for refused in done.refused)]) == [i for i, _ in found]
        for item, one in could:
            self.taken_back(item, one)
            self.items[item].let_go()

    # --- leads --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: any(x.state == "adjudication" for x in self.items.values()))
    @rule(data=st.data(), lead=st.sampled_from(LEADS), alone=st.booleans())
    def claims_a_dispute(self, data: st.DataObject, lead: str, alone: bool) -> None:
        item = data.draw(st.sampled_from([i for i, x in self.items.items() if x.state == "adjudication"]))
        known = self.items[item]
        theirs = lead in [one.who for one in known.live]

        def claim(session: Session) -> adjudication.Held:
            return adjudication.claim(session, item, lead, LEASE, alone=alone)

        if (not self.free(known) and known.owner != lead) or (theirs and not alone):
            with pytest.raises(Conflict):
                self.act(claim)
            return
        again = known.owner == lead and known.until is not None
        held = self.act(claim)
        assert held.fence == known.fence + (not again)
        assert [one.review for one in held.answers] == [one.id for one in known.live]
        known.fence, known.owner, known.until = held.fence, lead, held.lease_until
        self.tokens.append(Token(item, held.fence, lead))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), alone=st.booleans(), word=st.sampled_from(OTHERS), back=st.booleans())
    def decides_a_dispute(self, data: st.DataObject, alone: bool, word: str, back: bool) -> None:
        token = self.token(data)
        known = self.items[token.item]
        holds = known.state == "adjudication" and known.holds(token.who, token.fence)
        if back:
            self.act(lambda s: adjudication.release(s, token.item, token.fence, token.who))
            if holds:
                known.let_go()
            return
        own = token.who in [one.who for one in known.live if one.kind != "adjudication"]
        mine = next((o for o in known.live if (o.who, o.kind, o.said) == (token.who, "adjudication", word)), None)

        def settle(session: Session) -> tuple[int, bool]:
            found, was = adjudication.settle(
                session, token.item, token.fence, token.who, said(word), "see 2.1", alone=alone
            )
            return found.id or 0, was

        if mine:
            assert self.act(settle) == (mine.id, own)
        elif holds and (alone or not own):
            made, was = self.act(settle)
            assert was == own
            known.past.append(Spoken(made, token.who, "adjudication", word, True, stands=True))
            known.state = "resolved"
            known.let_go()
        else:
            with pytest.raises(Conflict):
                self.act(settle)

    @precondition(lambda self: any(x.state == "resolved" for x in self.items.values()))
    @rule(data=st.data())
    def makes_gold(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from([i for i, x in self.items.items() if x.state == "resolved"]))
        self.act(lambda s: gold.from_reviews(s, self.batch, "dot", items=[item]))
        next(one for one in self.items[item].past if one.stands).gold = True

    # --- time and death -----------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1, 59, 60]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.time += timedelta(seconds=seconds)

    @rule(who=st.sampled_from(READERS))
    def forgets(self, who: str) -> None:
        """A client is killed, and knows nothing of what it held."""
        self.tokens = [token for token in self.tokens if token.who != who]

    @rule(data=st.data(), who=st.sampled_from(READERS))
    def the_server_dies_before_the_commit(self, data: st.DataObject, who: str) -> None:
        item = data.draw(st.sampled_from(list(self.items)))
        fence = self.items[item].fence
        past = [one.id for one in self.items[item].past if one.who == who]
        acts: list[Callable[[Session], Any]] = [
            lambda s: review.next_item(s, who, lease_seconds=LEASE, batch=self.batch),
            lambda s: review.resolve(s, item, fence, who, said("positive")),
            lambda s: review.flag(s, item, fence, who, "?"),
            lambda s: bulk.settle(s, list(self.items), who),
            lambda s: adjudication.claim(s, item, who, LEASE, alone=True),
            *(lambda s, one=one: undo.one(s, one, who, LEASE) for one in past[-1:]),
        ]
        act = data.draw(st.sampled_from(acts))

        def dying(session: Session) -> None:
            with suppress(ServiceError):
                act(session)
            raise CrashError

        with pytest.raises(CrashError):
            self.act(dying)

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def the_tables_say_the_same(self) -> None:
        with db.read(self.engine) as session:
            rows = session.exec(select(Item).where(Item.batch_id == self.batch)).all()
            past = review.history(session, list(self.items))
            counted = batches.counts(session, self.batch)
        for row in rows:
            known = self.items[row.id or 0]
            assert (row.state, row.fence, row.answers) == (known.state, known.fence, len(known.answers))
            assert (row.lease_owner, row.lease_until) == (known.owner, known.until)
            assert row.read_by == (known.answers[0].who if known.waits and known.answers else None)
            found = [(r.id, r.reviewer, r.kind, r.stands, r.withdrawn_at is not None) for r in past[row.id or 0]]
            assert found == [(o.id, o.who, o.kind, o.stands, o.withdrawn) for o in known.past]
            standing = [one for one in known.past if one.stands]
            assert len(standing) == (known.state == "resolved")
            # An answer stands, agrees with what does, is overruled by a lead, is the first of two, or was taken back.
            decided = known.state == "adjudication" or any(one.kind == "adjudication" for one in known.live)
            for one in known.answers:
                waits = known.waits and len(known.answers) < known.readers
                assert one.stands or decided or waits or one.said == standing[0].said
        assert sum(counted.values()) == len(self.items)
        assert counted == {s: [x.state for x in self.items.values()].count(s) for s in State}

    def teardown(self) -> None:
        """Nothing is lost: whatever happened, the rest can be settled; and the ledger tells the whole story."""
        self.clock.time += timedelta(seconds=LEASE)
        with db.begin(self.engine) as session:
            for who in ("zoe", "yan"):
                while task := review.next_item(session, who, lease_seconds=LEASE, batch=self.batch):
                    review.resolve(session, task.item, task.fence, who, said(PROPOSED))
            for one in adjudication.listing(session).rows:
                if one.item in self.items:
                    self.decide(session, one.item)
        with db.read(self.engine) as session:
            rows = session.exec(select(Item).where(Item.batch_id == self.batch)).all()
            past = review.history(session, list(self.items))
            subjects = [f"item:{item}" for item in self.items]
            ours = select(LedgerEntry).where(col(LedgerEntry.subject).in_(subjects))
            lines = session.exec(ours.order_by(col(LedgerEntry.number))).all()
        for row in rows:
            assert row.state == State.resolved
            self.check_ledger(row, past[row.id or 0], [line for line in lines if line.subject == f"item:{row.id}"])

    def decide(self, session: Session, item: int) -> None:
        held = adjudication.claim(session, item, "xia", LEASE)
        adjudication.settle(session, item, held.fence, "xia", said("positive"), "so be it")

    def check_ledger(self, row: Item, past: list[Review], lines: list[LedgerEntry]) -> None:
        state = ledger.digest({"state": self.items[row.id or 0].base, "answers": 0, "reviews": []})
        for line in lines:
            assert line.before == state
            assert line.sha256 == ledger.chained(line)
            state = line.after
        assert state == ledger.digest(review.recorded(row, past))
        settled = [line.who for line in lines if line.action in ("review.settle", "review.bulk", "adjudication.settle")]
        assert settled == [one.reviewer for one in past if one.kind != "flag"]
        assert [line.action for line in lines].count("review.undo") == sum(one.withdrawn_at is not None for one in past)

    # --- the model ----------------------------------------------------------------------------------------------------

    def token(self, data: st.DataObject) -> Token:
        return data.draw(st.sampled_from(self.tokens[-8:]))

    def stale(self) -> list[Token]:
        held = {(i, x.owner): x.fence for i, x in self.items.items() if x.waits and x.until is not None}
        return [token for token in self.tokens if token.fence < held.get((token.item, token.who), 0)]

    def acts(self) -> list[str]:
        """In the order in which they were done: their names are random, and a schedule must be repeatable."""
        said = sorted((one for known in self.items.values() for one in known.past), key=lambda one: one.id)
        return list(dict.fromkeys(one.bulk for one in said if one.bulk))

    def may_take_back(self, known: Known, one: Spoken) -> bool:
        later = known.live[-1:] != [one]
        theirs = known.owner == one.who or self.free(known)
        golden = any(other.gold for other in known.live)
        return not (one.withdrawn or one.kind == "adjudication" or later or golden) and theirs

    def taken_back(self, item: int, one: Spoken) -> None:
        known = self.items[item]
        one.withdrawn = True
        for other in known.past:
            other.stands = False
        known.state = known.base
        known.fence += 1


def test_whatever_happens_each_item_is_settled_exactly_once(quick: Engine, clock: Clock) -> None:
    machine: Any = lambda: Desk(quick, clock)  # noqa: E731 - typed as a class, where a function serves
    chosen = settings(
        max_examples=SCHEDULES, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(machine, settings=chosen)

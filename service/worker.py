"""The worker: claims items, has the engine label them, decides, stores; again and again until it is told to stop.

Chunks overlap so that the engine's queue never runs dry, and no transaction is open while the engine runs. What is
finished is stored within a second, not at the end of its chunk: a straggler holds up nobody, and a crash costs little.

Whose fault is it when the engine gives no answer? Where it answers neither its canary nor any item of a chunk of
several, the engine is down: the items go back uncounted, the worker waits for it, ever longer, and then tries one
chunk alone. Otherwise the items are to blame, and the attempt counts; also where the engine goes down again under the
chunk that it was tried with. So an outage costs an item nothing, or one attempt where the next comes at once, and yet
a text that brings the engine down each time ends in review.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine as Database
from sqlmodel import Session, col, select

from service import db, prompt, queue, route, standards
from service.annotate import Annotated, Failure, Plan, annotate
from service.confidence import calibrated
from service.engine import Engine
from service.errors import EngineError, Invalid, ServiceError, Unavailable
from service.labels import Labels, from_row
from service.measure import measured
from service.models import GoldItem
from service.queue import ATTEMPTS, Claim, Claimed, Result
from service.route import Code, Decision, Evidence, Measured, Outcome, Policy, Reason, Standard
from service.schema import Schema
from service.settings import Settings

log = logging.getLogger(__name__)

Annotate = Callable[[Sequence[str], Plan, Engine], AsyncIterator[tuple[int, Annotated | Failure]]]

STORE_SECONDS = 1.0  # how long a finished item waits for others to be stored with
GRACE_SECONDS = 5.0  # how long running chunks may go on after `stop`
CANARY_SECONDS = 30.0  # an engine that takes longer to answer its canary is down
IDLE_SECONDS = (0.02, 0.5)  # between looks into an empty queue: first, longest
RETRY_SECONDS = (0.5, 30.0)  # between tries while engine or database is down: first, longest

_sleepers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}


def wake() -> None:
    """Have all workers of this process look into their queues now. From any thread; right after work is committed."""
    for event, loop in list(_sleepers.items()):
        loop.call_soon_threadsafe(event.set)


async def work(
    owner: str,
    database: Database,
    engine: Engine,
    settings: Settings,
    prompts: Path,
    stop: asyncio.Event,
    annotate: Annotate = annotate,
) -> None:
    """Work until `stop` is set; then finish or give back what is held, within GRACE_SECONDS.

    owner: names the process in the queue; workers of one process share it, as they die together (`queue.claim`).
    prompts: the folder of prompt files. Outages of engine and database are waited for, and logged; they raise nothing.
    """
    worker = _Worker(owner, database, engine, settings, prompts, annotate)
    async with listening(worker.news, stop):
        await worker.run(stop)


@asynccontextmanager
async def listening(news: asyncio.Event, stop: asyncio.Event) -> AsyncIterator[None]:
    """`news` is set at every `wake`, and when `stop` is."""
    _sleepers[news] = asyncio.get_running_loop()
    relay = asyncio.create_task(_relay(stop, news))
    try:
        yield
    finally:
        relay.cancel()
        del _sleepers[news]


async def _relay(stop: asyncio.Event, news: asyncio.Event) -> None:
    await stop.wait()
    news.set()


@dataclass(slots=True, eq=False)
class _Chunk:
    """One claim on its way through the engine.

    finished: what is to be stored. failed: what the engine gave no answer to, by item id. waiting: not answered yet.
    """

    claim: Claim
    trial: bool  # ran alone, right after the engine had come back
    outages: int  # of the worker, when the chunk began
    renewed: float
    waiting: dict[int, Claimed] = field(init=False)
    finished: list[Result] = field(default_factory=list)
    failed: dict[int, Failure] = field(default_factory=dict)
    down: bool = False  # the engine did not answer its canary either
    lost: bool = False  # none of the items is the claim's any more

    def __post_init__(self) -> None:
        self.waiting = {item.id: item for item in self.claim.items}


@dataclass(frozen=True, slots=True)
class _Brief:
    """What is needed to annotate the items of a claim and to decide on them. gold: labels, or why they do not fit."""

    plan: Plan
    policy: Policy
    gold: Mapping[int, Labels | str]
    measured: Mapping[tuple[str, str], Measured]
    standard: Standard | None


class _Worker:
    def __init__(
        self, owner: str, database: Database, engine: Engine, settings: Settings, prompts: Path, annotate: Annotate
    ) -> None:
        self.owner = owner
        self.database = database
        self.engine = engine
        self.settings = settings
        self.prompts = prompts
        self.annotate = annotate
        self.news = asyncio.Event()  # something changed: look into the queue
        self.waiting = 0  # items claimed and not answered by the engine
        self.full = False  # the main loop waits for room
        self.away = False  # the database did not answer the last claim
        self.outages = 0
        self.setbacks = 0  # outages since a chunk went well
        self.down = True  # until the engine has answered its canary
        self.trial = False
        self.ends: float | None = None  # when running chunks must end, after `stop`
        self.plans: dict[tuple[str, str, str | None], Plan] = {}  # by schema and prompt, their recipe in its table

    async def run(self, stop: asyncio.Event) -> None:
        running: set[asyncio.Task[None]] = set()
        pause = IDLE_SECONDS[0]
        while not stop.is_set():
            self.news.clear()
            if self.down and not running:
                await self._wait_for_engine(stop)
                continue
            chunk = await self._next(running)
            if chunk is not None:
                task = asyncio.create_task(self._run(chunk))
                running.add(task)
                task.add_done_callback(running.discard)
                task.add_done_callback(lambda _: self.news.set())
                pause = IDLE_SECONDS[0]
                continue
            await self._news(None if self.full else pause)
            pause = min(pause * 2, RETRY_SECONDS[1] if self.away else IDLE_SECONDS[1])
        self.ends = time.monotonic() + GRACE_SECONDS
        if running:
            await asyncio.wait(running)

    async def _next(self, running: set[asyncio.Task[None]]) -> _Chunk | None:
        """The next chunk; None where there is no room for one or nothing to claim."""
        room = self.waiting < max(1, self.engine.in_flight) + self.settings.chunk
        self.full = not room or self.down or (self.trial and bool(running))
        if self.full:
            return None
        try:
            claim = await asyncio.to_thread(self._claim)
        except Unavailable as error:
            self.away = True
            log.warning("no claim: %s", error)
            return None
        self.away = False
        if claim is None:
            return None
        self.waiting += len(claim.items)
        return _Chunk(claim, self.trial, self.outages, time.monotonic())

    async def _news(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.news.wait()
        except TimeoutError:
            pass

    async def _wait_for_engine(self, stop: asyncio.Event) -> None:
        """Return when the engine answers its canary, or on `stop`. The first time it is asked at once."""
        first, longest = RETRY_SECONDS
        tries = self.setbacks
        while not stop.is_set():
            if tries:
                await self._until(stop, min(first * 2 ** min(tries - 1, 20), longest))
            if await self._answers():
                self.down = False
                self.trial = self.setbacks > 0
                return
            tries += 1

    async def _until(self, stop: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            pass

    async def _answers(self) -> bool:
        """Whether the engine answers its canary."""
        try:
            async with asyncio.timeout(CANARY_SECONDS):
                await self.engine.ready()
        except EngineError as error:
            log.warning("the engine is down: %s %s", error, error.hint)
            return False
        except TimeoutError:
            log.warning("the engine is down: no answer within %.0f s", CANARY_SECONDS)
            return False
        return True

    async def _run(self, chunk: _Chunk) -> None:
        """One chunk from claim to store. What goes wrong here is logged, and its leases end by themselves."""
        try:
            asking = asyncio.create_task(self._ask(chunk))
            try:
                while not asking.done():
                    await asyncio.wait({asking}, timeout=min(STORE_SECONDS, self.settings.lease_seconds / 3))
                    await self._keep(chunk)
                    if chunk.lost or (self.ends is not None and time.monotonic() > self.ends):
                        break
            finally:
                asking.cancel()
                await asyncio.wait({asking})
            await self._settle(chunk)
        except Exception as error:  # one chunk must not end the worker
            log.error("a chunk of batch %s is lost until its leases end: %s", chunk.claim.batch.id, _where(error))
        finally:
            self.waiting -= len(chunk.waiting)
            chunk.waiting.clear()

    async def _ask(self, chunk: _Chunk) -> None:
        """Through the engine. What has no answer in the end is in `failed`, or still waiting: no fault of its own."""
        try:
            brief = await asyncio.to_thread(self._brief, chunk.claim)
        except Unavailable as error:
            log.warning("nothing annotated: %s", error)
            return
        except ServiceError as error:  # no such prompt, or one that does not fit the schema: no try will help
            for item in chunk.claim.items:
                self._answered(chunk, item)
                chunk.finished.append(Result(item.id, _refusal(Failure(Code.failed, str(error)))))
            return
        engine_failed = await self._annotate(chunk, brief)
        if chunk.failed and engine_failed:
            none = len(chunk.failed) == len(chunk.claim.items) > 1
            chunk.down = none or self.down or self.outages != chunk.outages or not await self._answers()
        self._judge(chunk)  # at once: the other chunks that the same outage hits are to know of it

    async def _annotate(self, chunk: _Chunk, brief: _Brief) -> bool:
        """Fill `finished` and `failed`; whether the engine may be to blame for the failures, and not our own code."""
        items = chunk.claim.items
        failure = Failure(Code.failed, "no answer", retryable=True)
        engine_failed = True
        try:
            async for index, outcome in self.annotate([item.text for item in items], brief.plan, self.engine):
                item = items[index]
                if isinstance(outcome, Failure) and outcome.retryable:
                    chunk.failed[item.id] = outcome
                else:
                    chunk.finished.append(_result(item, outcome, brief, self.settings.seed))
                self._answered(chunk, item)
        except EngineError as error:
            failure = Failure(Code.failed, str(error), retryable=True)
        except Exception as error:  # failure is data
            log.error("annotating batch %s: %s", chunk.claim.batch.id, _where(error))
            failure = Failure(Code.failed, _where(error), retryable=True)
            engine_failed = False
        for item in list(chunk.waiting.values()):
            chunk.failed[item.id] = failure
            self._answered(chunk, item)
        return engine_failed

    def _answered(self, chunk: _Chunk, item: Claimed) -> None:
        del chunk.waiting[item.id]
        self.waiting -= 1
        if self.full:
            self.news.set()

    async def _keep(self, chunk: _Chunk) -> None:
        """Store what is finished, and renew the leases where a third of their time is over."""
        results, chunk.finished = chunk.finished, []
        try:
            if results:
                await asyncio.to_thread(self._store, chunk.claim, results)
                results = []
            if time.monotonic() - chunk.renewed > self.settings.lease_seconds / 3:
                chunk.renewed = time.monotonic()
                chunk.lost = await asyncio.to_thread(self._renew, chunk.claim) == 0
        except Unavailable as error:
            log.warning("not stored yet: %s", error)
            chunk.finished = results + chunk.finished

    async def _settle(self, chunk: _Chunk) -> None:
        """Store and give back all that is left of a chunk, however long the database is away."""
        counted = bool(chunk.failed) and (chunk.trial or not chunk.down)
        for item in chunk.claim.items:
            if counted and item.id in chunk.failed and item.attempt >= ATTEMPTS:
                chunk.finished.append(Result(item.id, _refusal(chunk.failed.pop(item.id))))
        pause = RETRY_SECONDS[0]
        while True:
            await self._keep(chunk)
            try:
                if chunk.failed or chunk.waiting:
                    await asyncio.to_thread(self._release, chunk, counted)
            except Unavailable as error:
                log.warning("not given back yet: %s", error)
            else:
                if not chunk.finished:
                    return
            if self.ends is not None and time.monotonic() > self.ends:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS[1])

    def _judge(self, chunk: _Chunk) -> None:
        """What the chunk says of the engine. An outage that several chunks met is one."""
        if not chunk.down:
            self.trial, self.setbacks = False, 0
        elif self.outages == chunk.outages:
            self.outages += 1
            self.setbacks += 1
            self.down = True

    def _claim(self) -> Claim | None:
        with db.begin(self.database) as session:
            return queue.claim(session, self.owner, self.settings.chunk, self.settings.lease_seconds)

    def _renew(self, claim: Claim) -> int:
        with db.begin(self.database) as session:
            return queue.renew(session, claim, self.settings.lease_seconds)

    def _store(self, claim: Claim, results: Sequence[Result]) -> None:
        with db.begin(self.database) as session:
            stored = queue.store(session, claim, results)
        if stored < len(results):
            log.info("%d late results of batch %s dropped", len(results) - stored, claim.batch.id)

    def _release(self, chunk: _Chunk, counted: bool) -> None:
        with db.begin(self.database) as session:
            queue.release(session, chunk.claim, list(chunk.failed), counted)
            queue.release(session, chunk.claim, list(chunk.waiting), count_attempt=False)

    def _brief(self, claim: Claim) -> _Brief:
        plan = self._plan(claim)
        with db.read(self.database) as session:
            gold = _gold(session, claim, plan.schema) if claim.batch.gold else {}
            known = measured(session, plan.sha256, claim.batch.gold)
            standard = standards.in_force(session, plan.sha256)
        return _Brief(plan, Policy.model_validate(claim.batch.policy), gold, known, standard)

    def _plan(self, claim: Claim) -> Plan:
        names = (claim.batch.prompt, claim.batch.second_prompt)
        key = (claim.batch.schema_sha256, *names)
        if key not in self.plans:
            schema = Schema.model_validate(claim.batch.schema)
            first, *second = (prompt.load(self.prompts, name) for name in names if name)
            plan = Plan(schema, first, self.engine.identity, *second)
            with db.begin(self.database) as session:
                queue.keep_recipe(session, plan.sha256, plan.body)
            self.plans[key] = plan
        return self.plans[key]


def _result(item: Claimed, outcome: Annotated | Failure, brief: _Brief, seed: int) -> Result:
    readings = route.readings(brief.policy, seed, item.batch_id, item.position)
    if isinstance(outcome, Failure):
        return Result(item.id, _refusal(outcome), readings=readings)
    gold = brief.gold.get(item.id)
    labels = calibrated(outcome.labels, brief.standard) if brief.standard else outcome.labels
    evidence = Evidence(
        draw=route.lot(seed, item.batch_id, item.position),
        gold=gold if isinstance(gold, Labels) else None,
        second=outcome.second,
        measured=brief.measured,
        truncated=outcome.truncated,
        standard=brief.standard,
    )
    decision = route.decide(labels, brief.policy, evidence)
    if isinstance(gold, str):
        mismatch = Reason(code=Code.gold_mismatch, detail=gold)
        earlier = decision.reasons if decision.outcome is Outcome.review else ()
        changed = {"outcome": Outcome.review, "reasons": (*earlier, mismatch), "inclusion": None}
        decision = decision.model_copy(update=changed)
    return Result(item.id, decision, labels, brief.plan.sha256, readings)


def _refusal(failure: Failure) -> Decision:
    return route.refuse(failure.code, failure.detail)


def _gold(session: Session, claim: Claim, schema: Schema) -> dict[int, Labels | str]:
    """Gold labels by item id, for the items whose very text is in the gold set; of equal texts the one with our ref."""
    shas = {item.text_sha256 for item in claim.items}
    query = select(GoldItem).where(GoldItem.gold == claim.batch.gold, col(GoldItem.text_sha256).in_(shas))
    rows = session.exec(query.order_by(col(GoldItem.id).desc())).all()
    by_text = {row.text_sha256: row for row in rows}
    by_ref = {(row.text_sha256, row.ref): row for row in rows}
    found: dict[int, Labels | str] = {}
    for item in claim.items:
        row = by_ref.get((item.text_sha256, item.ref)) or by_text.get(item.text_sha256)
        if row is None:
            continue
        try:
            found[item.id] = from_row(row.labels, item.text, schema)
        except Invalid as error:
            found[item.id] = f"the gold labels do not fit the schema: {error}"
    return found


def _where(error: BaseException) -> str:
    """Kind and place of an error, without its message and values: these may quote the text."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"

"""The evaluator: runs the evaluations that were asked for, one at a time, beside the workers.

A run has a thread with an event loop of its own: measuring takes seconds, and requests must not wait for it. Only the
engine is asked on the service's loop, for a few texts at a time, so that batches go on. What the engine answered is
kept as it comes (`readings.py`): whoever takes a run up after a stop, a crash or an outage asks for the rest alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sqlalchemy import Engine as Database
from sqlmodel import Session

from service import comparison, db, evaluations, findings, gold, prompt, standards
from service.annotate import Failure, Plan
from service.engine import Completion, Engine, Request
from service.errors import EngineError, Invalid, ServiceError, Unavailable
from service.evaluation import Evaluation, evaluate, sample
from service.evaluations import Held
from service.failures import where
from service.sets import Gold
from service.settings import Settings
from service.worker import listening

log = logging.getLogger(__name__)

SHARE = 4  # of the requests that the engine usefully holds, one in so many is an evaluation's
PASSES = 2  # over texts that the engine gave no answer to, though it is up
LOOK_SECONDS = 1.0  # between notes of how far a run is
IDLE_SECONDS = (0.1, 2.0)  # between looks for something to run: first, longest
RETRY_SECONDS = (0.5, 30.0)  # between tries while the database is down: first, longest

Answer = TypeVar("Answer")
_End = Callable[[Session, Held], bool]


class Stopped(Exception):
    """The run was told to stop."""


async def work(owner: str, database: Database, engine: Engine, settings: Settings, stop: asyncio.Event) -> None:
    """Run what is queued until `stop` is set; then give back what is held. Outages are waited for; nothing raises."""
    news = asyncio.Event()
    pause = IDLE_SECONDS[0]
    async with listening(news, stop):
        while not stop.is_set():
            news.clear()
            held = await asyncio.to_thread(_claim, owner, database, settings)
            if held is not None:
                await _Run(held, database, engine, settings, asyncio.get_running_loop()).live(stop)
                pause = IDLE_SECONDS[0]
                continue
            try:
                await asyncio.wait_for(news.wait(), pause)
                pause = IDLE_SECONDS[0]
            except TimeoutError:
                pause = min(pause * 2, IDLE_SECONDS[1])


def _claim(owner: str, database: Database, settings: Settings) -> Held | None:
    try:
        with db.begin(database) as session:
            return evaluations.claim(session, owner, settings.lease_seconds)
    except Unavailable as error:
        log.warning("no evaluation claimed: %s", error)
        return None


class _Sparing:
    """The engine as the thread of a run sees it: asked on the service's event loop, for few texts at a time."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.identity = engine.identity
        self.in_flight = max(1, engine.in_flight // SHARE)
        self._engine = engine
        self._loop = loop
        self._asked: Future[Any] | None = None
        self._stopped = False

    def stop(self) -> None:
        """Have what is asked now, and whatever is asked later, raise Stopped."""
        self._stopped = True
        if self._asked is not None:
            self._asked.cancel()

    async def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Completion | EngineError]]:
        for start in range(0, len(requests), self.in_flight):
            for index, answer in await self._there(self._answers(requests[start : start + self.in_flight])):
                yield start + index, answer

    async def ready(self) -> None:
        await self._there(self._engine.ready())

    async def close(self) -> None:
        raise NotImplementedError("it is the service's engine")

    async def _answers(self, requests: Sequence[Request]) -> list[tuple[int, Completion | EngineError]]:
        return [answer async for answer in self._engine.complete(requests)]

    async def _there(self, asked: Coroutine[Any, Any, Answer]) -> Answer:
        self._asked = asyncio.run_coroutine_threadsafe(asked, self._loop)
        if self._stopped:  # looked at after it can be cancelled, so that a stop in between is not missed
            self._asked.cancel()
        try:
            return await asyncio.wrap_future(self._asked)
        except (asyncio.CancelledError, CancelledError):
            raise Stopped from None


@dataclass(slots=True)
class _Progress:
    """Written by the thread of a run, read by the service's loop. Texts, each prompt's counted."""

    done: int = 0
    total: int = 0

    def advance(self) -> None:
        self.done += 1


class _Run:
    """One run from claim to end. `live` is of the service's loop; what is called in a thread says so."""

    def __init__(
        self, held: Held, database: Database, engine: Engine, settings: Settings, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.held = held
        self.database = database
        self.settings = settings
        self.engine = _Sparing(engine, loop)
        self.progress = _Progress()

    async def live(self, stop: asyncio.Event) -> None:
        """Run it and store what came of it, or give it back. Where `stop` cuts it off, its lease ends by itself."""
        measuring = asyncio.create_task(asyncio.to_thread(self._measure))
        halt = asyncio.create_task(stop.wait())
        try:
            await self._watch(measuring, halt)
            end = await self._end(measuring)
            await self._store(end, stop)
        except Exception as error:  # one run must not end the evaluator
            log.error("evaluation %s is left until its lease ends: %s", self.held.id, where(error))
        finally:
            self.engine.stop()
            halt.cancel()

    async def _watch(self, measuring: asyncio.Task[Any], halt: asyncio.Task[Any]) -> None:
        """Keep the lease and note how far it is, until it is measured; stop it on `halt`, or when the lease is lost."""
        pause = min(LOOK_SECONDS, self.settings.lease_seconds / 3)
        while True:
            await asyncio.wait({measuring, halt}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            if measuring.done():
                return
            if halt.done() or not await asyncio.to_thread(self._renew):
                self.engine.stop()
                await asyncio.wait({measuring})
                return

    async def _end(self, measuring: asyncio.Task[tuple[dict[str, Any], dict[str, Any] | None]]) -> _End:
        """What is to be stored of it."""
        try:
            document, standard = await measuring
        except Stopped:
            return evaluations.release
        except Unavailable as error:
            log.warning("evaluation %s is given back: %s", self.held.id, error)
            return evaluations.release
        except ServiceError as error:
            reason = f"{error.message} {getattr(error, 'hint', '')}".strip()
        except Exception as error:  # failure is data
            log.error("evaluation %s: %s", self.held.id, where(error))
            reason = f"it broke: {where(error)}"
        else:
            total = self.progress.total
            return lambda session, held: evaluations.finish(session, held, total, document, standard)
        return lambda session, held: evaluations.fail(session, held, reason)

    async def _store(self, end: _End, stop: asyncio.Event) -> None:
        """However long the database is away, unless the service stops."""
        pause = RETRY_SECONDS[0]
        while True:
            try:
                kept = await asyncio.to_thread(self._write, end)
            except Unavailable as error:
                log.warning("evaluation %s is not stored yet: %s", self.held.id, error)
                if stop.is_set():
                    return
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_SECONDS[1])
            else:
                if not kept:
                    log.info("evaluation %s was cancelled, or is another's by now: its result is dropped", self.held.id)
                return

    def _write(self, end: _End) -> bool:
        with db.begin(self.database) as session:
            return end(session, self.held)

    def _renew(self) -> bool:
        """In a thread. While the database is away nobody else can take the run."""
        done, total = self.progress.done, self.progress.total
        try:
            with db.begin(self.database) as session:
                return evaluations.renew(session, self.held, done, total, self.settings.lease_seconds)
        except Unavailable as error:
            log.warning("the lease of evaluation %s is not renewed: %s", self.held.id, error)
            return True

    def _measure(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """In a thread: the document, and the standard that was made, as EvaluationRun keeps them."""
        held = self.held
        with db.read(self.database) as session:
            everything = gold.labelled(session, held.gold, held.schema, held.gold_version)
        if not any(one.labels.choices or one.labels.mentions for one in everything):
            raise Invalid(f"gold: no text of {held.gold!r} is labelled for a task of the schema {held.schema.name}")
        chosen = sample(everything, held.limit)
        self.progress.total = len(chosen) * len(held.prompts)
        found = {name: asyncio.run(self._read(name, chosen)) for name in held.prompts}
        if len(found) > 1:
            return comparison.document(found, held.gold, everything), None
        return self._found(found[held.prompts[0]], everything)

    async def _read(self, name: str, chosen: Sequence[Gold]) -> Evaluation:
        """In a thread: what one prompt says. Raises EngineError where the engine is down, Invalid where no text has
        labels."""
        plan = Plan(self.held.schema, prompt.load(self.settings.prompts, name), self.engine.identity)
        before, passes = self.progress.done, 1
        found = first = await evaluate(chosen, plan, self.engine, self.database, self.progress.advance)
        while passes < PASSES and any(isinstance(one, Failure) and one.retryable for one in found.answers):
            await self.engine.ready()
            self.progress.done, passes = before, passes + 1
            again = await evaluate(chosen, plan, self.engine, self.database, self.progress.advance)
            seconds, tokens = found.seconds + again.seconds, found.tokens + again.tokens
            found = replace(again, cached=first.cached, seconds=seconds, tokens=tokens)
        if not found.pairs:
            reason = next(one.detail for one in found.answers if isinstance(one, Failure))
            raise Invalid(f"{name}: no text could be labelled: {reason}")
        return found

    def _found(self, found: Evaluation, everything: Sequence[Gold]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """In a thread: what an evaluation says, and what can be promised where that was asked."""
        held = self.held
        with db.read(self.database) as session:
            document = findings.document(found, held.gold, everything, session)
        if not held.errors:
            return document, None
        identity = {"name": held.gold, "sha256": document["gold"]["sha256"]}
        made = standards.make(held.schema, found.gold, found.answers, held.errors, held.confidence, identity)
        standard = {"recipe": found.plan.sha256, "body": made.body(found.plan.body, identity), "lacking": made.lacking}
        return findings.promised(document, found, made, held.work), standard

"""What runs beside the requests: the engine, its canary, the workers and the evaluator."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine as Database

from service import batches, db, evaluator, prompt, schema, worker
from service.auth import Door
from service.engine import Engine, open_engine
from service.errors import Conflict, EngineError, Invalid, ServiceError
from service.failures import where
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger(__name__)

CHECK_SECONDS = 600.0  # between canaries while all is well
DOUBT_SECONDS = 5.0  # between canaries when the engine failed a request, at least
RETRY_SECONDS = (0.5, 30.0)  # between tries while the engine is not ready: first, longest


class Running:
    """One service process. reason: why the engine is not ready, None when it is; no label is made while it is not.

    Raises ServiceError where settings, keys or prompts cannot work: before anything listens.
    """

    def __init__(self, settings: Settings, engine: Engine | None, database: Database | None) -> None:
        self.settings = settings
        self.door = Door(settings)
        prompts = prompt.load_all(settings.prompts)
        if settings.prompt not in prompts:
            raise Invalid(f"CONCORD_PROMPT={settings.prompt}: there is {', '.join(prompts) or 'no prompt'}")
        self.reason: EngineError | None = EngineError("the engine is starting", retryable=True, hint="ask again soon")
        self.metrics = Metrics(lambda: self._database, lambda: str(self.reason) if self.reason else None)
        self.metrics.on_failure = self._doubt
        self._engine = engine
        self._own_engine = engine is None
        self._database = database
        self._own_database = database is None
        self.stopping = asyncio.Event()  # the server is about to stop: streams without an end of their own end now
        self._doubted = asyncio.Event()
        self._stop = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []

    @property
    def database(self) -> Database:
        if self._database is None:
            raise RuntimeError("the service is not running: its lifespan has not begun")
        return self._database

    def engine(self) -> Engine:
        """The engine, ready to label. Raises EngineError with the reason while it is not."""
        if self.reason is not None:
            raise EngineError(self.reason.message, retryable=self.reason.retryable, hint=self.reason.hint)
        if self._engine is None:
            raise EngineError("the engine is not open", retryable=True)
        return self._engine

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self._prepare)
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.wait({watch})
            await self._stop_workers()
            if self._own_engine and self._engine is not None:
                await self._engine.close()
            if self._own_database:
                self.database.dispose()

    def _prepare(self) -> None:
        if self._database is None:
            self._database = db.connect(self.settings.database_url)
        db.migrate(self._database)
        self.door.unlock(self._database)
        for path in sorted(self.settings.schemas.glob("*.yaml")):
            self._register(path)

    def _register(self, path: Path) -> None:
        shipped = schema.load(path)
        try:
            with db.begin(self.database) as session:
                batches.register(session, shipped, who="service")
        except Conflict as error:
            raise ServiceError(
                f"{path}: the schema {shipped.name!r} version {shipped.version} is in the database with other content. "
                f"Raise `version` in the file, or restore the file: labels already made refer to the old content."
            ) from error

    def _doubt(self) -> None:
        self._doubted.set()

    async def _watch(self) -> None:
        """Open the engine, prove its canary, start the workers; prove it again from time to time, and when in doubt."""
        pause = RETRY_SECONDS[0]
        while True:
            self.reason = await self._check()
            if self.reason is None:
                self._start_workers()
                pause = RETRY_SECONDS[0]
                await self._until_doubted()
                continue
            if self._workers and not self.reason.retryable:
                # The engine answers, but not as it must. One that is merely away the workers wait for by themselves:
                # they know which text it went down under, and must not forget it.
                await self._stop_workers()
            log.warning("the engine is not ready: %s %s", self.reason, self.reason.hint)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_SECONDS[1])

    async def _check(self) -> EngineError | None:
        try:
            if self._engine is None:
                self._engine = await asyncio.to_thread(open_engine, self.settings)
            await self._engine.ready()
        except EngineError as error:
            return error
        except Exception as error:
            log.error("the engine failed its check: %s", where(error))
            return EngineError(f"the engine failed its check: {type(error).__name__}", retryable=True)
        return None

    async def _until_doubted(self) -> None:
        self._doubted.clear()
        await asyncio.sleep(DOUBT_SECONDS)
        try:
            async with asyncio.timeout(CHECK_SECONDS - DOUBT_SECONDS):
                await self._doubted.wait()
        except TimeoutError:
            pass

    def _start_workers(self) -> None:
        if self._engine is None or self._workers:
            return
        self._stop = asyncio.Event()
        owner = f"{socket.gethostname()[:50]}:{os.getpid()}:{uuid4().hex[:8]}"
        self._workers = [
            asyncio.create_task(
                worker.work(
                    owner,
                    self.database,
                    self._engine,
                    self.settings,
                    self.settings.prompts,
                    self._stop,
                    self.metrics.annotate,
                )
            )
            for _ in range(self.settings.workers)
        ]
        evaluating = evaluator.work(owner, self.database, self._engine, self.settings, self._stop)
        self._workers.append(asyncio.create_task(evaluating))

    async def _stop_workers(self) -> None:
        """They give back what they hold. What does not end in time is cut off, and its leases end by themselves."""
        self._stop.set()
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=worker.GRACE_SECONDS + 2)
            for task in late:
                task.cancel()
            ended = await asyncio.gather(*self._workers, return_exceptions=True)
            for error in ended:
                if isinstance(error, Exception):
                    log.error("a worker broke: %s", where(error))
        self._workers = []

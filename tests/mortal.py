"""A worker process for the tests that kill it: the real worker, its engine's answers depend on the text alone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence

from service import db, worker
from service.annotate import Annotated, Failure, Plan
from service.engine import Completion, Engine, Identity, Request
from service.settings import Settings
from tests.databases import sure


class Fixed:
    """seconds: what one text takes; the texts of a chunk one after the other. The text `poison` kills the process."""

    in_flight = 16

    def __init__(self, name: str, seconds: float) -> None:
        self.identity = Identity("fixed", name)
        self.seconds = seconds

    async def ready(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Completion]]:
        raise AssertionError("it answers in annotate")
        yield

    async def annotate(
        self, texts: Sequence[str], plan: Plan, engine: Engine
    ) -> AsyncIterator[tuple[int, Annotated | Failure]]:
        for index, text in enumerate(texts):
            await asyncio.sleep(self.seconds)
            if text == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            yield index, Annotated(sure(text))


def live(url: str, owner: str, lease_seconds: float, seconds: float, model: str = "fixed") -> None:
    """Work until killed."""
    settings = Settings(chunk=9, lease_seconds=lease_seconds)
    engine = Fixed(model, seconds)
    asyncio.run(
        worker.work(
            owner, db.connect(url), engine, settings, settings.prompts, asyncio.Event(), annotate=engine.annotate
        )
    )

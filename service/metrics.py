"""What Prometheus reads. Labels are routes, states, outcomes, schemas, tasks, recipes: no text, no person, no key."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine as Database
from sqlalchemy import func
from sqlmodel import Session, col, select

from service import audit, db
from service.annotate import Annotated, Failure, Plan, annotate
from service.audit import Stream
from service.engine import Engine
from service.errors import Unavailable
from service.models import Batch, Item, SchemaVersion, State

if TYPE_CHECKING:
    from eval.audit import RunningError

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
COUNT_SECONDS = 15.0  # for which the counts of the tables are good: a count reads an index from end to end
ALARM_SECONDS = 300.0  # for which alarms are good: they read what the model said of 1,500 items
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


disable_created_metrics()  # one series more for each, of no use here


class Metrics:
    """One registry an app. `on_failure` is called whenever the engine failed where it should not have."""

    def __init__(self, database: Callable[[], Database | None], reason: Callable[[], str | None]) -> None:
        self.registry = CollectorRegistry()
        self.on_failure: Callable[[], None] = lambda: None
        self._requests = Histogram(
            "concord_request_seconds",
            "Duration of requests",
            ("method", "route", "status"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._texts = Counter(
            "concord_texts", "Texts that came back from the engine, by outcome", ("outcome",), registry=self.registry
        )
        self._tokens = Counter("concord_output_tokens", "Tokens that the engine wrote", registry=self.registry)
        self.registry.register(_Gauges(database, reason))

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        known = method if method in METHODS else "other"
        self._requests.labels(known, route, str(status or 499)).observe(seconds)  # 499: left before the answer

    async def annotate(
        self, texts: Sequence[str], plan: Plan, engine: Engine
    ) -> AsyncIterator[tuple[int, Annotated | Failure]]:
        """`annotate`, counted."""
        async for index, outcome in annotate(texts, plan, engine):
            if isinstance(outcome, Failure):
                self._texts.labels("engine_failed" if outcome.retryable else outcome.code.value).inc()
                if outcome.retryable:
                    self.on_failure()
            else:
                self._texts.labels("labelled").inc()
                self._tokens.inc(outcome.tokens)
            yield index, outcome


class _Gauges(Collector):
    """What is read off when asked: readiness, items by state, unfinished batches, the error of what was accepted, and
    the alarms that stand."""

    def __init__(self, database: Callable[[], Database | None], reason: Callable[[], str | None]) -> None:
        self._database = database
        self._reason = reason
        self._lock = threading.Lock()
        self._counted = 0.0
        self._items: dict[str, int] = {}
        self._batches = (0, 0)
        self._audits: dict[str, tuple[Stream, dict[str | None, RunningError]]] = {}
        self._looked: float | None = None
        self._alarms: dict[tuple[str, str], dict[str, int]] = {}

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("concord_ready", "Whether the engine is ready", 0 if self._reason() else 1)
        database = self._database()
        if database is None:
            return
        try:
            items, (batches, unfinished) = self._count(database)
        except Unavailable:
            return  # the counts are missing, which alerts can see; what else there is to know is still told
        by_state = GaugeMetricFamily("concord_items", "Items by state", labels=("state",))
        for state in State:
            by_state.add_metric((state.value,), items.get(state.value, 0))
        yield by_state
        yield GaugeMetricFamily("concord_batches", "Batches", batches)
        yield GaugeMetricFamily("concord_batches_unfinished", "Batches with items queued or with a worker", unfinished)
        yield from _audited(self._audits)
        yield _alarmed(self._alarms)

    def _count(self, database: Database) -> tuple[dict[str, int], tuple[int, int]]:
        with self._lock:
            if not self._items or time.monotonic() - self._counted > COUNT_SECONDS:
                with db.read(database) as session:
                    self._items = dict(session.exec(select(Item.state, func.count()).group_by(Item.state)).all())
                    open_items = col(Item.state).in_((State.queued, State.leased))
                    unfinished = select(func.count(func.distinct(Item.batch_id))).where(open_items)
                    batches = session.exec(select(func.count()).select_from(Batch)).one()
                    self._batches = (batches, session.exec(unfinished).one())
                    last = _last(session)
                    self._audits = _audits(session, last)
                    if self._looked is None or time.monotonic() - self._looked > ALARM_SECONDS:
                        self._alarms = {one: audit.alarms(session, one[1]) for one in sorted(last.items())}
                        self._looked = time.monotonic()
                self._counted = time.monotonic()
            return self._items, self._batches


def _last(session: Session) -> dict[str, str]:
    """By schema, the recipe last in use."""
    names = session.exec(select(SchemaVersion.name).distinct()).all()
    return {name: used[0] for name in names if (used := audit.recipes(session, name))}


def _audits(session: Session, last: dict[str, str]) -> dict[str, tuple[Stream, dict[str | None, RunningError]]]:
    """By schema, the audited items of its recipe and their error; only where some were drawn."""
    streams = {name: audit.stream(session, recipe) for name, recipe in sorted(last.items())}
    return {name: (found, audit.errors(found)) for name, found in streams.items() if found.drawn}


def _alarmed(alarms: dict[tuple[str, str], dict[str, int]]) -> Metric:
    meaning = "Alarms of the audit that stand, of the recipe last in use; without a series: not tested"
    standing = GaugeMetricFamily("concord_audit_alarms", meaning, labels=("schema", "recipe", "what"))
    for (schema, recipe), kinds in alarms.items():
        for what, count in kinds.items():
            standing.add_metric((schema, recipe, what), count)
    return standing


def _audited(audits: dict[str, tuple[Stream, dict[str | None, RunningError]]]) -> Iterator[Metric]:
    drawn = GaugeMetricFamily(
        "concord_audits", "Accepted items drawn for the audit, of the recipe last in use", labels=("schema", "verdict")
    )
    ends = {
        end: GaugeMetricFamily(
            f"concord_audit_error{end}",
            f"Share of wrong ones among accepted labels{meaning}; without a task: of whole items",
            labels=("schema", "task"),
        )
        for end, meaning in (("", ""), ("_low", ", least of the 95 % interval"), ("_high", ", most of the interval"))
    }
    for schema, (found, errors) in audits.items():
        for verdict, count in (
            ("counted", len(found.accepted_at)),
            ("held_back", found.held_back),
            ("left_out", found.left_out),
            ("waiting", found.waiting),
        ):
            drawn.add_metric((schema, verdict), count)
        for task, one in errors.items():
            if one.error is not None:
                for end, value in (("", one.error.value), ("_low", one.error.low), ("_high", one.error.high)):
                    ends[end].add_metric((schema, task or ""), value)
    yield from (drawn, *ends.values())

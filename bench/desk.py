"""How long the desk takes with a long queue, as a ratio to an empty one in the same run. See bench/README.md."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert, update
from sqlmodel import Session, col, select

from service import db
from service.batches import BatchCreate, submit
from service.models import Annotation, Item, ItemDecision, Recipe, Review, State, now
from service.schema import Schema
from service.settings import PROJECT, Settings

sys.path.insert(0, str(PROJECT))
from tests import databases
from tests.serving import make_app

RECIPE = "b" * 64
SCHEMA = Schema.model_validate(
    {"name": "parcels", "tasks": [{"name": "mood", "kind": "choice", "labels": ["good", "fair", "bad"]}]}
)
READ = 10_000  # of a long queue, items that the reviewer has read and a second person has not: always passed over
console = Console(width=None if Console().is_terminal else 120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--databases", nargs="+", default=["sqlite", "postgresql"])
    options = parser.parse_args()
    table = Table("database", "request", "empty p50", "p95 ms", "long p50", "p95 ms", "ratio p50", "ratio p95")
    for name in options.databases:
        with _database(name) as (empty, long):
            fill(empty, 0)
            fill(long, options.items)
            found = [measure(url, options.requests) for url in (empty, long)]
        for request in found[0]:
            short, full = (_percentiles(times[request]) for times in found)
            ratios = [f"{one / other:.2f}" for one, other in zip(full, short, strict=True)]
            table.add_row(name, request, *(f"{1000 * one:.1f}" for one in (*short, *full)), *ratios)
    console.print(table)


def fill(url: str, items: int) -> None:
    """A migrated database with so many items that wait for people, of which the first `READ` lack a second reader."""
    engine = db.connect(url)
    db.migrate(engine)
    if items:
        with db.begin(engine) as session:
            _fill(session, items)
    if items and engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")  # as the server does by itself within minutes
    engine.dispose()


def _fill(session: Session, items: int) -> None:
    texts = [f"Order {n} came {n % 7} days late, and the parcel was wet on side {n % 5}." for n in range(items)]
    new = BatchCreate.model_validate({"texts": [{"text": text} for text in texts], "schema": "parcels"})
    submit(session, "bench", "bench", new, SCHEMA, "line.v1", Settings(max_texts=items))
    session.add(Recipe(sha256=RECIPE, body={}))
    session.flush()
    ids = session.exec(select(Item.id).order_by(col(Item.id))).all()
    read = ids[: min(READ, items // 10)]
    place = 0.6 * (Item.id - ids[0]) / items
    waiting = {"state": State.review, "attempt": 1, "fence": 1, "priority": place}
    session.exec(update(Item).values(**waiting).execution_options(synchronize_session=False))
    half = update(Item).where(col(Item.id).in_(read)).values(readers=2, answers=1, read_by="local")
    session.exec(half.execution_options(synchronize_session=False))
    reasons = [{"code": "low_confidence", "task": "mood", "label": "fair", "value": 0.4, "threshold": 0.6}]
    value = {"label": "fair", "confidence": 0.4, "alternatives": [], "probability": None}
    rows = [{"item_id": one, "task": "mood", "recipe": RECIPE, "value": value, "created_at": now()} for one in ids]
    session.exec(insert(Annotation), params=rows)
    rows = [
        {"item_id": one, "recipe": RECIPE, "outcome": "review", "reasons": reasons, "created_at": now()} for one in ids
    ]
    session.exec(insert(ItemDecision), params=rows)
    said = {"reviewer": "local", "changed": False, "labels": {"mood": "fair"}, "note": "", "stands": False}
    session.exec(insert(Review), params=[{"item_id": one, "created_at": now()} | said for one in read])


def measure(url: str, requests: int) -> dict[str, list[float]]:
    """Seconds of each request, by its name; each asked so often, one kind after the other."""
    with (
        tempfile.TemporaryDirectory() as folder,
        TestClient(make_app(Path(folder), database_url=url, workers=0), base_url="http://127.0.0.1:8300") as client,
    ):
        asked: dict[str, Callable[[], float]] = {
            "POST /v1/reviews/next": lambda: _next(client, "uncertain"),
            "the same, informative": lambda: _next(client, "informative"),
            "GET /v1/reviews/progress": lambda: _timed(client, "GET", "/v1/reviews/progress")[0],
        }
        if client.get("/review").status_code == 200:
            asked["GET /review"] = lambda: _timed(client, "GET", "/review")[0]
        found: dict[str, list[float]] = {}
        for name, ask in asked.items():
            ask()  # what is loaded once
            found[name] = [ask() for _ in range(requests)]
        return found


def _next(client: TestClient, order: str) -> float:
    """What is taken is handed back, outside of the time."""
    seconds, response = _timed(client, "POST", "/v1/reviews/next", {"order": order})
    if response.status_code == 200:
        task = response.json()
        client.post(f"/v1/reviews/{task['item']}/release", json={"fence": task["fence"]})
    return seconds


def _timed(client: TestClient, method: str, path: str, body: object = None) -> tuple[float, Any]:
    start = time.perf_counter()
    response = client.request(method, path, json=body)
    seconds = time.perf_counter() - start
    assert response.status_code in (200, 204), response.text
    return seconds, response


def _percentiles(times: Sequence[float]) -> tuple[float, float]:
    return statistics.median(times), statistics.quantiles(times, n=20)[-1]


@contextmanager
def _database(name: str) -> Iterator[tuple[str, str]]:
    """URLs of two new databases."""
    if name == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/empty.db", f"sqlite:///{folder}/long.db"
        return
    server = databases.postgresql_server.__wrapped__()  # the tests' own throwaway server
    url = next(server)
    try:
        yield databases._create(url, f"empty_{os.getpid()}"), databases._create(url, f"long_{os.getpid()}")
    finally:
        next(server, None)


if __name__ == "__main__":
    main()

"""What a recipe says of texts outside of any batch, kept by recipe and text: asking again costs nothing.

Decoding is greedy, so a recipe has one answer to a text. What is kept is committed as it comes: a run that is stopped
goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine as Database
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from service import db
from service.annotate import Annotated, Failure, Plan, annotate
from service.engine import Engine
from service.labels import Labels
from service.models import Reading, fingerprint, now
from service.queue import keep_recipe

CHUNK = 512  # texts handed to the engine, and looked up, at once
STORE = 64  # readings stored at once


@dataclass(frozen=True, slots=True)
class Readings:
    """answers: shape (n,), of each text. cached: texts whose answer was known. seconds, tokens: spent on the others."""

    answers: list[Annotated | Failure]
    cached: int
    seconds: float
    tokens: int


async def read(
    texts: Sequence[str], plan: Plan, engine: Engine, database: Database | None, advance: Callable[[], None]
) -> Readings:
    """The recipe's answer to each text; `advance` is called once a text. Failures are not kept.

    database: None to ask the engine for all of them and to keep nothing.
    """
    if database is not None:
        with db.begin(database) as session:
            keep_recipe(session, plan.sha256, plan.body)
    answers: dict[int, Annotated | Failure] = {}
    cached, tokens, seconds = 0, 0, 0.0
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        known = _known(database, plan, chunk) if database is not None else {}
        asked = list(dict.fromkeys(text for text in chunk if text not in known))
        cached += len(chunk) - len(asked)
        for _ in range(len(chunk) - len(asked)):
            advance()
        began = time.perf_counter()
        waiting: list[tuple[str, Annotated]] = []
        async for index, answer in annotate(asked, plan, engine):
            known[asked[index]] = answer
            if isinstance(answer, Annotated):
                tokens += answer.tokens
                waiting.append((asked[index], answer))
            if database is not None and len(waiting) >= STORE:
                _keep(database, plan, waiting)
                waiting = []
            advance()
        seconds += time.perf_counter() - began
        if database is not None:
            _keep(database, plan, waiting)
        answers |= {start + index: known[text] for index, text in enumerate(chunk)}
    return Readings([answers[index] for index in range(len(texts))], cached, seconds, tokens)


def others(session: Session, recipe: str, texts: Iterable[str]) -> Iterator[tuple[str, str, Labels]]:
    """(recipe, text, labels) of what other recipes are known to have said of these texts."""
    by_sha = {fingerprint(text): text for text in texts}
    shas = list(by_sha)
    for start in range(0, len(shas), CHUNK):
        query = select(Reading).where(
            col(Reading.text_sha256).in_(shas[start : start + CHUNK]), col(Reading.recipe) != recipe
        )
        for found in session.exec(query.order_by(col(Reading.recipe))):
            yield found.recipe, by_sha[found.text_sha256], _annotated(found.value).labels


def _known(database: Database, plan: Plan, texts: Sequence[str]) -> dict[str, Annotated | Failure]:
    by_sha = {fingerprint(text): text for text in texts}
    query = select(Reading).where(Reading.recipe == plan.sha256, col(Reading.text_sha256).in_(by_sha))
    with db.read(database) as session:
        return {by_sha[found.text_sha256]: _annotated(found.value) for found in session.exec(query)}


def _keep(database: Database, plan: Plan, answers: Sequence[tuple[str, Annotated]]) -> None:
    if not answers:
        return
    rows = [
        {"recipe": plan.sha256, "text_sha256": fingerprint(text), "value": _plain(answer), "created_at": now()}
        for text, answer in answers
    ]
    with db.begin(database) as session:
        insert = postgresql.insert if database.dialect.name == "postgresql" else sqlite.insert
        session.execute(insert(Reading).on_conflict_do_nothing(), rows)


def _plain(answer: Annotated) -> dict[str, Any]:
    second = answer.second.model_dump(mode="json") if answer.second else None
    return {
        "labels": answer.labels.model_dump(mode="json"),
        "truncated": answer.truncated,
        "tokens": answer.tokens,
        "second": second,
    }


def _annotated(value: dict[str, Any]) -> Annotated:
    second = Labels.model_validate(value["second"]) if value["second"] else None
    return Annotated(Labels.model_validate(value["labels"]), value["truncated"], value["tokens"], second)

"""Export: what stands, one row a text, in order of arrival.

A row of results: {"id", "text", <tasks as in a result row>, "source": "model" | "person", "reviewer", "recipe",
"state", "decision", "batch", "position", "meta"}. A settled row is a gold record instead, which `gold.upload` reads:
{"id", "text", <tasks as in a gold file>, "source": "person", "reviewer", "batch", "position", "meta"}.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from service import db, stored
from service.labels import Labels, from_row, to_row
from service.models import Item, ItemDecision, Review, State
from service.schema import Schema
from service.stored import Page, key

STANDING = (State.accepted, State.audit, State.resolved)
PAGE = 500


def rows(
    engine: Engine,
    *,
    batch: str | None = None,
    settled: bool = False,
    states: Sequence[State] = STANDING,
    after: int = 0,
) -> Iterator[dict[str, Any]]:
    """Stream all rows, each page from a snapshot of its own, so that no transaction waits for a slow reader.

    A text that arrives or is settled behind the stream is not in it; no text is in it twice. Two texts of different
    batches may have the same id: in the gold form, where an id names one text, the later one is `batch:position`.
    """
    taken: set[str] = set()
    start: int | None = after
    while start is not None:
        with db.read(engine) as session:
            found = page(session, batch=batch, settled=settled, states=states, after=start)
        for row in found.rows:
            if settled:
                row["id"] = row["id"] if row["id"] not in taken else f"{row['batch']}:{row['position']}"
                taken.add(row["id"])
            yield row
        start = found.after


def page(
    session: Session,
    *,
    batch: str | None = None,
    settled: bool = False,
    states: Sequence[State] = STANDING,
    after: int = 0,
    limit: int = PAGE,
) -> Page[dict[str, Any]]:
    """The rows after an item's id, at most `limit` (1 to 1,000), of one batch or of all.

    settled: only what a person settled, as gold records; `states` plays no part then.
    A text in state `review` or `adjudication` has the model's proposal, or no task at all where there is none: it does
    not stand.
    """
    limit = max(1, min(limit, 1000))
    query = (
        select(Item, ItemDecision)
        .join(ItemDecision, col(ItemDecision.item_id) == col(Item.id), isouter=True)
        .where(col(Item.id) > after, col(Item.state).in_([State.resolved] if settled else list(states)))
        .order_by(col(Item.id))
        .limit(limit)
    )
    if batch is not None:
        query = query.where(col(Item.batch_id) == batch)
    found = list(session.exec(query))
    ids = [key(item) for item, _ in found]
    answers = stored.answers(session, ids)
    if settled:
        made = [_gold(item, answers[key(item)]) for item, _ in found]
    else:
        said = stored.said(session, ids)
        schemas = stored.schemas(session, {item.batch_id for item, _ in found})
        made = []
        for item, decision in found:
            answer = answers.get(key(item))
            labels = said.get(key(item)) if answer is None else _answer(answer, item, schemas[item.batch_id])
            made.append(_result(item, decision, answer, labels))
    return Page(made, ids[-1] if len(ids) == limit else None)


def _answer(answer: Review, item: Item, schema: Schema) -> Labels:
    return from_row(answer.labels, item.text, schema, where=f"item {item.id}: ")


def _result(item: Item, decision: ItemDecision | None, answer: Review | None, labels: Labels | None) -> dict[str, Any]:
    return {
        "id": item.ref,
        "text": item.text,
        **(to_row(labels, item.text) if labels else {}),
        "source": "person" if answer else "model",
        "reviewer": answer.reviewer if answer else None,
        "recipe": decision.recipe if decision else None,
        "state": item.state,
        "decision": decision.outcome if decision else None,
        **_origin(item),
    }


def _gold(item: Item, answer: Review) -> dict[str, Any]:
    said = {"id": item.ref, "text": item.text, **answer.labels}
    return said | {"source": "person", "reviewer": answer.reviewer, **_origin(item)}


def _origin(item: Item) -> dict[str, Any]:
    return {"batch": item.batch_id, "position": item.position, "meta": item.meta}

"""Settling many items in one act: each as it was proposed, or with another label; each refused for a reason of its own.

One transaction; `undo.many` takes back what is left of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlmodel import Session, col, select

from service import stored
from service.errors import Invalid
from service.labels import Labels, plain
from service.models import Item, Review, State, now
from service.review import WAITING, check_name, check_note, checked, history, holder, log, recorded
from service.schema import ChoiceTask, Schema
from service.stored import key
from service.undo import Refused


@dataclass(frozen=True, slots=True)
class Settled:
    """bulk: the id of the act, to take it back by; None where nothing was settled."""

    bulk: str | None
    settled: list[int]
    refused: list[Refused]


def settle(
    session: Session, items: Iterable[int], reviewer: str, relabel: Mapping[str, str] | None = None, note: str = ""
) -> Settled:
    """Settle these items. relabel: choices that replace the proposed ones; None: all as proposed.

    Refused: what does not exist, does not wait for a reader, or is in another's hands; what has no proposal, was read
    already, or is not for settling in passing (`similar.alike`). Raises Invalid for a label that a schema lacks.
    """
    check_name(reviewer)
    check_note(note)
    wanted = sorted(set(items))
    query = select(Item).where(col(Item.id).in_(wanted)).order_by(col(Item.id)).with_for_update()
    found = {key(item): item for item in session.exec(query.execution_options(populate_existing=True))}
    said, past = stored.said(session, wanted), history(session, wanted)
    schemas = stored.schemas(session, {item.batch_id for item in found.values()})
    for schema in schemas.values():
        _check_labels(schema, relabel or {})
    at, bulk = now(), uuid4().hex
    refused = [
        Refused(item, why) for item in wanted if (why := _refusal(found.get(item), said.get(item), reviewer, at))
    ]
    left = {one.item for one in refused}
    made = []
    for item in (found[one] for one in wanted if one not in left):
        proposed = plain(said[key(item)])
        answer = checked(session, item, proposed | dict(relabel or {}))
        review = Review(
            item_id=key(item),
            reviewer=reviewer,
            changed=answer != proposed,
            labels=answer,
            note=note,
            bulk=bulk,
            taken_at=item.taken_at if item.lease_owner == reviewer else None,
            created_at=at,
        )
        made.append((item, recorded(item, past[key(item)]), review))
        item.state, item.updated_at = State.resolved, at
        item.answers += 1
        item.lease_owner = item.lease_until = None
        session.add(review)
    session.flush()
    for item, before, review in made:
        log(session, "review.bulk", reviewer, item, before, [*past[key(item)], review])
    return Settled(bulk if made else None, [key(item) for item, _, _ in made], refused)


def _refusal(item: Item | None, said: Labels | None, reviewer: str, at: datetime) -> str | None:
    if item is None:
        return "there is no such item"
    if item.state not in WAITING:
        return "it does not wait for a reader"
    if holder(item, at) not in (None, reviewer):
        return "somebody else has it in their hands"
    if said is None:
        return "it has no proposal"
    if item.state == State.audit:
        return "it was drawn for the audit, and is looked at by itself"
    if item.readers > 1 or item.hidden & 1 or item.answers:
        return "it is looked at by itself"
    return None


def _check_labels(schema: Schema, relabel: Mapping[str, str]) -> None:
    choices: dict[str, Sequence[Any]] = {
        task.name: task.labels for task in schema.tasks if isinstance(task, ChoiceTask)
    }
    for task, label in relabel.items():
        if task not in choices:
            expected = f"a choice task of the schema {schema.name}: {', '.join(choices)}"
            raise Invalid(f"relabel.{task}: expected {expected}", {"field": f"relabel.{task}"})
        if label not in {known.name for known in choices[task]}:
            raise Invalid(f"relabel.{task}: expected a label of the task, not {label!r}", {"field": f"relabel.{task}"})

"""Labels as they lie in the tables, read back: what the model said of an item, in which schema, and who settled it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlmodel import Session, col, select

from service.labels import Choice, Labels, Mentions
from service.models import STANDS, Annotation, Batch, Item, ItemDecision, Review, SchemaVersion
from service.schema import Schema

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Some rows in a fixed order. `after`: what to ask with for the next ones; None where there are no more."""

    rows: list[Row]
    after: int | None


def check_storable(text: str) -> None:
    """Raises ValueError for what no database and no JSON reader could give back: NUL and half a surrogate pair."""
    place = text.find("\0")
    if place >= 0:
        raise ValueError(f"a NUL character at {place}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at {error.start}, which is no character") from None


def storable(text: str) -> bool:
    """Whether `check_storable` lets the text pass."""
    try:
        check_storable(text)
    except ValueError:
        return False
    return True


def cleaned(message: str) -> str:
    """A message that may hold anything, as it can be stored: its first 1,000 characters, what no database takes
    replaced."""
    return message.replace("\0", "\ufffd").encode("utf-8", "replace").decode()[:1000]


def least_confidence(labels: Labels) -> float | None:
    """The least of all confidences in the labels, also that no mention was missed; None where none is stated."""
    stated = [choice.confidence for choice in labels.choices.values()]
    for mentions in labels.mentions.values():
        stated += [mentions.complete, *(span.confidence for span in mentions.spans)]
    return min((value for value in stated if value is not None), default=None)


def key(item: Item) -> int:
    """The id of an item that lies in the table."""
    if item.id is None:
        raise ValueError("the item was never stored")
    return item.id


def schemas(session: Session, batches: Iterable[str]) -> dict[str, Schema]:
    """The schema of each of these batches, as it was when they came in."""
    query = (
        select(Batch.id, SchemaVersion.id, SchemaVersion.body)
        .join(SchemaVersion, col(SchemaVersion.id) == col(Batch.schema_id))
        .where(col(Batch.id).in_(list(batches)))
    )
    read: dict[int | None, Schema] = {}
    found = {}
    for batch, version, body in session.exec(query):
        read[version] = read.get(version) or Schema.model_validate(body)
        found[batch] = read[version]
    return found


def said(session: Session, items: Iterable[int]) -> dict[int, Labels]:
    """The model's labels of these items, by item id: those of the recipe that its decision was made on.

    An item that the model could not label is absent. What a person said of an item plays no part.
    """
    query = (
        select(Annotation.item_id, Annotation.task, Annotation.value)
        .join(ItemDecision, col(ItemDecision.item_id) == col(Annotation.item_id))
        .where(col(Annotation.item_id).in_(list(items)), col(Annotation.recipe) == col(ItemDecision.recipe))
        .order_by(col(Annotation.id))
    )
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    for item, task, value in session.exec(query):
        found.setdefault(item, {})[task] = value
    return {item: _labels(tasks) for item, tasks in found.items()}


def answers(session: Session, items: Iterable[int]) -> dict[int, Review]:
    """What a person said and stands, of each of these items that was settled, by item id."""
    query = select(Review).where(col(Review.item_id).in_(list(items)), STANDS)
    return {review.item_id: review for review in session.exec(query)}


def _labels(tasks: Mapping[str, Mapping[str, Any]]) -> Labels:
    return Labels(
        choices={task: Choice.model_validate(value) for task, value in tasks.items() if "spans" not in value},
        mentions={task: Mentions.model_validate(value) for task, value in tasks.items() if "spans" in value},
    )

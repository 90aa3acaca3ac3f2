"""What the quality of labels is asked of: a batch and a stretch of time, as conditions of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Subquery, case, func, literal_column
from sqlmodel import Session, col, select

from service.models import COUNTS, Batch, Item, ItemDecision, Kind, Review, SchemaVersion
from service.schema import Schema

SCHEMAS = 5  # by name, those with the newest batches


@dataclass(frozen=True, slots=True)
class Scope:
    """batch: None for all. since, until: from that moment on, and before that one; None for no bound."""

    batch: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def of(self, moment: Any) -> list[ColumnElement[bool]]:
        """Conditions on items and on a moment of each; the query must hold Item."""
        conditions = [col(Item.batch_id) == self.batch] if self.batch is not None else []
        conditions += [moment >= self.since] if self.since else []
        return conditions + ([moment < self.until] if self.until else [])


def answered(scope: Scope, *columns: Any) -> Any:
    """Columns of the answers that count, of Review, Item and ItemDecision; nothing taken back, no flags, no lead's
    decisions."""
    return (
        select(*columns)
        .select_from(Review)
        .join(Item, col(Item.id) == col(Review.item_id))
        .join(ItemDecision, col(ItemDecision.item_id) == col(Review.item_id))
        .where(COUNTS, col(Review.kind) == Kind.answer, *scope.of(col(Review.created_at)))
    )


def one_by_one() -> ColumnElement[bool]:
    """Answers that were given to one item at a time. What was settled in bulk was not read so."""
    return col(Review.bulk).is_(None)


def count_if(condition: Any) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def week(session: Session, moment: Any) -> ColumnElement[str]:
    """The Monday of the ISO week, in UTC, as `2026-11-16`."""
    # Words as literals: bound ones would differ between SELECT and GROUP BY, which PostgreSQL refuses.
    if session.get_bind().dialect.name == "postgresql":
        monday = func.date_trunc(literal_column("'week'"), func.timezone(literal_column("'UTC'"), moment))
        return func.to_char(monday, literal_column("'YYYY-MM-DD'"))
    return func.date(moment, literal_column("'weekday 0'"), literal_column("'-6 days'"))


def medians(session: Session, found: Subquery) -> dict[Any, tuple[float, int]]:
    """(median, number) of `found.c.value` for each `found.c.name`, where neither is NULL; by the database alone."""
    there = (found.c.name.is_not(None), found.c.value.is_not(None))
    place = func.row_number().over(partition_by=found.c.name, order_by=found.c.value)
    size = func.count().over(partition_by=found.c.name)
    ranked = select(found.c.name, found.c.value, place.label("place"), size.label("size")).where(*there).subquery()
    # 2 place is n + 1 in the middle of an odd number, n and n + 2 beside that of an even one.
    middle = (2 * ranked.c.place).between(ranked.c.size, ranked.c.size + 2)
    query = select(ranked.c.name, func.avg(ranked.c.value), func.max(ranked.c.size)).where(middle)
    return {name: (float(value), size) for name, value, size in session.exec(query.group_by(ranked.c.name))}


def schemas(session: Session, scope: Scope) -> dict[str, list[Schema]]:
    """The schemas of the batches by name, every version in use, newest first; the SCHEMAS names last in use."""
    used = select(Batch.schema_id, func.max(col(Batch.created_at)).label("last")).group_by(col(Batch.schema_id))
    if scope.batch is not None:
        used = used.where(col(Batch.id) == scope.batch)
    last = used.subquery()
    query = select(SchemaVersion.name, SchemaVersion.body).join(last, last.c.schema_id == col(SchemaVersion.id))
    found: dict[str, list[Schema]] = {}
    for name, body in session.exec(query.order_by(last.c.last.desc(), col(SchemaVersion.version).desc())):
        if name in found or len(found) < SCHEMAS:
            found.setdefault(name, []).append(Schema.model_validate(body))
    return found


def tasks(versions: Sequence[Schema]) -> dict[str, str]:
    """The kind of each task of a schema's versions, by name; where they differ, that of the newest."""
    return {task.name: task.kind for version in reversed(versions) for task in version.tasks}

"""gold sets in versions; evaluations name one, and are asked for once"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

LABELS = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "gold_past",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("gold", sa.String(100), nullable=False),
        sa.Column("item", sa.Integer(), nullable=False),
        sa.Column("ref", sa.String(200), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("labels", LABELS, nullable=False),
        sa.Column("since", sa.Integer(), nullable=False),
        sa.Column("until", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_gold_past", "gold_past", ["gold", "item"])
    op.create_table(
        "gold_version",
        sa.Column("gold", sa.String(100), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("texts", sa.Integer(), nullable=False),
        sa.Column("added", sa.Integer(), nullable=False),
        sa.Column("replaced", sa.Integer(), nullable=False),
        sa.Column("removed", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("gold", "number"),
    )
    with op.batch_alter_table("gold_item") as item:
        item.add_column(sa.Column("since", sa.Integer(), nullable=False, server_default="1"))
    with op.batch_alter_table("gold_item") as item:
        item.alter_column("since", server_default=None)
    _first_versions(op.get_bind())
    with op.batch_alter_table("evaluation") as evaluation:
        evaluation.add_column(sa.Column("gold_version", sa.String(64), nullable=True))
        evaluation.add_column(sa.Column("key", sa.String(200), nullable=True))
        evaluation.add_column(sa.Column("content_sha256", sa.String(64), nullable=True))
        evaluation.add_column(sa.Column("work", sa.JSON(), nullable=True))
        evaluation.create_unique_constraint("uq_evaluation_key", ["client", "key"])


def _first_versions(connection: sa.Connection) -> None:
    """What each set holds is its first version."""
    names = ("gold", "ref", "text")
    items = sa.table(
        "gold_item",
        *(sa.column(name, sa.String()) for name in names),
        sa.column("labels", LABELS),
        sa.column("created_at", sa.DateTime(timezone=True)),
    )
    counts = ("number", "texts", "added", "replaced", "removed")
    versions = sa.table(
        "gold_version",
        sa.column("gold", sa.String()),
        sa.column("sha256", sa.String()),
        *(sa.column(name, sa.Integer()) for name in counts),
        sa.column("created_at", sa.DateTime(timezone=True)),
    )
    last = sa.select(items.c.gold, sa.func.count(), sa.func.max(items.c.created_at)).group_by(items.c.gold)
    for name, texts, at in connection.execute(last).all():
        rows = connection.execute(sa.select(items.c.ref, items.c.text, items.c.labels).where(items.c.gold == name))
        sha256 = _hash({"id": ref, "text": text, **labels} for ref, text, labels in rows)
        number = {"number": 1, "texts": texts, "added": texts, "replaced": 0, "removed": 0}
        connection.execute(sa.insert(versions).values(gold=name, sha256=sha256, created_at=at, **number))


def _hash(records: Iterable[Mapping[str, Any]]) -> str:
    """eval.parts.version as it was at this migration."""
    rows = sorted(json.dumps(record, sort_keys=True, ensure_ascii=False) for record in records)
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogatepass")).hexdigest()


def downgrade() -> None:
    with op.batch_alter_table("evaluation") as evaluation:
        evaluation.drop_constraint("uq_evaluation_key", type_="unique")
        for column in ("work", "content_sha256", "key", "gold_version"):
            evaluation.drop_column(column)
    with op.batch_alter_table("gold_item") as item:
        item.drop_column("since")
    op.drop_table("gold_version")
    op.drop_table("gold_past")

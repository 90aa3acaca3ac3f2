"""the tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gold_item",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("gold", sa.String(100), nullable=False),
        sa.Column("ref", sa.String(200), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("text_sha256", sa.String(64), nullable=False),
        sa.Column("labels", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("gold", "ref"),
    )
    op.create_index("ix_gold_text", "gold_item", ["gold", "text_sha256"])

    op.create_table(
        "recipe",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("body", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_table(
        "schema_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("body", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name", "version"),
        sa.UniqueConstraint("sha256"),
    )
    op.create_table(
        "batch",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("client", sa.String(100), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("content_sha256", sa.String(64), nullable=False),
        sa.Column("schema_id", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.String(100), nullable=False),
        sa.Column("second_prompt", sa.String(100), nullable=True),
        sa.Column("policy", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("gold", sa.String(100), nullable=True),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["schema_id"], ["schema_version.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("client", "key"),
    )
    op.create_table(
        "measurement",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("gold", sa.String(100), nullable=False),
        sa.Column("task", sa.String(40), nullable=False),
        sa.Column("label", sa.String(100), nullable=False),
        sa.Column("agreed", sa.Integer(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["recipe"], ["recipe.sha256"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("recipe", "gold", "task", "label"),
    )
    op.create_table(
        "item",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("batch_id", sa.String(32), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("ref", sa.String(200), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("text_sha256", sa.String(64), nullable=False),
        sa.Column("meta", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(100), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("priority", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batch.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("batch_id", "position"),
    )
    op.create_index(
        "ix_item_for_people",
        "item",
        ["priority", "id"],
        sqlite_where=sa.text("state IN ('review', 'audit')"),
        postgresql_where=sa.text("state IN ('review', 'audit')"),
    )
    op.create_index(
        "ix_item_held",
        "item",
        ["lease_owner"],
        sqlite_where=sa.text("state IN ('review', 'audit') AND lease_owner IS NOT NULL"),
        postgresql_where=sa.text("state IN ('review', 'audit') AND lease_owner IS NOT NULL"),
    )
    op.create_index(
        "ix_item_leased",
        "item",
        ["lease_owner", "lease_until"],
        sqlite_where=sa.text("state = 'leased'"),
        postgresql_where=sa.text("state = 'leased'"),
    )
    op.create_index("ix_item_progress", "item", ["batch_id", "updated_at", "state"])
    op.create_index(
        "ix_item_queued",
        "item",
        ["batch_id", "attempt", "position"],
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index("ix_item_text", "item", ["text_sha256"])

    op.create_table(
        "annotation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("task", sa.String(40), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("value", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"]),
        sa.ForeignKeyConstraint(["recipe"], ["recipe.sha256"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("item_id", "task", "recipe"),
    )
    op.create_table(
        "decision",
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=True),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("reasons", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("inclusion", sa.Float(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"]),
        sa.ForeignKeyConstraint(["recipe"], ["recipe.sha256"]),
        sa.PrimaryKeyConstraint("item_id"),
    )
    op.create_table(
        "review",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("item_id", sa.Integer(), nullable=False),
        sa.Column("reviewer", sa.String(100), nullable=False),
        sa.Column("changed", sa.Boolean(), nullable=False),
        sa.Column("labels", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["item.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_review_item_id", "review", ["item_id"])


def downgrade() -> None:
    op.drop_table("review")
    op.drop_table("decision")
    op.drop_table("annotation")
    op.drop_table("item")
    op.drop_table("measurement")
    op.drop_table("batch")
    op.drop_table("schema_version")
    op.drop_table("recipe")
    op.drop_table("gold_item")

"""standards and readings"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reading",
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("text_sha256", sa.String(64), nullable=False),
        sa.Column("value", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["recipe"], ["recipe.sha256"]),
        sa.PrimaryKeyConstraint("recipe", "text_sha256"),
    )
    op.create_table(
        "standard",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("predecessor", sa.Integer(), nullable=True),
        sa.Column("body", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["recipe"], ["recipe.sha256"]),
        sa.ForeignKeyConstraint(["predecessor"], ["standard.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_standard_recipe", "standard", ["recipe"])
    with op.batch_alter_table("decision") as decision:
        decision.add_column(sa.Column("standard", sa.Integer(), nullable=True))
        decision.add_column(sa.Column("probability", sa.Float(), nullable=True))
        decision.create_foreign_key("fk_decision_standard", "standard", ["standard"], ["id"])


def downgrade() -> None:
    with op.batch_alter_table("decision") as decision:
        decision.drop_constraint("fk_decision_standard", type_="foreignkey")
        decision.drop_column("probability")
        decision.drop_column("standard")
    op.drop_table("standard")
    op.drop_table("reading")

"""decisions of a recipe in the order in which they were made, and those drawn for the audit"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_decision_order", "decision", ["recipe", "created_at", "item_id"])
    op.create_index(
        "ix_decision_audit",
        "decision",
        ["recipe", "created_at", "item_id"],
        sqlite_where=sa.text("outcome = 'audit'"),
        postgresql_where=sa.text("outcome = 'audit'"),
    )


def downgrade() -> None:
    op.drop_index("ix_decision_audit", "decision")
    op.drop_index("ix_decision_order", "decision")

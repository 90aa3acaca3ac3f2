"""the desk: several readers, hidden proposals, what was taken back, adjudication"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PARTS = {
    "ix_item_read_once": ("item", ["read_by"], "state IN ('review', 'audit') AND read_by IS NOT NULL"),
    "ix_item_adjudication": ("item", ["id"], "state = 'adjudication'"),
    "ix_review_reviewer": ("review", ["reviewer", "created_at", "id", "kind"], "withdrawn_at IS NULL"),
}


def _columns() -> dict[str, list[sa.Column[object]]]:
    # Defaults stay with the columns: to take them away SQLite would copy the table, which others point to.
    return {
        "item": [
            sa.Column("readers", sa.Integer(), server_default=sa.text("1"), nullable=False),
            sa.Column("hidden", sa.Integer(), server_default=sa.text("0"), nullable=False),
            sa.Column("answers", sa.Integer(), server_default=sa.text("0"), nullable=False),
            sa.Column("read_by", sa.String(100), nullable=True),
            sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True),
        ],
        "review": [
            sa.Column("kind", sa.String(16), server_default=sa.text("'answer'"), nullable=False),
            sa.Column("stands", sa.Boolean(), server_default=sa.text("true"), nullable=False),
            sa.Column("shown", sa.Boolean(), server_default=sa.text("true"), nullable=False),
            sa.Column("seconds", sa.Float(), nullable=True),
            sa.Column("actions", sa.Integer(), nullable=True),
            sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True),
            sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
            sa.Column("bulk", sa.String(32), nullable=True),
            sa.Column("gold", sa.String(100), nullable=True),
        ],
    }


def upgrade() -> None:
    for table, columns in _columns().items():
        for column in columns:
            op.add_column(table, column)
    # Until now an item had one answer, which stood, by somebody who had seen the proposal.
    op.execute("UPDATE item SET answers = 1 WHERE state = 'resolved'")
    op.execute("UPDATE review SET stands = false WHERE id NOT IN (SELECT max(id) FROM review GROUP BY item_id)")
    for name, (table, names, where) in PARTS.items():
        op.create_index(name, table, names, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    stands = sa.text("stands")
    op.create_index(
        "ix_review_stands", "review", ["item_id"], unique=True, sqlite_where=stands, postgresql_where=stands
    )
    op.create_index("ix_review_bulk", "review", ["bulk"])


def downgrade() -> None:
    op.drop_index("ix_review_bulk", "review")
    op.drop_index("ix_review_stands", "review")
    for name, (table, _, _) in PARTS.items():
        op.drop_index(name, table)
    for table, columns in _columns().items():
        for column in columns:
            op.drop_column(table, column.name)

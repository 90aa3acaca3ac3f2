"""What Alembic runs: always on the connection, and in the transaction, that `service.db.migrate` opened."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlmodel import AutoString, SQLModel

import service.models


def plainly(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """New steps name plain column types: a step must not change its meaning with the code."""
    if kind == "type" and isinstance(item, AutoString):
        return f"sa.String({item.length})" if item.length else "sa.String()"
    if kind == "type" and isinstance(item, service.models.UTCDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and item is service.models.Document:
        return 'sa.JSON().with_variant(JSONB(), "postgresql")'
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_item=plainly,
    render_as_batch=True,  # SQLite alters a table by copying it
    transactional_ddl=True,  # also on SQLite: a step that fails leaves nothing behind
)
with context.begin_transaction():
    context.run_migrations()

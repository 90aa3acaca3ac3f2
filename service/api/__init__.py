"""The HTTP interface, one file a resource."""

from __future__ import annotations

from service.api import annotate, audit, batches, export, gold, health, reviews, schemas

routers = (
    annotate.router,
    batches.router,
    schemas.router,
    gold.router,
    reviews.router,
    audit.router,
    export.router,
    health.router,
)

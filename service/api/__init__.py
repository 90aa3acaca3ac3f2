"""The HTTP interface, one file a resource."""

from __future__ import annotations

from service.api import (
    adjudications,
    annotate,
    audit,
    batches,
    evaluations,
    export,
    gold,
    health,
    quality,
    reviews,
    schemas,
    standards,
)

routers = (
    annotate.router,
    batches.router,
    schemas.router,
    gold.router,
    evaluations.router,
    standards.router,
    reviews.router,
    quality.router,
    adjudications.router,
    audit.router,
    export.router,
    health.router,
)

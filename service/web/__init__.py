"""The pages, one file a page. Their scripts and styles are in `static`, and nothing comes from elsewhere."""

from __future__ import annotations

from service.web import adjudicate, quality, review
from service.web.pages import STATIC

routers = (adjudicate.router, quality.router, review.router)

__all__ = ["STATIC", "routers"]

"""The pages, one file a page. Their scripts and styles are in `static`, and nothing comes from elsewhere."""

from __future__ import annotations

from service.web import review
from service.web.pages import STATIC

routers = (review.router,)

__all__ = ["STATIC", "routers"]

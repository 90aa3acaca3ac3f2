"""The pages, one file a page. Their scripts and styles are in `static`, and nothing comes from elsewhere."""

from __future__ import annotations

from service.web import accounts, adjudicate, evaluations, quality, review, sign_in
from service.web.pages import STATIC

routers = (sign_in.router, accounts.router, review.router, adjudicate.router, quality.router, evaluations.router)

__all__ = ["STATIC", "routers"]

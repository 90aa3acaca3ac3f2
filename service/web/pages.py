"""How a page is made: a template, what it shows, and who is looking at it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from service.auth import Caller, Role
from service.report import FILTERS

HERE = Path(__file__).parent
# Pages run no script and load nothing but what this service serves. Data in a page is JSON in a script element of a
# type that no browser runs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
STATIC = StaticFiles(directory=HERE / "static")

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= FILTERS


@dataclass(frozen=True, slots=True)
class Place:
    """A page in the bar at the top of all pages. role: who it is shown to."""

    path: str
    name: str
    role: Role


PLACES = (
    Place("/review", "Review", Role.reviewer),
    Place("/adjudicate", "Adjudicate", Role.lead),
    Place("/quality", "Quality", Role.lead),
    Place("/evaluations", "Evaluations", Role.client),
    Place("/accounts", "Accounts", Role.admin),
)


def render(request: Request, template: str, page: Any, status: int = 200) -> HTMLResponse:
    """The template with the fields of `page` (a frozen dataclass, which documents what the template is given).

    Every template also has `caller` (None where nobody has signed in), `places` (the pages that they may open), `here`
    (the path) and `csrf`: the session's token, which every form sends back in a hidden field of that name, and scripts
    in the header X-CSRF-Token; empty without a session.
    """
    caller: Caller | None = getattr(request.state, "caller", None)
    content = {field.name: getattr(page, field.name) for field in fields(page)}
    places = [place for place in PLACES if caller and place.role in caller.roles]
    shared = {"caller": caller, "places": places, "here": request.scope["path"], "csrf": caller.token if caller else ""}
    html = _templates.get_template(template).render(**content, **shared)
    # With `no-referrer` browsers would not say where a form comes from, and it would be refused.
    return HTMLResponse(html, status, {"Content-Security-Policy": POLICY, "Referrer-Policy": "same-origin"})


def blank(value: Any) -> Any:
    """None for what was left empty: a form sends such fields too."""
    return None if value == "" else value

"""The page /quality: how good the labels are, how people work, and what proposals do to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import BeforeValidator
from sqlmodel import Session, col, select
from starlette.responses import HTMLResponse, Response

from service import plots, quality
from service.api.dependencies import LeadDep, ReadDep, Word
from service.errors import NotFound
from service.models import Batch, now
from service.report import visible
from service.scope import Scope
from service.web.pages import blank, render

router = APIRouter(include_in_schema=False)

BATCHES = 100  # to choose from, the newest
OTHERS = "other labels"
# An image runs nothing and loads nothing; its own styles are written in it.
SEALED = "default-src 'none'; style-src 'unsafe-inline'; sandbox"


Asked = Annotated[Word | None, BeforeValidator(blank), Query()]
Day = Annotated[datetime | date | None, BeforeValidator(blank), Query()]


@dataclass(frozen=True, slots=True)
class Choosable:
    """A batch to choose: its id, and its name for people."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot on the page: its address, what it shows in words, its heading and its caption."""

    name: str
    address: str
    alt: str


@dataclass(frozen=True, slots=True)
class QualityPage:
    """found: the document of `quality.document`, the only source of numbers. pictures: those that have something to
    show, by name. batches: to choose from. since, until: as they were typed. json: address of the same document.
    """

    found: dict[str, Any]
    pictures: dict[str, Picture]
    batches: list[Choosable]
    since: str
    until: str
    json: str


@router.get("/quality")
def page(
    request: Request, session: ReadDep, _caller: LeadDep, batch: Asked = None, since: Day = None, until: Day = None
) -> HTMLResponse:
    """The page, with everything in it but the pictures."""
    scope = Scope(batch, quality.moment(since), quality.moment(until, last=True))
    found = quality.document(session, scope)
    # The pictures are asked for one by one, later: by naming the moment they show what the page tells.
    upto = min(scope.until or now(), datetime.fromisoformat(found["made_at"]))
    asked = {"batch": batch, "since": scope.since and scope.since.isoformat(), "until": upto.isoformat()}
    query = urlencode({name: value for name, value in asked.items() if value})
    pictures = {
        name: Picture(name, f"/quality/plots/{name}.svg?{query}", visible(drawn.alt(found)))
        for name, drawn in PLOTS.items()
        if drawn.there(found)
    }
    typed, last = (value.isoformat()[:10] if value else "" for value in (since, until))
    made = QualityPage(found, pictures, _batches(session, batch), typed, last, f"/v1/quality?{query}")
    return render(request, "quality.html", made)


@router.get("/quality/plots/{name}.svg")
def picture(
    name: str, session: ReadDep, _caller: LeadDep, batch: Asked = None, since: Day = None, until: Day = None
) -> Response:
    """One plot. Raises NotFound for one that is not there, or has nothing to show."""
    drawn = PLOTS.get(name)
    scope = Scope(batch, quality.moment(since), quality.moment(until, last=True))
    found = quality.document(session, scope, drawn.sections) if drawn else {}
    if drawn is None or not drawn.there(found):
        raise NotFound(f"no plot {name!r}")
    svg = plots.image(drawn.draw(found, "p", visible(drawn.alt(found))))
    return Response(svg, media_type="image/svg+xml", headers={"Content-Security-Policy": SEALED})


def _batches(session: Session, asked: str | None) -> list[Choosable]:
    query = select(Batch.id, Batch.key, Batch.total, Batch.created_at)
    newest = session.exec(query.order_by(col(Batch.created_at).desc()).limit(BATCHES)).all()
    if asked is not None and asked not in [batch for batch, *_ in newest]:
        newest = [*newest, *session.exec(query.where(col(Batch.id) == asked))]
    return [
        Choosable(batch, visible(f"{at:%Y-%m-%d}, {total:,} texts, {plots.shortened(key, 24)}"))
        for batch, key, total, at in newest
    ]


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of the document. sections: what of the document it needs; there: whether it has something to show."""

    sections: tuple[str, ...]
    there: Callable[[Mapping[str, Any]], bool]
    draw: Callable[[Mapping[str, Any], str, str], Any]
    alt: Callable[[Mapping[str, Any]], str]


def _told(found: Mapping[str, float] | None, scale: float = 1, unit: str = "") -> str:
    if found is None:
        return "not known"
    value, low, high = (scale * found[end] for end in ("value", "low", "high"))
    return f"{value:.3g}{unit} ({low:.3g} to {high:.3g})"


_share = partial(_told, scale=100, unit=" %")


def _time(found: Mapping[str, Any], key: str, alt: str) -> Any:
    sides = found["assistance"]
    rows = [
        plots.Row(f"proposal {name}", sides[name]["seconds"], plain=name == "hidden") for name in ("hidden", "shown")
    ]
    most = max(row.found["high"] for row in rows)
    return plots.intervals(rows, "median seconds of a reading", (0, most), key, alt)


def _time_alt(found: Mapping[str, Any]) -> str:
    sides = {name: _told(found["assistance"][name]["seconds"], unit=" s") for name in ("hidden", "shown")}
    return f"Median seconds of a reading: with the proposal hidden {sides['hidden']}, shown {sides['shown']}."


def _shifts(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [shift for shift in found["assistance"]["shifts"] if shift["difference"]]


def _shift(found: Mapping[str, Any], key: str, alt: str) -> Any:
    rows = [plots.Row(visible(shift["task"] or "whole answer"), shift["difference"]) for shift in _shifts(found)]
    most = max([0.05, *(abs(row.found[end]) for row in rows for end in ("low", "high"))])
    zero = "← less often the model's  |  drawn towards the model →"
    axis = "points more of the answers equal the proposal where it is shown"
    return plots.intervals(rows, axis, (-most, most), key, alt, zero=zero, scale=100)


def _shift_alt(found: Mapping[str, Any]) -> str:
    told = [
        f"{shift['task'] or 'whole answer'} {_told(shift['difference'], 100, ' points')}" for shift in _shifts(found)
    ]
    return f"How much more often answers equal the proposal where it is shown: {'; '.join(told)}."


def _consensus(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float]]]:
    """(reviewer and task, score), where there is one."""
    rows = [(one["reviewer"], line) for one in found["agreement"]["reviewers"] for line in one["consensus"]]
    return [(f"{name}: {line['task']}", line["score"]) for name, line in rows if line["score"]][: plots.MOST_ROWS]


def _reviewers(found: Mapping[str, Any], key: str, alt: str) -> Any:
    rows = [plots.Row(visible(name), score) for name, score in _consensus(found)]
    return plots.intervals(rows, "agreement with what stands (choices: share; spans: F1)", (0, 1), key, alt)


def _reviewers_alt(found: Mapping[str, Any]) -> str:
    told = [f"{name} {_told(score)}" for name, score in _consensus(found)]
    return f"Agreement of each reviewer with the labels that stand: {'; '.join(told)}."


def _weeks(found: Mapping[str, Any], key: str, alt: str) -> Any:
    rows = found["weeks"]
    panels = [
        plots.Panel("Two readers agree", "share", [row["agreed"] for row in rows], 1.0),
        plots.Panel("Proposals changed", "share", [row["changed"] for row in rows], 1.0, plots.ORANGE),
        plots.Panel("Time of a reading", "median seconds", [row["seconds"] for row in rows], None, plots.GREY),
    ]
    return plots.over_weeks([row["week"] for row in rows], panels, key, alt)


def _weeks_alt(found: Mapping[str, Any]) -> str:
    first, last = found["weeks"][0], found["weeks"][-1]
    seconds = [f"{row['seconds']:.3g}" if row["seconds"] is not None else "not known" for row in (first, last)]
    return (
        f"By week, {first['week']} to {last['week']}: share of items on which two readers agree, first "
        f"{_share(first['agreed'])}, last {_share(last['agreed'])}; share of proposals changed, first "
        f"{_share(first['changed'])}, last {_share(last['changed'])}; median seconds, first {seconds[0]}, last "
        f"{seconds[1]}. The table has every week."
    )


def _distributions(found: Mapping[str, Any], side: str) -> list[Mapping[str, Any]]:
    return [task for task in found["labels"] if task[side]][:6]


def _stacks(side: str, found: Mapping[str, Any], key: str, alt: str) -> Any:
    rows = []
    for task in _distributions(found, side):
        most = _common(task["model"] + task["people"])  # one colour a label on both
        shares = {name: [week["labels"].get(name, 0) / week["n"] for week in task[side]] for name in most}
        left = [max(0.0, 1 - sum(one)) for one in zip(*shares.values(), strict=True)]
        shown = {visible(name): one for name, one in shares.items()} | ({OTHERS: left} if max(left) > 1e-9 else {})
        rows.append(plots.Stack(visible(task["task"]), [week["week"] for week in task[side]], shown))
    return plots.stacks(rows, key, alt)


def _stacks_alt(side: str, found: Mapping[str, Any]) -> str:
    who = "the model said" if side == "model" else "stand after a person's answer"
    told = []
    for task in _distributions(found, side):
        first, last = task[side][0], task[side][-1]
        moved = [f"{name} {_of(first, name)} then {_of(last, name)}" for name in _common(task[side])[:3]]
        told.append(f"{task['task']}, {first['week']} and {last['week']}: {', '.join(moved)}")
    return f"Shares of the labels that {who}, week by week. {'; '.join(told)}."


def _of(week: Mapping[str, Any], name: str) -> str:
    return f"{100 * week['labels'].get(name, 0) / week['n']:.0f} %"


def _common(weeks: list[Mapping[str, Any]]) -> list[str]:
    """The labels that were given most, as many as can be told apart, the most common first."""
    sums: dict[str, int] = {}
    for week in weeks:
        for name, count in week["labels"].items():
            sums[name] = sums.get(name, 0) + count
    return sorted(sums, key=lambda name: (-sums[name], name))[: len(plots.COLOURS) - 1]


def _error(found: Mapping[str, Any]) -> tuple[Mapping[str, Any], float | None] | None:
    """The running error of whole items of the recipe last in use, with what was promised of it."""
    for watched in found["audits"][:1]:
        (whole,) = (one for one in watched["errors"] if one["task"] is None)
        promised = [one["promised"] for one in watched["drift"] if one["task"] is None]
        return (whole, promised[0] if promised else None) if whole["error"] else None
    return None


def _running(found: Mapping[str, Any], key: str, alt: str) -> Any:
    whole, promised = _error(found) or ({}, None)
    return plots.running(whole["path"], promised, key, alt)


def _running_alt(found: Mapping[str, Any]) -> str:
    whole, promised = _error(found) or ({}, None)
    asked = "" if promised is None else f" {100 * promised:.3g} % were promised."
    return (
        f"Share of accepted items that were wrong, after {whole['n']:,} audited items: {_share(whole['error'])}.{asked}"
    )


PLOTS: Mapping[str, Plot] = {
    "time": Plot(("assistance",), lambda found: found["assistance"]["ratio"] is not None, _time, _time_alt),
    "shift": Plot(("assistance",), lambda found: bool(_shifts(found)), _shift, _shift_alt),
    "reviewers": Plot(("agreement",), lambda found: bool(_consensus(found)), _reviewers, _reviewers_alt),
    "weeks": Plot(("weeks",), lambda found: bool(found["weeks"]), _weeks, _weeks_alt),
    "model": Plot(
        ("labels",),
        lambda found: bool(_distributions(found, "model")),
        partial(_stacks, "model"),
        partial(_stacks_alt, "model"),
    ),
    "people": Plot(
        ("labels",),
        lambda found: bool(_distributions(found, "people")),
        partial(_stacks, "people"),
        partial(_stacks_alt, "people"),
    ),
    "error": Plot(("audits",), lambda found: _error(found) is not None, _running, _running_alt),
}

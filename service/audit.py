"""The audit stream: the error of accepted labels as people found it, and whether what the model says has changed.

The error is estimated from audited items alone: accepted, then drawn at random, then settled by a person. What was
routed to people because it was doubtful says nothing of what was accepted, and never enters. Drift of labels and of
confidence is sought in all labelled items, in what the model said of them, whoever settled them since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, tuple_
from sqlmodel import Session, col, select

from service import standards, stored
from service.errors import NotFound
from service.labels import Labels, plain
from service.models import AUDITED, STANDS, Item, ItemDecision, Recipe, Review, State
from service.schema import Schema

if TYPE_CHECKING:
    from eval.audit import ErrorDrift, RunningError, Shift, Window

# The estimate is over the newest 10,000 to 20,000 audited items. It begins anew in steps, not at every item: within a
# step its interval holds at all moments at once, and the test of drift keeps an array of 64 numbers an item.
SPAN = 10_000
REFERENCE = 1000  # labelled items, the first of the recipe
RECENT = 500  # the newest whole block of so many after them: asking twice within a block is one look, not two
LOOKS = 50  # that share one chance in twenty of a false alarm; then the count begins anew
RECIPES = 20
CHUNK = 500

_ORDER = (col(ItemDecision.created_at), col(ItemDecision.item_id))


@dataclass(frozen=True, slots=True)
class Stream:
    """The audited items of one recipe up to the oldest that waits for its verdict, in the order of acceptance.

    drawn: all audited items so far; waiting: those without a verdict; oldest: (id, accepted at) of the first of them.
    held_back: verdicts on items accepted after it; left_out: verdicts from before the newest one to two SPANs.
    accepted_at, inclusion: shape (n,). wrong: shape (n,) for each task, and under None for the item as a whole.
    """

    schema: Schema
    drawn: int
    waiting: int
    oldest: tuple[int, datetime] | None
    held_back: int
    left_out: int
    accepted_at: tuple[datetime, ...]
    inclusion: tuple[float, ...]
    wrong: dict[str | None, tuple[bool, ...]]


def recipes(session: Session, schema: str) -> list[str]:
    """Recipes of this schema, any version, that labelled an item: the 20 last in use, the last first."""
    named = [one for one, body in session.exec(select(Recipe.sha256, Recipe.body)) if _schema_name(body) == schema]
    newest = select(func.max(col(ItemDecision.created_at)))
    used = ((session.exec(newest.where(col(ItemDecision.recipe) == one)).one(), one) for one in named)
    return [one for _, one in sorted((pair for pair in used if pair[0]), reverse=True)[:RECIPES]]


def watch(session: Session, recipe: str, promised: float | None = None) -> dict[str, Any]:
    """All that can be said after the fact of what the recipe labelled, as a document of JSON values.

    promised: the error that accepted labels were promised to stay below, in (0, 1); None: as the standard in force has
    it, and without one drift in error is not tested. Of audits, only those decided by the standard in force count.
    "audits": how many were drawn, settled and wait. "errors", "drift": one entry for the item as a whole (task None)
    and one a task, each with its own chance of 0.05 to be wrong: read that of which the promise was made.
    "windows", "shifts": what was compared with what, and every test. "alarms": what was raised, in words.
    Raises NotFound for a recipe that labelled nothing; ValueError for a promise outside (0, 1).
    """
    from eval.audit import shifts

    held = standards.in_force(session, recipe)
    lines = {line.task: line.error for line in held.lines} if held else {}
    found = stream(session, recipe, held.version if held and lines else None)
    drifts = drift(found, lines if promised is None else dict.fromkeys(found.wrong, promised))
    windows, reference, recent = _windows(session, recipe, found.schema)
    moved = shifts(reference, recent, LOOKS) if recent else ()
    return {
        "recipe": recipe,
        "schema": found.schema.name,
        "version": found.schema.version,
        "standard": held.version if held and lines else None,
        "promised": promised,
        "audits": _audits(found),
        "errors": [_error(task, error) for task, error in errors(found).items()],
        "drift": [_drift(task, one, found) for task, one in drifts.items()],
        "windows": windows,
        "shifts": [asdict(shift) for shift in moved],
        "alarms": [
            *(
                {"what": "error", "task": task, "says": _risen(one, found)}
                for task, one in drifts.items()
                if one.raised
            ),
            *({"what": one.what, "task": one.task, "says": _changed(one)} for one in moved if one.raised),
        ],
    }


def stream(session: Session, recipe: str, standard: int | None = None) -> Stream:
    """Read the audited items of a recipe and their verdicts. Raises NotFound for a recipe that labelled nothing.

    standard: only those that this version decided; None for all.

    The verdict is the answer that stands: wrong where it differs from what the model said, in the labels of a task or
    anywhere. An item that waits for a second reader or for a lead waits for its verdict. Reads the audited items alone,
    by an index, however many others there are.
    """
    batch = _batch(session, recipe)
    if batch is None:
        raise NotFound(f"no item was labelled by the recipe {recipe!r}")
    schema = stored.schemas(session, [batch])[batch]
    drawn: tuple[Any, ...] = (AUDITED, col(ItemDecision.recipe) == recipe)
    drawn += () if standard is None else (col(ItemDecision.standard) == standard,)
    unsettled = col(Item.state).in_((State.audit, State.adjudication))
    waits = (*drawn, col(Item.id) == col(ItemDecision.item_id), unsettled)
    first = select(ItemDecision.item_id, ItemDecision.created_at).where(*waits).order_by(*_ORDER).limit(1)
    oldest = session.exec(first).first()
    settled = drawn if oldest is None else (*drawn, tuple_(*_ORDER) < (oldest[1], oldest[0]))
    total, waiting, before = (
        session.exec(select(func.count(col(ItemDecision.item_id))).where(*which)).one()
        for which in (drawn, waits, settled)
    )
    start = max(0, (before // SPAN - 1) * SPAN)
    query = (
        select(ItemDecision.item_id, ItemDecision.created_at, ItemDecision.inclusion, Review.changed)
        .join(Review, col(Review.item_id) == col(ItemDecision.item_id))
        .where(STANDS, *settled)
        .order_by(*_ORDER)
    )
    rows = session.exec(query.offset(start)).all()
    return Stream(
        schema=schema,
        drawn=total,
        waiting=waiting,
        oldest=oldest,
        held_back=total - waiting - before,
        left_out=start,
        accepted_at=tuple(at for _, at, _, _ in rows),
        inclusion=tuple(inclusion or 1.0 for _, _, inclusion, _ in rows),
        wrong=_wrong(session, schema, [(item, changed) for item, _, _, changed in rows]),
    )


def errors(found: Stream) -> dict[str | None, RunningError]:
    """The running error of the whole item (None) and of each task; see `eval.audit.running_error`.

    Items are weighed by the least audit share that was drawn by. When it falls, the interval begins anew with a chance
    of its own; the items before it stay.
    """
    from eval.audit import running_error

    return {task: running_error(wrong, found.inclusion, _least(found)) for task, wrong in found.wrong.items()}


def drift(found: Stream, promised: Mapping[str | None, float]) -> dict[str | None, ErrorDrift]:
    """Whether the error rose above what was promised, of whole items (None) or of a task, each by itself.

    promised: in (0, 1), or ValueError; what is not named is not tested. See `eval.audit.error_drift`. As with the
    interval, a chance of 0.05 is for one beginning: there is another every SPAN items, and when the least audit share
    falls.
    """
    from eval.audit import error_drift

    least = _least(found)
    return {task: error_drift(found.wrong[task], found.inclusion, least, error) for task, error in promised.items()}


def _least(found: Stream) -> float:
    return min(found.inclusion, default=1.0)


def _schema_name(body: Mapping[str, Any]) -> str | None:
    name: str | None = body.get("schema", {}).get("name")
    return name


def _batch(session: Session, recipe: str) -> str | None:
    """Some batch that the recipe labelled an item of."""
    query = select(Item.batch_id).join(ItemDecision, col(ItemDecision.item_id) == col(Item.id))
    return session.exec(query.where(col(ItemDecision.recipe) == recipe).limit(1)).first()


def _wrong(
    session: Session, schema: Schema, verdicts: Sequence[tuple[int, bool]]
) -> dict[str | None, tuple[bool, ...]]:
    """verdicts: (item, whether its labels were changed). Only of changed ones must the labels be read."""
    tasks = [task.name for task in schema.tasks]
    changed = [item for item, differs in verdicts if differs]
    differing: dict[str | None, set[int]] = {None: set(changed), **{task: set() for task in tasks}}
    for start in range(0, len(changed), CHUNK):
        ids = changed[start : start + CHUNK]
        said, answers = stored.said(session, ids), stored.answers(session, ids)
        for item in ids:
            proposal = plain(said.get(item, Labels()))
            for task in tasks:
                if proposal.get(task) != answers[item].labels.get(task):
                    differing[task].add(item)
    return {task: tuple(item in items for item, _ in verdicts) for task, items in differing.items()}


def _windows(
    session: Session, recipe: str, schema: Schema
) -> tuple[dict[str, Any], dict[str, Window], dict[str, Window]]:
    """What is compared, in words, and both windows by task; empty where there are too few items for a comparison."""
    whose = col(ItemDecision.recipe) == recipe
    labelled = session.exec(select(func.count(col(ItemDecision.item_id))).where(whose)).one()
    look = max(0, (labelled - REFERENCE) // RECENT)
    told: dict[str, Any] = {
        "labelled": labelled,
        "look": look,
        "looks": LOOKS,
        "reference": None,
        "recent": None,
        "note": "",
    }
    if not look:
        note = f"a comparison needs {REFERENCE + RECENT:,} labelled items; there are {labelled:,}"
        return told | {"note": note}, {}, {}
    query = select(ItemDecision.item_id, ItemDecision.created_at).where(whose)
    first = session.exec(query.order_by(*_ORDER).limit(REFERENCE)).all()
    beyond = labelled - REFERENCE - look * RECENT
    newest = query.order_by(*(column.desc() for column in _ORDER)).offset(beyond).limit(RECENT)
    last = session.exec(newest).all()[::-1]
    told |= {"reference": _stretch(first), "recent": _stretch(last)}
    reference, recent = (_window(session, schema, [item for item, _ in rows]) for rows in (first, last))
    return told, reference, recent


def _stretch(rows: Sequence[tuple[int, datetime]]) -> dict[str, Any]:
    return {"texts": len(rows), "since": rows[0][1].isoformat(), "until": rows[-1][1].isoformat()}


def _window(session: Session, schema: Schema, items: Sequence[int]) -> dict[str, Window]:
    """What the model said of these items, by task. Of mentions, the confidence is the least that was stated."""
    from eval.audit import Window

    labels: dict[str, list[list[str]]] = {task.name: [] for task in schema.tasks}
    confidence: dict[str, list[float]] = {task.name: [] for task in schema.tasks}
    for start in range(0, len(items), CHUNK):
        for said in stored.said(session, items[start : start + CHUNK]).values():
            for task, choice in said.choices.items():
                labels[task].append([choice.label])
                confidence[task] += [] if choice.confidence is None else [choice.confidence]
            for task, found in said.mentions.items():
                labels[task].append([span.label for span in found.spans])
                least = stored.least_confidence(Labels(mentions={task: found}))
                confidence[task] += [] if least is None else [least]
    return {task: Window(labels[task], confidence[task]) for task in labels}


def _audits(found: Stream) -> dict[str, Any]:
    return {
        "drawn": found.drawn,
        "waiting": found.waiting,
        "held_back": found.held_back,
        "left_out": found.left_out,
        "counted": len(found.accepted_at),
        "since": found.accepted_at[0].isoformat() if found.accepted_at else None,
        "oldest_waiting": {"item": found.oldest[0], "since": found.oldest[1].isoformat()} if found.oldest else None,
    }


def _error(task: str | None, error: RunningError) -> dict[str, Any]:
    path = [{"audited": audited} | asdict(interval) for audited, interval in error.path]
    return {"task": task} | asdict(error) | {"path": path}


def _drift(task: str | None, one: ErrorDrift, found: Stream) -> dict[str, Any]:
    def accepted(number: int | None) -> str | None:
        return found.accepted_at[number - 1].isoformat() if number else None

    return {"task": task} | asdict(one) | {"at_accepted": accepted(one.at), "since_accepted": accepted(one.since)}


def _risen(one: ErrorDrift, found: Stream) -> str:
    since = one.since or 1
    return (
        f"more than the promised {one.promised:.3g} of the accepted labels are wrong (p = {one.p:.2g} after {one.n:,} "
        f"audited items, raised at number {one.at or one.n:,}). It shows most from number {since:,} on, accepted "
        f"{found.accepted_at[since - 1]:%Y-%m-%d %H:%M} UTC: {one.error_since or 0.0:.3f} of them were wrong"
    )


def _changed(one: Shift) -> str:
    compared = f"{one.recent:,} texts against {one.reference:,}, effect {one.effect or 0.0:.2f}, p = {one.p or 0.0:.2g}"
    shares = "; ".join(
        f"{share.name or 'none'}: {share.reference:.3f} before, {share.recent:.3f} now" for share in one.moved
    )
    return f"the {one.what} changed ({compared}). Shares: {shares}"

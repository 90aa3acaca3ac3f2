"""The quality of labels and of the work on them, for leads: one document of plain data, from the database as it is.

Counts, shares and medians are the database's own, over every row. What needs the labels themselves (agreement, suspect
labels, what proposals do) is computed from the newest rows up to a stated number, and the document says how many.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import func, true, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Session, col, select

from service import audit as stream
from service import stored
from service.consensus import agreement, suspects
from service.errors import NotFound
from service.labels import plain
from service.models import (
    COUNTS,
    STANDS,
    Annotation,
    Batch,
    Item,
    ItemDecision,
    Kind,
    Review,
    SchemaVersion,
    State,
    now,
)
from service.route import Outcome
from service.scope import Scope, answered, count_if, medians, one_by_one, schemas, tasks, week

READINGS = 10_000  # the newest, for what proposals do
WEEKS = 26  # the newest
PEOPLE = 100  # reviewers, those with the most answers
RECIPES = 3  # those last in use
LEAST_AUDITED = 20  # readings of audited items before their time is told
CHUNK = 500

HOURS = "items accepted without a person x median seconds of a review with the proposal shown / 3,600"
HOURS_AUDITED = "items accepted without a person x median seconds of a reading of the audit / 3,600"

Section = Callable[[Session, Scope], Any]


def document(session: Session, scope: Scope, sections: Collection[str] | None = None) -> dict[str, Any]:
    """All sections of SECTIONS, or some, as JSON values. Raises NotFound for a batch that is not there.

    Answers and decisions count by their own time, and the audit stream of a recipe as a whole: its interval holds from
    the recipe's first audit on. An estimate is {"value", "low", "high"} with its 95 % interval, and None where there is
    too little to say.
    """
    if scope.batch is not None and session.get(Batch, scope.batch) is None:
        raise NotFound(f"no batch {scope.batch!r}")
    made = now()
    head = {
        "made_at": made.isoformat(),
        "batch": scope.batch,
        "since": scope.since.isoformat() if scope.since else None,
        "until": scope.until.isoformat() if scope.until else None,
    }
    return head | {
        name: make(session, scope) for name, make in SECTIONS.items() if sections is None or name in sections
    }


def coverage(session: Session, scope: Scope) -> dict[str, Any]:
    """How much was accepted without a person, and the hours that this saved.

    "labelled" = "accepted" + "audited" + "for_people"; of the last two "settled", "waiting", "disputed", "cancelled".
    seconds_shown: median of a review with the proposal shown; hours_saved: by HOURS. The accepted items are the easy
    ones, so that it says too much. seconds_audited, hours_audited: the same from readings of the audit, which drew
    among the accepted: the fair figure, None under LEAST_AUDITED readings.
    """
    from eval.scores import proportion

    query = (
        select(ItemDecision.outcome, Item.state, func.count())
        .join(Item, col(Item.id) == col(ItemDecision.item_id))
        .where(*scope.of(col(ItemDecision.created_at)))
        .group_by(col(ItemDecision.outcome), col(Item.state))
    )
    counted = {(outcome, state): count for outcome, state, count in session.exec(query)}
    by_outcome, seen = Counter[str](), Counter[str]()
    for (outcome, state), count in counted.items():
        by_outcome[outcome] += count
        if outcome != Outcome.accepted:
            seen[state] += count
    labelled, accepted, audited = sum(by_outcome.values()), by_outcome[Outcome.accepted], by_outcome[Outcome.audit]
    share = proportion(accepted + audited, labelled)
    timed = answered(scope, col(ItemDecision.outcome).label("name"), col(Review.seconds).label("value"))
    found = medians(session, timed.where(one_by_one(), col(Review.shown)).subquery())
    shown, _ = found.get(Outcome.review, (None, 0))
    easy, readings = found.get(Outcome.audit, (None, 0))
    easy = easy if readings >= LEAST_AUDITED else None
    return {
        "labelled": labelled,
        "accepted": accepted,
        "audited": audited,
        "for_people": by_outcome[Outcome.review],
        "share_accepted": asdict(share) if share else None,
        "settled": seen[State.resolved],
        "waiting": seen[State.review] + seen[State.audit],
        "disputed": seen[State.adjudication],
        "cancelled": seen[State.cancelled],
        "seconds_shown": shown,
        "hours_saved": None if shown is None else accepted * shown / 3600,
        "seconds_audited": easy,
        "hours_audited": None if easy is None else accepted * easy / 3600,
        "formulas": {"hours_saved": HOURS, "hours_audited": HOURS_AUDITED},
    }


def speed(session: Session, scope: Scope) -> dict[str, Any]:
    """What each reviewer did, and how fast. people: all of them; rows: the PEOPLE with the most answers.

    answers: those that count, of which `bulk` were given to many items at once; withdrawn: taken back, not counted.
    changed: share of the others in which the proposal was changed; seconds: their median.
    """
    from eval.scores import proportion

    counts = col(Review.withdrawn_at).is_(None)
    answer, flag, lead = (counts & (col(Review.kind) == kind) for kind in (Kind.answer, Kind.flag, Kind.adjudication))
    read = answer & one_by_one()
    told = (answer, read, read & col(Review.changed), flag, lead, ~counts)
    columns = [count_if(condition) for condition in told]
    query = select(Review.reviewer, *columns).join(Item, col(Item.id) == col(Review.item_id))
    query = query.where(*scope.of(col(Review.created_at))).group_by(col(Review.reviewer))
    rows = session.exec(query.order_by(columns[0].desc(), col(Review.reviewer))).all()
    timed = answered(scope, col(Review.reviewer).label("name"), col(Review.seconds).label("value"))
    found = medians(session, timed.where(one_by_one()).subquery())
    return {"people": len(rows), "rows": [_person(row, found, proportion) for row in rows[:PEOPLE]]}


def weeks(session: Session, scope: Scope) -> list[dict[str, Any]]:
    """The newest WEEKS with an answer, by ISO week in UTC, the oldest first.

    answers, changed, seconds: as of `speed`. doubles: items whose second answer came in the week; agreed: share of them
    in which both answers are the same, every task and mention.
    """
    from eval.scores import proportion

    by = week(session, col(Review.created_at)).label("week")
    single = answered(
        scope,
        by,
        col(Review.bulk).is_(None).label("alone"),
        col(Review.changed),
        col(Review.seconds),
        col(Review.reviewer),
    ).subquery()
    alone = count_if(single.c.alone)
    changed = count_if(single.c.alone & single.c.changed)
    columns: Any = (single.c.week, func.count(), func.count(func.distinct(single.c.reviewer)), alone, changed)
    query = select(*columns)
    newest = session.exec(query.group_by(single.c.week).order_by(single.c.week.desc()).limit(WEEKS)).all()
    timed = answered(scope, by.label("name"), col(Review.seconds).label("value")).where(one_by_one()).subquery()
    seconds = medians(session, timed)
    doubles = _doubles(session, scope)
    found = []
    for monday, answers, reviewers, read, differing in reversed(newest):
        twice, agreed = doubles.get(monday, (0, 0))
        shares = {"changed": proportion(differing, read), "agreed": proportion(agreed, twice)}
        found.append(
            {"week": iso_week(monday), "from": monday, "answers": answers, "reviewers": reviewers}
            | {name: asdict(share) if share else None for name, share in shares.items()}
            | {"seconds": seconds.get(monday, (None,))[0], "doubles": twice}
        )
    return found


def labels(session: Session, scope: Scope) -> list[dict[str, Any]]:
    """How often each label was given, by week: of each task by the model ("model") and by people ("people").

    The model's are of every item that it labelled, by the time of the decision; people's are the labels that stand, by
    the time of the answer. People are given what is doubtful, so that the two are of different texts, and are not to be
    held against each other; each against its own past. Of mentions, every mention counts. The newest WEEKS.
    """
    return [
        {"schema": schema, "task": task, "kind": kind}
        | {"model": _by_week(session, _model_labels(session, scope, schema, task, kind))}
        | {"people": _by_week(session, _people_labels(session, scope, schema, task, kind))}
        for schema, versions in schemas(session, scope).items()
        for task, kind in tasks(versions).items()
    ]


def assistance(session: Session, scope: Scope) -> dict[str, Any]:
    """What proposals do to people (`eval.assistance`), from the newest READINGS of batches that hide some by lot.

    Only answers that were given one by one, to items that the model could label.
    """
    from eval.assistance import Seen
    from eval.assistance import assistance as compared

    chances = {
        batch: chance
        for batch, policy in session.exec(select(Batch.id, Batch.policy))
        if 0 < (chance := float(policy.get("proposal_hidden") or 0)) < 1
    }
    columns = (
        Review.item_id,
        Item.batch_id,
        Review.reviewer,
        Review.shown,
        Review.seconds,
        Review.changed,
        Review.labels,
    )
    query = answered(scope, *columns).where(one_by_one(), col(ItemDecision.recipe).is_not(None))
    rows = session.exec(query.order_by(col(Review.id).desc()).limit(READINGS)).all()
    rows = [row for row in rows if row[1] in chances]
    found = []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        said = stored.said(session, {item for item, *_, changed, _ in chunk if changed})
        for item, batch, reviewer, shown, seconds, changed, answer in chunk:
            proposal = plain(said[item]) if changed else answer
            equal = {task: proposal.get(task) == label for task, label in answer.items()}
            found.append(Seen(reviewer, item, chances[batch], shown, seconds, equal))
    alike = _alike(found)
    said_of = asdict(compared(alike))
    return said_of | {
        "looked_at": len(alike),
        "other_tasks": len(found) - len(alike),
        "shifts": list(said_of["shifts"]),
    }


def audits(session: Session, scope: Scope) -> list[dict[str, Any]]:
    """The audit stream of the RECIPES that decided last in the scope, as of `service.audit`, without its windows."""
    last = func.max(col(ItemDecision.created_at))
    query = (
        select(ItemDecision.recipe)
        .join(Item, col(Item.id) == col(ItemDecision.item_id))
        .where(col(ItemDecision.recipe).is_not(None), *scope.of(col(ItemDecision.created_at)))
        .group_by(col(ItemDecision.recipe))
        .order_by(last.desc(), col(ItemDecision.recipe))
    )
    used = session.exec(query.limit(RECIPES)).all()
    return [stream.watch(session, recipe) for recipe in used if recipe is not None]


SECTIONS: Mapping[str, Section] = {
    "coverage": coverage,
    "assistance": assistance,
    "agreement": agreement,
    "speed": speed,
    "weeks": weeks,
    "labels": labels,
    "suspects": suspects,
    "audits": audits,
}


def iso_week(day: str) -> str:
    """`2026-W47` for the day `2026-11-16`."""
    year, number, _ = date.fromisoformat(day).isocalendar()
    return f"{year}-W{number:02}"


def _person(
    row: Any, seconds: Mapping[str, tuple[float, int]], proportion: Callable[[int, int], Any]
) -> dict[str, Any]:
    name, answers, read, changed, flagged, adjudicated, withdrawn = row
    share, (median, timed) = proportion(changed, read), seconds.get(name, (None, 0))
    return {
        "reviewer": name,
        "answers": answers,
        "bulk": answers - read,
        "changed": asdict(share) if share else None,
        "seconds": median,
        "timed": timed,
        "flagged": flagged,
        "adjudicated": adjudicated,
        "withdrawn": withdrawn,
    }


def _doubles(session: Session, scope: Scope) -> dict[str, tuple[int, int]]:
    """(items read twice, of them agreed) by the week of the second answer."""
    later = answered(
        scope,
        week(session, col(Review.created_at)).label("week"),
        col(Review.item_id).label("item"),
        col(Review.id).label("id"),
        col(Review.reviewer).label("reviewer"),
        col(Review.labels).label("labels"),
    ).subquery()
    # Equal as they lie there: they were written in one form and order, the schema's.
    query = (
        select(later.c.week, func.count(), count_if(col(Review.labels) == later.c.labels))
        .select_from(later)
        .join(Review, (col(Review.item_id) == later.c.item) & (col(Review.id) < later.c.id))
        .where(COUNTS, col(Review.kind) == Kind.answer, col(Review.reviewer) != later.c.reviewer)
        .group_by(later.c.week)
    )
    return {monday: (twice, agreed) for monday, twice, agreed in session.exec(query)}


def _model_labels(session: Session, scope: Scope, schema: str, task: str, kind: str) -> Any:
    """(week, label) of all that the model said of a task."""
    value = col(Annotation.value)
    label, each = (value["label"].as_string(), None) if kind == "choice" else _each(session, value, "spans")
    query = (
        select(week(session, col(ItemDecision.created_at)).label("week"), label.label("label"))
        .select_from(ItemDecision)
        .join(Item, col(Item.id) == col(ItemDecision.item_id))
        .join(
            Annotation, (col(Annotation.item_id) == col(Item.id)) & (col(Annotation.recipe) == col(ItemDecision.recipe))
        )
        .where(col(Annotation.task) == task, *_of_schema(schema), *scope.of(col(ItemDecision.created_at)))
    )
    return query if each is None else query.join(each, true())


def _people_labels(session: Session, scope: Scope, schema: str, task: str, kind: str) -> Any:
    """(week, label) of all that stands of a task."""
    given = col(Review.labels)
    label, each = (given[task].as_string(), None) if kind == "choice" else _each(session, given, task)
    query = (
        select(week(session, col(Review.created_at)).label("week"), label.label("label"))
        .select_from(Review)
        .join(Item, col(Item.id) == col(Review.item_id))
        .where(STANDS, *_of_schema(schema), *scope.of(col(Review.created_at)))
    )
    return query if each is None else query.join(each, true())


def _each(session: Session, value: Any, name: str) -> tuple[Any, Any]:
    """The label of each mention of the list under the name, and the table of mentions to be joined."""
    if session.get_bind().dialect.name == "postgresql":
        spans = type_coerce(value, JSONB)[name]
        each = func.jsonb_array_elements(spans).table_valued("value").render_derived()
        return type_coerce(each.c.value, JSONB)["label"].astext, each
    each = func.json_each(value, f"$.{name}").table_valued("value")
    return func.json_extract(each.c.value, "$.label"), each


def _by_week(session: Session, query: Any) -> list[dict[str, Any]]:
    """{"week", "n", "labels": {label: count}} of the newest WEEKS, the oldest first."""
    found = query.subquery()
    counted = select(found.c.week, found.c.label, func.count()).where(found.c.label.is_not(None))
    by_week: dict[str, dict[str, int]] = defaultdict(dict)
    for monday, label, count in session.exec(counted.group_by(found.c.week, found.c.label)):
        by_week[monday][label] = count
    return [
        {"week": iso_week(monday), "n": sum(counts.values()), "labels": dict(sorted(counts.items()))}
        for monday, counts in sorted(by_week.items())[-WEEKS:]
    ]


def _of_schema(schema: str) -> Iterator[Any]:
    """Conditions on items: of a schema of that name, whatever version."""
    named = select(Batch.id).join(SchemaVersion, col(SchemaVersion.id) == col(Batch.schema_id))
    yield col(Item.batch_id).in_(named.where(col(SchemaVersion.name) == schema))


def _alike(found: list[Any]) -> list[Any]:
    """Of readings under several schemas those of the tasks that most of them have: others cannot be put together."""
    most = Counter(tuple(sorted(one.equal)) for one in found).most_common(1)
    return [one for one in found if tuple(sorted(one.equal)) == most[0][0]]


def moment(value: date | datetime | None, last: bool = False) -> datetime | None:
    """The beginning of a day in UTC, or its end where it is the `last`; a moment as it is."""
    if value is None or isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value
    return datetime.combine(value, time(), UTC) + timedelta(days=last)

"""Who agrees with whom: people with one another, each with what stands and with gold; and labels to look at again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from service import stored
from service.labels import Labels, plain
from service.models import COUNTS, STANDS, Batch, GoldItem, Item, ItemDecision, Kind, Review, SchemaVersion
from service.scope import Scope, answered, schemas, tasks

SAMPLE = 5_000  # items, the newest
CHUNK = 500
PAIRS = 12  # people up to which every two of them are compared
SHOWN = 20  # suspects
EXCERPT = 160  # code points
NOTES = {"people": "people", "kappa": "people_kappa", "alpha": "alpha", "f1": "f1"}  # here, and in eval.ceiling

Span = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class _Read:
    """An item with what people said of it: the labels of each reader, and those that stand, if any do yet."""

    schema: str
    readers: Mapping[str, Mapping[str, Any]]
    stands: Mapping[str, Any] | None


def agreement(session: Session, scope: Scope) -> dict[str, Any]:
    """Agreement between people on items that two or more read, blind to each other: by task, and of each reviewer.

    "tasks": `people`, the share of cases in which the readers say the same, kappa and alpha, or F1 of mentions; "pairs"
    of people, where they are few. "reviewers": each one's answers against the labels that stand, of items that they did
    not decide alone ("consensus"), and against gold that was there before the answer, so that none is held against
    itself ("gold"). "items", "read": how many such items there are, and how many of them, the newest, were looked at.
    """
    kinds = {name: tasks(versions) for name, versions in schemas(session, scope).items()}
    total, found = _read_twice(session, scope)
    found = [read for read in found if read.schema in kinds]
    people = sorted({name for read in found for name in read.readers})
    held: dict[str, dict[str, list[tuple[str, Any, Any]]]] = defaultdict(lambda: {"consensus": [], "gold": []})
    for read in found:
        for name, labels in read.readers.items() if read.stands is not None else ():
            held[name]["consensus"].append((read.schema, read.stands, labels))
    for name, schema, gold, labels in _against_gold(session, scope):
        held[name]["gold"].append((schema, gold, labels))
    return {
        "items": total,
        "read": len(found),
        "tasks": [
            _task(found, schema, task, kind, named=len(people) <= PAIRS)
            for schema, ours in kinds.items()
            for task, kind in ours.items()
        ],
        "reviewers": [
            {"reviewer": name} | {what: list(_scores(rows, kinds)) for what, rows in held[name].items()}
            for name in sorted(held)
        ],
    }


def suspects(session: Session, scope: Scope) -> dict[str, Any]:
    """Labels that stand against a model that was sure of something else: the person's, or the model's, is wrong.

    Confident learning (`eval.suspects`) over the newest labels that stand, by task; of mentions, whether they were kept
    as proposed. "blame": "model" where others said the same as the person, "reviewer" where others said what the model
    did, "open" where nobody else was asked or they were divided. "found": how many; the surest are in "rows".
    """
    from eval.suspects import suspects as confident

    kinds = {name: tasks(versions) for name, versions in schemas(session, scope).items()}
    given: dict[tuple[str, str], list[tuple[int, str, Mapping[str, float]]]] = defaultdict(list)
    standing = _standing(session, scope)
    for chunk in _chunks(standing):
        said = stored.said(session, [item for item, *_ in chunk])
        for item, schema, _, labels in chunk:
            for task in kinds.get(schema, {}):
                if item in said and (case := _case(task, labels, said[item])):
                    given[schema, task].append((item, *case))
    rows: list[dict[str, Any]] = [
        {"schema": schema, "task": task, "item": cases[one.index][0]} | asdict(one)
        for (schema, task), cases in given.items()
        for one in confident([label for _, label, _ in cases], [stated for *_, stated in cases])
        if kinds[schema][task] == "choice" or one.given == "changed"  # what was kept against doubts is the usual case
    ]
    rows.sort(key=lambda row: (row["own"] - row["probability"], row["item"]))
    return {"looked_at": len(standing), "found": len(rows), "rows": _explained(session, rows[:SHOWN])}


def _read_twice(session: Session, scope: Scope) -> tuple[int, list[_Read]]:
    """How many items two people answered, and the newest SAMPLE of them."""
    newest = func.max(Review.id).label("newest")
    twice = answered(scope, col(Review.item_id).label("item"), newest).group_by(col(Review.item_id))
    several = twice.having(func.count(func.distinct(col(Review.reviewer))) > 1).subquery()
    total = session.exec(select(func.count()).select_from(several)).one()
    query = select(several.c.item).order_by(several.c.newest.desc()).limit(SAMPLE)
    columns: Any = (Review.item_id, Review.reviewer, Review.kind, Review.labels, Review.stands, SchemaVersion.name)
    found: list[_Read] = []
    for chunk in _chunks(session.exec(query).all()):
        readers: dict[int, dict[str, Any]] = defaultdict(dict)
        stands: dict[int, Any] = {}
        names: dict[int, str] = {}
        rows = select(*columns).select_from(Review)
        rows = rows.join(Item, col(Item.id) == col(Review.item_id)).join(Batch, col(Batch.id) == col(Item.batch_id))
        rows = rows.join(SchemaVersion, col(SchemaVersion.id) == col(Batch.schema_id))
        for item, reviewer, kind, labels, standing, schema in session.exec(
            rows.where(COUNTS, col(Review.item_id).in_(chunk)).order_by(col(Review.id))
        ):
            names[item] = schema
            stands |= {item: labels} if standing else {}
            if kind == Kind.answer:
                readers[item][reviewer] = labels
        found += [_Read(names[item], readers[item], stands.get(item)) for item in chunk]
    return total, found


def _against_gold(session: Session, scope: Scope) -> Iterator[tuple[str, str, Any, Any]]:
    """(reviewer, schema, gold, labels) of the newest SAMPLE answers to texts of a gold set."""
    query = (
        answered(scope, col(Review.reviewer), col(SchemaVersion.name), col(GoldItem.labels), col(Review.labels))
        .join(Batch, col(Batch.id) == col(Item.batch_id))
        .join(SchemaVersion, col(SchemaVersion.id) == col(Batch.schema_id))
        .join(GoldItem, col(GoldItem.text_sha256) == col(Item.text_sha256))
        .where(col(GoldItem.created_at) <= col(Review.created_at))
    )
    yield from session.exec(query.order_by(col(Review.id).desc()).limit(SAMPLE))


def _task(found: Sequence[_Read], schema: str, task: str, kind: str, named: bool) -> dict[str, Any]:
    from eval.ceiling import choice_ceiling, span_ceiling

    readers = [read.readers for read in found if read.schema == schema]
    both = [{name: one[task] for name, one in answers.items() if task in one} for answers in readers]
    if not named:  # every two of many people would take long, and mean little
        both = [{str(at): label for at, label in enumerate(answers.values())} for answers in both]
    row: dict[str, Any] = {"schema": schema, "task": task, "kind": kind}
    if kind == "choice":
        choices = choice_ceiling(both, [""] * len(both))
        row |= {"n": choices.n, "people": choices.people, "kappa": choices.people_kappa, "alpha": choices.alpha}
        pairs, notes = choices.pairs, choices.notes
    else:
        marks = [{name: _mentions(spans) for name, spans in answers.items()} for answers in both]
        spans = span_ceiling(marks, [()] * len(both))
        row |= {"n": spans.n, "f1": spans.f1}
        pairs, notes = spans.pairs, spans.notes
    row |= {name: asdict(value) for name in ("people", "kappa", "alpha", "f1") if (value := row.get(name)) is not None}
    why = {name: notes[note] for name, note in NOTES.items() if name in row and note in notes}
    return row | {"pairs": [asdict(pair) for pair in pairs] if named else [], "notes": why}


def _scores(
    rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]], kinds: Mapping[str, Mapping[str, str]]
) -> Iterator[dict[str, Any]]:
    """rows: (schema, right, said). Of each task that both answer: n and the score with its interval."""
    pairs: dict[tuple[str, str], list[tuple[Any, Any]]] = defaultdict(list)
    for schema, right, said in rows:
        for task in kinds.get(schema, {}).keys() & right.keys() & said.keys():
            pairs[schema, task].append((right[task], said[task]))
    for (schema, task), both in sorted(pairs.items()):
        kind = kinds[schema][task]
        yield {"schema": schema, "task": task, "kind": kind, "n": len(both)} | _score(kind, both)


def _score(kind: str, both: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """Of a choice the share that is the same, and kappa; of mentions strict F1."""
    from eval.agreement import beyond_chance, cohen
    from eval.scores import columns, proportion, shares

    if kind == "choice":
        counted = sorted(Counter(both).items())
        kappa = beyond_chance(cohen([[pair] for pair, _ in counted]), [count for _, count in counted])
        score = proportion(sum(count for (one, other), count in counted if one == other), len(both))
        return {"score": asdict(score) if score else None, "kappa": asdict(kappa) if kappa else None}
    marks = [(_mentions(one), _mentions(other)) for one, other in both]
    counts, (agreed, size) = columns(Counter((2 * len(a & b), len(a) + len(b)) for a, b in marks).items(), 2)
    (f1,) = shares(counts, (agreed, size))
    return {"score": asdict(f1) if f1 else None}


def _standing(session: Session, scope: Scope) -> Sequence[tuple[int, str, str, Mapping[str, Any]]]:
    """(item, schema, reviewer, labels) of the newest labels that stand, where the model had something to say."""
    query = (
        select(Review.item_id, SchemaVersion.name, Review.reviewer, Review.labels)
        .select_from(Review)
        .join(Item, col(Item.id) == col(Review.item_id))
        .join(ItemDecision, col(ItemDecision.item_id) == col(Review.item_id))
        .join(Batch, col(Batch.id) == col(Item.batch_id))
        .join(SchemaVersion, col(SchemaVersion.id) == col(Batch.schema_id))
        .where(STANDS, col(ItemDecision.recipe).is_not(None), *scope.of(col(Review.created_at)))
    )
    return session.exec(query.order_by(col(Review.id).desc()).limit(SAMPLE)).all()


def _case(task: str, labels: Mapping[str, Any], said: Labels) -> tuple[str, dict[str, float]] | None:
    """The label that stands and how likely the model found each; of mentions, whether they were kept as proposed."""
    if task in said.choices and isinstance(labels.get(task), str):
        choice = said.choices[task]
        stated = {other.label: other.confidence for other in choice.alternatives}
        return None if choice.confidence is None else (labels[task], stated | {choice.label: choice.confidence})
    if task in said.mentions and isinstance(labels.get(task), list):
        sure = said.mentions[task].confidence
        kept = "as proposed" if plain(said)[task] == labels[task] else "changed"
        return None if sure is None else (kept, {"as proposed": sure, "changed": 1 - sure})
    return None


def _explained(session: Session, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the text, who said what, and whose label it probably is that is wrong."""
    ids = sorted({row["item"] for row in rows})
    items = {item: (ref, text) for item, ref, text in session.exec(_texts(ids))}
    said, standing = stored.said(session, ids), stored.answers(session, ids)
    others: dict[int, list[Review]] = defaultdict(list)
    for review in session.exec(select(Review).where(COUNTS, col(Review.item_id).in_(ids)).order_by(col(Review.id))):
        if review.kind != Kind.flag and review.reviewer != standing[review.item_id].reviewer:
            others[review.item_id].append(review)
    for row in rows:
        item, task = row["item"], row["task"]
        ref, text = items[item]
        proposal, right = plain(said[item])[task], standing[item].labels[task]
        theirs = [review.labels.get(task) for review in others[item]]
        with_person, with_model = theirs.count(right), theirs.count(proposal)
        blame = "model" if with_person > with_model else "reviewer" if with_model > with_person else "open"
        row |= {"ref": ref, "text": text[:EXCERPT], "cut": len(text) > EXCERPT, "reviewer": standing[item].reviewer}
        row |= {"others": sorted({review.reviewer for review in others[item]}), "blame": blame}
        row.pop("index")
    return rows


def _texts(ids: Sequence[int]) -> Any:
    return select(Item.id, Item.ref, func.substr(Item.text, 1, EXCERPT + 1)).where(col(Item.id).in_(ids))


def _mentions(spans: Iterable[Mapping[str, Any]]) -> set[Span]:
    return {(span["start"], span["end"], span["label"]) for span in spans}


def _chunks(rows: Iterable[Any]) -> Iterator[list[Any]]:
    left = iter(rows)
    while chunk := list(islice(left, CHUNK)):
        yield chunk

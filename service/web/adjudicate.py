"""The page /adjudicate: what people disagree on, or asked about, and a lead's decision on it.

Leads see no names before they have decided: who is A and who is B is drawn anew for each item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from sqlmodel import Session, col, select
from starlette.responses import HTMLResponse, RedirectResponse, Response

from service import adjudication, batches, gold
from service.adjudication import Dispute, Said
from service.api.dependencies import MOST, After, LeadDep, ReadDep
from service.models import STANDS, Item, Kind, Review
from service.report import Piece
from service.schema import Task as Question
from service.web.pages import render

router = APIRouter(include_in_schema=False)

LISTED = 50
SETTLED = 30
EXCERPT = 200  # code points
LETTERS = "ABCDEFGH"
WORDS = {
    "wrong_label": "other label",
    "wrong_boundary": "other boundaries",
    "missed": "only here",
    "spurious": "only here",
}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A line of the list. differs: names of the tasks on which the answers differ. held_by: a lead, at this moment."""

    item: int
    ref: str
    text: str
    cut: bool
    kind: str
    differs: tuple[str, ...]
    held_by: str | None


@dataclass(frozen=True, slots=True)
class Settled:
    """What a lead decided. gold: the set that it went into, if it did."""

    item: int
    ref: str
    lead: str
    reason: str
    at: datetime
    gold: str | None


@dataclass(frozen=True, slots=True)
class ListPage:
    """waiting: in the order of arrival. more: address of the next page, if there is one. settled: the newest. sets: the
    names of the gold sets that are there."""

    waiting: list[Waiting]
    more: str | None
    settled: list[Settled]
    sets: list[str]


@dataclass(frozen=True, slots=True)
class Mark:
    """A mention of one answer, its label as people read it.

    differs: how the other answer has it, in words; empty where it is the same there.
    """

    text: str
    label: str
    differs: str


@dataclass(frozen=True, slots=True)
class Side:
    """What one answer says of a task. letter: A, B …, or M of the model's proposal. value: the label of a choice; None
    where it is no choice or was not answered. pieces, marks: the text with its mentions, and those alone."""

    letter: str
    value: str | None
    pieces: tuple[Piece, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """One task with all that was said of it. same: all answers are equal; None with fewer than two."""

    name: str
    title: str
    kind: str
    instruction: str
    definitions: tuple[tuple[str, str], ...]
    same: bool | None
    sides: tuple[Side, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer without its name. shown: whether the person saw the proposal."""

    letter: str
    note: str
    shown: bool


@dataclass(frozen=True, slots=True)
class ItemPage:
    """One item, without names.

    questions: notes of those who flagged it. tasks: those to be decided first. data: for the script. next: where the
    next item that waits is.
    """

    item: int
    ref: str
    text: str
    kind: str
    meta: Mapping[str, Any]
    guideline: str
    answers: tuple[Answer, ...]
    questions: tuple[str, ...]
    tasks: tuple[Task, ...]
    has_proposal: bool
    sets: list[str]
    data: Mapping[str, Any]
    next: str


@router.get("/adjudicate")
def listing(request: Request, session: ReadDep, _caller: LeadDep, after: After = 0) -> HTMLResponse:
    """Everything that waits for a lead, and what leads decided last."""
    page = adjudication.listing(session, after=after, limit=LISTED)
    more = f"/adjudicate?after={page.after}" if page.after is not None else None
    waiting = [_waiting(row) for row in page.rows]
    return render(request, "adjudications.html", ListPage(waiting, more, _settled(session), _sets(session)))


@router.get("/adjudicate/next")
def following(session: ReadDep, caller: LeadDep, after: After = 0) -> Response:
    """On to the next item that waits and is free, from the beginning again after the last; to the list where there is
    none."""
    rows = [*adjudication.listing(session, after, LISTED).rows, *adjudication.listing(session, 0, LISTED).rows]
    free = [row.item for row in rows if row.held_by in (None, caller.name)]
    return RedirectResponse(f"/adjudicate/{free[0]}" if free else "/adjudicate", 303)


@router.get("/adjudicate/{item}")
def one(request: Request, session: ReadDep, _caller: LeadDep, item: Annotated[int, Path(ge=1, le=MOST)]) -> Response:
    """One item. What waits no more is shown in the list."""
    rows = adjudication.listing(session, after=item - 1, limit=1).rows
    if not rows or rows[0].item != item:
        return RedirectResponse("/adjudicate", 303)
    row = rows[0]
    schema = batches.find_schema(session, row.schema, row.version)
    answers = _by_lot(row)
    said = {letter: answer.labels for letter, answer in answers.items()}
    proposal = _plain_proposal(row)
    data = {
        "item": item,
        "text": row.text,
        "schema": schema.model_dump(mode="json"),
        "answers": [
            {"letter": letter, "review": answer.review, "labels": answer.labels} for letter, answer in answers.items()
        ],
        "proposal": proposal,
    }
    tasks = [_task(row.text, task, said, proposal) for task in schema.tasks]
    page = ItemPage(
        item=item,
        ref=row.ref,
        text=row.text,
        kind=row.kind,
        meta=row.meta,
        guideline=schema.guideline,
        answers=tuple(Answer(letter, answer.note, answer.shown) for letter, answer in answers.items()),
        questions=tuple(answer.note for answer in row.answers if answer.kind == Kind.flag),
        tasks=tuple(sorted(tasks, key=lambda task: task.same is not False)),  # what is to be decided first
        has_proposal=proposal is not None,
        sets=_sets(session),
        data=data,
        next=f"/adjudicate/next?after={item}",
    )
    return render(request, "adjudicate.html", page)


def _by_lot(row: Dispute) -> dict[str, Said]:
    """The answers by letter, in an order that tells nothing of who came first, and is always the same."""
    answers = [answer for answer in row.answers if answer.kind == Kind.answer]
    ordered = sorted(answers, key=lambda answer: hashlib.sha256(f"{row.item}:{answer.review}".encode()).digest())
    return dict(zip(LETTERS, ordered, strict=False))


def _plain_proposal(row: Dispute) -> dict[str, Any] | None:
    """The model's labels as people give theirs."""
    if row.proposal is None:
        return None
    kept = ("start", "end", "label", "text")
    return {
        task: value["label"] if isinstance(value, Mapping) else [{name: span[name] for name in kept} for span in value]
        for task, value in row.proposal.items()
        if task != "complete"
    }


def _task(text: str, task: Question, said: Mapping[str, Mapping[str, Any]], proposal: Mapping[str, Any] | None) -> Task:
    given = {letter: labels[task.name] for letter, labels in said.items() if task.name in labels}
    spans = {letter: _mentions(found) for letter, found in given.items()} if task.kind == "spans" else {}
    shown = given | ({"M": proposal[task.name]} if proposal and task.name in proposal else {})
    shown_as = {label.name: label.shown for label in task.labels}
    sides = []
    for letter, answer in shown.items():
        if task.kind == "choice":
            sides.append(Side(letter, shown_as[answer], (), ()))
            continue
        others = [other for at, other in spans.items() if at != letter]
        sides.append(Side(letter, None, *_marked(text, answer, others, shown_as)))
    values = [spans[letter] if spans else answer for letter, answer in given.items()]
    same = all(value == values[0] for value in values) if len(values) > 1 else None
    if same:  # one side stands for all
        sides = [side for side in sides if side.letter in (next(iter(given)), "M")]
    return Task(
        name=task.name,
        title=task.title,
        kind=task.kind,
        instruction=task.instruction,
        definitions=tuple((label.shown, label.definition) for label in task.labels),
        same=same,
        sides=tuple(sides),
    )


def _marked(
    text: str,
    answer: Sequence[Mapping[str, Any]],
    others: Sequence[set[tuple[int, int, str]]],
    shown_as: Mapping[str, str],
) -> tuple[tuple[Piece, ...], tuple[Mark, ...]]:
    """The whole text with the mentions of one answer, each with what became of it in the others."""
    from eval.agreement import span_verdicts

    spans = sorted(_mentions(answer))
    verdicts = [span_verdicts(spans, sorted(other))[0] for other in others]
    pieces, marks, at = [], [], 0
    for span in spans:
        start, end, label = span
        differs = next((WORDS[found[span]] for found in verdicts if found[span] != "agreed"), "")
        pieces += [Piece(text[at:start])] if start > at else []
        pieces.append(Piece(text[start:end], shown_as[label], differs))
        marks.append(Mark(text[start:end], shown_as[label], differs))
        at = end
    return (*pieces, *([Piece(text[at:])] if at < len(text) else [])), tuple(marks)


def _waiting(row: Dispute) -> Waiting:
    said = [answer.labels for answer in row.answers if answer.kind == Kind.answer]
    differs = tuple(task for task in (said[0] if said else {}) if any(one.get(task) != said[0][task] for one in said))
    return Waiting(row.item, row.ref, row.text[:EXCERPT], len(row.text) > EXCERPT, row.kind, differs, row.held_by)


def _settled(session: Session) -> list[Settled]:
    columns: Any = (Item.id, Item.ref, Review.reviewer, Review.note, Review.created_at, Review.gold)
    query = (
        select(*columns)
        .join(Review, col(Review.item_id) == col(Item.id))
        .where(STANDS, col(Review.kind) == Kind.adjudication)
        .order_by(col(Review.id).desc())
    )
    return [Settled(*row) for row in session.exec(query.limit(SETTLED))]


def _sets(session: Session) -> list[str]:
    return [found["name"] for found in gold.sets(session)]


def _mentions(spans: Iterable[Mapping[str, Any]]) -> set[tuple[int, int, str]]:
    return {(span["start"], span["end"], span["label"]) for span in spans}

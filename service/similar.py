"""Texts that are like one another, by their runs of characters: what to read next, and what to settle together.

Likeness: the cosine of hashed counts of character 2- to 4-grams within words, in [0, 1]; 1 for equal texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, tuple_
from sqlmodel import Session, col, select

from service import stored
from service.errors import NotFound
from service.labels import Labels
from service.models import COUNTS, FOR_PEOPLE, HELD, Item, ItemDecision, Review, State, now
from service.review import WAITING, check_held, filters, free, is_shown, unread_by
from service.route import Code
from service.stored import key

if TYPE_CHECKING:
    from numpy import ndarray

POOL = 200  # of the least sure, among which the one least like the others is sought
LATELY = 100  # answers, the newest
NEAR = 1000  # items on either side whose confidence is nearest
LENGTH = 500  # characters of a text that are compared
FEATURES = 2**18


@dataclass(frozen=True, slots=True)
class Like:
    """An item that could be settled like the one in hand. similarity: of the texts, in [0, 1]."""

    item: int
    ref: str
    text: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Alike:
    """What items have in common, `why`: {"labels": {choice task: label}, "reasons": [code]}; most similar first."""

    why: dict[str, Any]
    items: list[Like]


def informative(
    session: Session,
    reviewer: str,
    batch: str | None = None,
    reason: Code | None = None,
    task: str | None = None,
    most: int = 10,
) -> list[int]:
    """Which items to read next, the first of them first, so that little is read twice in other words.

    Of the 200 least sure items that are free, each time the one that is least like any that was answered lately, is in
    somebody's hands, or was just picked: the greedy solution of k-center (Sener and Savarese, Active Learning for
    Convolutional Neural Networks: A Core-Set Approach, ICLR 2018, algorithm 1). Equal ones: the less sure. Empty where
    nothing was answered or held yet: then there is nothing to be unlike. Filters as in `review.next_item`.
    """
    known = _lately(session, batch)
    query = (
        select(Item.id, Item.text)
        .join(ItemDecision, col(ItemDecision.item_id) == col(Item.id))
        .where(FOR_PEOPLE, free(now()), unread_by(reviewer), *filters(session, batch, reason, task))
        .order_by(col(Item.priority), col(Item.id))
        .limit(POOL)
    )
    pool = session.exec(query).all() if known else []
    if not pool:
        return []
    texts = [words for _, words in pool]
    nearest = _likeness(texts, known).max(axis=1)
    among = _likeness(texts, texts)
    picked: list[int] = []
    for _ in range(min(most, len(pool))):
        best = int(nearest.argmin())
        picked.append(pool[best][0] or 0)
        nearest = nearest.clip(min=among[best])
        nearest[best] = 2.0
    return picked


def alike(session: Session, item_id: int, reviewer: str, limit: int = 100) -> Alike:
    """Free items with the choice labels and the reasons of the item in hand. limit: 1 to 500, and brought within.

    Sought among those whose confidence is nearest, 1,000 on either side, and those with the very same text. Never one
    of which a reader must not see the proposal, that two people read, or that was drawn for the audit: these are looked
    at one by one. Nothing where the proposal of the item in hand is hidden, or there is none. Raises NotFound; Conflict
    where the item is not in the reviewer's hands.
    """
    item = session.get(Item, item_id)
    if item is None:
        raise NotFound(f"no item {item_id}")
    check_held(item, item.fence, reviewer, *WAITING)
    decision = session.get_one(ItemDecision, item_id)
    said = stored.said(session, [item_id]).get(item_id)
    if said is None or not is_shown(item) or not said.choices:
        return Alike({"labels": {}, "reasons": []}, [])
    codes = sorted({reason["code"] for reason in decision.reasons})
    labels = _choices(said)
    near = _near(session, item, codes)
    proposals = stored.said(session, near)
    same = [other for other in near if other in proposals and _choices(proposals[other]) == labels]
    found = [near[other] for other in same]
    values: Sequence[float] = _likeness([one.text for one in found], [item.text])[:, 0].tolist() if found else []
    likes = [
        Like(key(one), one.ref, one.text, min(1.0, round(value, 4))) for one, value in zip(found, values, strict=True)
    ]
    likes.sort(key=lambda like: (-like.similarity, like.item))
    return Alike({"labels": labels, "reasons": codes}, likes[: max(1, min(limit, 500))])


def _lately(session: Session, batch: str | None) -> list[str]:
    """Texts that were answered lately, and those in somebody's hands."""
    within: list[ColumnElement[bool]] = [] if batch is None else [col(Item.batch_id) == batch]
    answered = select(Item.text).join(Review, col(Review.item_id) == col(Item.id)).where(COUNTS, *within)
    held = select(Item.text).where(HELD, col(Item.lease_until) > now(), *within)
    newest = session.exec(answered.order_by(col(Review.id).desc()).limit(LATELY)).all()
    return [*newest, *session.exec(held.limit(LATELY)).all()]


def _near(session: Session, item: Item, codes: Sequence[str]) -> dict[int, Item]:
    """Free items with these reasons, nearest to the item in confidence, or with its text; of the same schema."""
    query = select(Item).where(FOR_PEOPLE, free(now()), plainly_read(), col(Item.id) != item.id)
    place = tuple_(col(Item.priority), col(Item.id))
    here = tuple_(item.priority, item.id)
    order = (col(Item.priority), col(Item.id))
    found = [
        *session.exec(query.where(col(Item.text_sha256) == item.text_sha256).limit(NEAR)),
        *session.exec(query.where(place > here).order_by(*order).limit(NEAR)),
        *session.exec(query.where(place < here).order_by(*(one.desc() for one in order)).limit(NEAR)),
    ]
    schemas = stored.schemas(session, {one.batch_id for one in [item, *found]})
    ids = [key(one) for one in found if schemas[one.batch_id].sha256 == schemas[item.batch_id].sha256]
    reasons = select(ItemDecision.item_id, ItemDecision.reasons).where(col(ItemDecision.item_id).in_(ids))
    same = {one for one, given in session.exec(reasons) if sorted({reason["code"] for reason in given}) == codes}
    return {key(one): one for one in found if key(one) in same}


def plainly_read() -> ColumnElement[bool]:
    """That an item is read by one person, who sees the proposal, and was not drawn for the audit."""
    once = and_(col(Item.readers) == 1, col(Item.hidden).op("&")(1) == 0, col(Item.answers) == 0)
    return and_(once, col(Item.state) == State.review)


def _choices(labels: Labels) -> dict[str, str]:
    return {task: choice.label for task, choice in labels.choices.items()}


def _likeness(texts: Sequence[str], others: Sequence[str]) -> ndarray[Any, Any]:
    """Shape (texts, others)."""
    from sklearn.feature_extraction.text import HashingVectorizer

    hashed = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=FEATURES, alternate_sign=False)
    rows, columns = (hashed.transform([one[:LENGTH] for one in each]) for each in (texts, others))
    found: ndarray[Any, Any] = (rows @ columns.T).toarray()
    return found

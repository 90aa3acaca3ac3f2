"""How far the model's labels of a batch agree with a gold set, and what that says of each label a recipe uses.

It is the model that is measured: what a person settled plays no part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import delete, func
from sqlmodel import Session, col, select

from service import stored
from service.errors import NotFound
from service.labels import Labels, Mentions, plain
from service.models import Batch, GoldItem, Item, ItemDecision, Measurement, Recipe, State
from service.route import Code, Measured
from service.schema import Schema

CHUNK = 500
COUNTS = ["items", "matched", "by_id", "by_text", "compared", "failed", "waiting", "cancelled"]
COUNTS += ["unmatched", "conflict", "ambiguous"]
BECAME: dict[str, str] = {State.queued: "waiting", State.leased: "waiting", State.cancelled: "cancelled"}
SHOWN = 20  # disagreements and conflicts that are listed; all of them are counted


@dataclass(frozen=True, slots=True)
class _Record:
    ref: str
    text_sha256: str
    labels: Mapping[str, Any]


@dataclass(slots=True)
class _GoldSet:
    """by_text: None where the set holds the text more than once, with different labels."""

    by_id: dict[str, _Record] = field(default_factory=dict)
    by_text: dict[str, _Record | None] = field(default_factory=dict)

    def find(self, ref: str, text_sha256: str) -> tuple[str, _Record | None]:
        """by_id, by_text, conflict (the id is known, with another text), ambiguous or unmatched; and the record."""
        named = self.by_id.get(ref)
        if named is not None and named.text_sha256 == text_sha256:
            return "by_id", named
        if text_sha256 in self.by_text:
            record = self.by_text[text_sha256]
            return ("by_text" if record else "ambiguous"), record
        return ("conflict", None) if named else ("unmatched", None)


@dataclass(frozen=True, slots=True)
class _Match:
    """An item and the gold record of the same text."""

    item: int
    ref: str
    record: _Record
    state: str


@dataclass(frozen=True, slots=True)
class _Pair:
    """One task of one item. confidence: how sure the model was where it differs; None where it agrees or is silent."""

    match: _Match
    task: str
    gold: Any
    said: Any
    agrees: bool
    confidence: float | None


def agreement(session: Session, batch_id: str, gold: str) -> dict[str, Any]:
    """Agreement of a batch with a gold set, as JSON-able numbers. The transaction must be one that may write.

    {"batch", "gold", "recipes", "coverage", "tasks", "routing", "disagreements", "conflicts"}
    coverage: items = matched + unmatched + conflict + ambiguous; matched = by_id + by_text = compared + failed
        + waiting + cancelled. An item is matched to the record with its id where the text is the same, else to the one
        with its text. conflict: the id is in the set under another text, and the text is not in it; ambiguous: the
        set holds the text several times, with different labels. gold_size and gold_used count records.
    tasks: for each task that both label, "kind" and the fields of eval.agreement's ChoiceAgreement or SpanAgreement.
        outside_schema: labels of gold that the batch's schema lacks, so that the model could not have said them.
    routing: eval.scores.Routing, of the decisions as they would be without knowing gold.
    disagreements: at most 20, those first where the model was most sure of what gold contradicts.
    Also writes, for each recipe, how often each label agreed (Measurement), over all its texts of this set in any
    batch. Raises NotFound for the batch or the set.
    """
    if session.get(Batch, batch_id) is None:
        raise NotFound(f"no batch {batch_id!r}")
    known = _read(session, gold)
    matches, found, conflicts = _match(session, batch_id, known)
    compared, became, accepted, recipes = _decide(session, matches)
    found += became
    used = len({match.record.ref for match in compared})
    pairs = list(_pairs(session, compared))
    for recipe in recipes:
        _measure(session, gold, known, recipe)
    return {
        "batch": batch_id,
        "gold": gold,
        "recipes": recipes,
        "coverage": {name: found[name] for name in COUNTS} | {"gold_size": len(known.by_id), "gold_used": used},
        "tasks": _tasks(pairs, stored.schemas(session, [batch_id])[batch_id]),
        "routing": _routing(pairs, accepted),
        "disagreements": _disagreements(session, pairs),
        "conflicts": conflicts,
    }


def _read(session: Session, gold: str) -> _GoldSet:
    query = select(GoldItem.ref, GoldItem.text_sha256, GoldItem.labels).where(col(GoldItem.gold) == gold)
    known = _GoldSet()
    for record in (_Record(*row) for row in session.exec(query.order_by(col(GoldItem.id)))):
        known.by_id[record.ref] = record
        first = known.by_text.setdefault(record.text_sha256, record)
        if first is not None and first.labels != record.labels:
            known.by_text[record.text_sha256] = None
    if not known.by_id:
        raise NotFound(f"no gold set {gold!r}")
    return known


def _match(session: Session, batch: str, known: _GoldSet) -> tuple[list[_Match], Counter[str], list[dict[str, Any]]]:
    """The items whose text is in the set, all items counted by how they were found, and the first conflicts."""
    query = select(Item.id, Item.ref, Item.text_sha256, Item.state).where(col(Item.batch_id) == batch)
    found: Counter[str] = Counter()
    matches: list[_Match] = []
    conflicts: list[dict[str, Any]] = []
    for item, ref, sha256, state in session.exec(query.order_by(col(Item.position))):
        how, record = known.find(ref, sha256)
        found.update(["items", how])
        if record is not None and item is not None:
            matches.append(_Match(item, ref, record, state))
        elif how == "conflict" and len(conflicts) < SHOWN:
            conflicts.append({"item": item, "id": ref})
    return matches, found, conflicts


def _decide(
    session: Session, matches: Sequence[_Match]
) -> tuple[list[_Match], Counter[str], dict[int, bool], list[str]]:
    """The matches that have labels, all counted by what became of them, who was accepted, and the recipes that spoke.

    Accepted is what nothing speaks against but gold itself or the lot of the audit.
    """
    compared, became, accepted, recipes = [], Counter(matched=len(matches)), {}, set()
    for start in range(0, len(matches), CHUNK):
        chunk = matches[start : start + CHUNK]
        query = select(ItemDecision.item_id, ItemDecision.recipe, ItemDecision.reasons)
        query = query.where(col(ItemDecision.item_id).in_([match.item for match in chunk]))
        decided = {item: (recipe, reasons) for item, recipe, reasons in session.exec(query) if recipe}
        compared += [match for match in chunk if match.item in decided]
        became.update(BECAME.get(match.state, "failed") if match.item not in decided else "compared" for match in chunk)
        for item, (recipe, reasons) in decided.items():
            recipes.add(recipe)
            accepted[item] = {reason["code"] for reason in reasons} <= {Code.gold_mismatch, Code.audit}
    return compared, became, accepted, sorted(recipes)


def _pairs(session: Session, matches: Sequence[_Match]) -> Iterator[_Pair]:
    for start in range(0, len(matches), CHUNK):
        chunk = matches[start : start + CHUNK]
        said = stored.said(session, [match.item for match in chunk])
        for match in chunk:
            yield from _compare(match, said.get(match.item, Labels()))


def _compare(match: _Match, said: Labels) -> Iterator[_Pair]:
    """A pair for each task that both label in the same way."""
    shown = plain(said)
    for task, right in match.record.labels.items():
        if task in said.choices and isinstance(right, str):
            choice = said.choices[task]
            agrees = choice.label == right
            yield _Pair(match, task, right, choice.label, agrees, None if agrees else choice.confidence)
        elif task in said.mentions and isinstance(right, list):
            agrees = _places(right) == _places(shown[task])
            yield _Pair(match, task, right, shown[task], agrees, _sureness(said.mentions[task], _places(right)))


def _places(spans: Sequence[Mapping[str, Any]]) -> frozenset[tuple[int, int, str]]:
    return frozenset((span["start"], span["end"], span["label"]) for span in spans)


def _sureness(said: Mentions, right: frozenset[tuple[int, int, str]]) -> float | None:
    """The greatest confidence in a mention that gold lacks, or in none missing where one is."""
    here = {(span.start, span.end, span.label): span.confidence for span in said.spans}
    wrong = [confidence for place, confidence in here.items() if place not in right]
    wrong += [said.complete] if right - here.keys() else []
    return max((confidence for confidence in wrong if confidence is not None), default=None)


def measured(session: Session, recipe: str, gold: str | None = None) -> dict[tuple[str, str], Measured]:
    """Agreement by (task, label) on a gold set, or on all that the recipe was measured on."""
    query = select(Measurement.task, Measurement.label, func.sum(Measurement.agreed), func.sum(Measurement.uses)).where(
        Measurement.recipe == recipe
    )
    if gold is not None:
        query = query.where(Measurement.gold == gold)
    rows = session.exec(query.group_by(col(Measurement.task), col(Measurement.label)))
    return {(task, label): Measured(int(agreed), int(uses)) for task, label, agreed, uses in rows}


def compare(schema: Schema, pairs: Sequence[tuple[Labels, Labels]]) -> dict[str, Any]:
    """Agreement by task of (gold, said) labels, one pair a text, in the form of `agreement`'s "tasks"."""
    both = {}
    for task in schema.tasks:
        rows = [(plain(gold).get(task.name), plain(said).get(task.name)) for gold, said in pairs]
        both[task.name] = [(gold, said) for gold, said in rows if gold is not None and said is not None]
    return _figures(schema, both)


def _tasks(pairs: Sequence[_Pair], schema: Schema) -> dict[str, Any]:
    both: dict[str, list[tuple[Any, Any]]] = {}
    for pair in pairs:
        both.setdefault(pair.task, []).append((pair.gold, pair.said))
    return _figures(schema, both)


def _figures(schema: Schema, both: Mapping[str, Sequence[tuple[Any, Any]]]) -> dict[str, Any]:
    """What eval.agreement finds for each task, from (gold, said) in plain form."""
    from eval.agreement import choice_agreement, span_agreement  # scikit-learn takes a second to import

    found = {}
    for task in schema.tasks:
        gold = [one for one, _ in both.get(task.name, ())]
        said = [other for _, other in both.get(task.name, ())]
        if not gold:
            continue
        if task.kind == "choice":
            used, numbers = set(gold), asdict(choice_agreement(gold, said))
        else:
            used = {span["label"] for spans in gold for span in spans}
            numbers = asdict(span_agreement([_places(x) for x in gold], [_places(x) for x in said]))
        outside = sorted(used - {label.name for label in task.labels})
        found[task.name] = {"kind": task.kind, **numbers, "outside_schema": outside}
    return found


def _routing(pairs: Sequence[_Pair], accepted: Mapping[int, bool]) -> dict[str, Any]:
    from eval.scores import routing

    right: dict[int, bool] = {}
    for pair in pairs:
        right[pair.match.item] = pair.agrees and right.get(pair.match.item, True)
    return asdict(routing([accepted[item] for item in right], list(right.values())))


def _disagreements(session: Session, pairs: Sequence[_Pair]) -> list[dict[str, Any]]:
    def unsure(pair: _Pair) -> tuple[float, int]:
        return (-1.0 if pair.confidence is None else pair.confidence) * -1, pair.match.item

    first = sorted((pair for pair in pairs if not pair.agrees), key=unsure)[:SHOWN]
    texts = dict(
        session.exec(select(Item.id, Item.text).where(col(Item.id).in_([pair.match.item for pair in first]))).all()
    )
    return [
        {
            "item": pair.match.item,
            "id": pair.match.ref,
            "gold_id": pair.match.record.ref,
            "text": texts[pair.match.item],
            "task": pair.task,
            "said": pair.said,
            "gold": pair.gold,
            "confidence": pair.confidence,
        }
        for pair in first
    ]


def _measure(session: Session, gold: str, known: _GoldSet, recipe: str) -> None:
    """Count each label's uses by the recipe on all texts of the set, whatever batch they came in, each text once."""
    # Two of these at once would count into each other; a weaker lock than a worker's insert needs to wait for.
    session.exec(select(Recipe.sha256).where(col(Recipe.sha256) == recipe).with_for_update(key_share=True)).all()
    query = (
        select(Item.id, Item.ref, Item.text_sha256)
        .join(ItemDecision, col(ItemDecision.item_id) == col(Item.id))
        .where(col(ItemDecision.recipe) == recipe)
        .where(col(Item.text_sha256).in_(select(GoldItem.text_sha256).where(col(GoldItem.gold) == gold)))
        .order_by(col(Item.id))
    )
    newest: dict[str, _Match] = {}
    for item, ref, sha256 in session.exec(query):
        _, record = known.find(ref, sha256)
        if record is not None and item is not None:
            newest[record.ref] = _Match(item, ref, record, "")
    uses: Counter[tuple[str, str]] = Counter()
    agreed: Counter[tuple[str, str]] = Counter()
    for pair in _pairs(session, list(newest.values())):
        if isinstance(pair.said, str):
            uses[pair.task, pair.said] += 1
            agreed[pair.task, pair.said] += pair.agrees
        else:
            uses.update((pair.task, span["label"]) for span in pair.said)
            agreed.update((pair.task, label) for _, _, label in _places(pair.said) & _places(pair.gold))
    of_these = (col(Measurement.recipe) == recipe, col(Measurement.gold) == gold)
    session.execute(delete(Measurement).where(*of_these))
    session.add_all(
        Measurement(recipe=recipe, gold=gold, task=task, label=label, uses=count, agreed=agreed[task, label])
        for (task, label), count in uses.items()
    )
    session.flush()

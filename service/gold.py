"""Gold sets: texts whose right labels people have agreed on.

A record: {"id", "text", <choice task>: label, <spans task>: [{"start", "end", "label", "text"}]}. A task that is absent
was not labelled; an empty list says that there is no mention. Without an id the record is named by its text.
How far a batch agrees with a set is in `measure.py`; `agreement` is its door.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import func, true
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from service import ledger, stored
from service.errors import Conflict, Invalid, NotFound, TooLarge
from service.labels import from_row, plain
from service.measure import agreement
from service.models import GoldItem, Item, State, fingerprint, now
from service.schema import RESERVED, Schema
from service.sets import Gold
from service.stored import Page, storable

__all__ = ["agreement", "from_reviews", "items", "labelled", "sets", "upload"]

CHUNK = 500
EXPORTED = RESERVED | {"reviewer"}  # fields that an export adds to a record, and that mean nothing here


def upload(session: Session, name: str, schema: Schema, records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Add records to the gold set `name`: {"added", "replaced", "unchanged"}, adding up to the records.

    A record whose id is in the set replaces what is there, text and labels, unless nothing differs. Raises Invalid,
    naming the record and the field: for what the schema does not allow, for a field that is neither a task nor one that
    exports add, for a record without any label, for a text or id that a database cannot keep as it is, and for two
    different records with one id in the same upload. A transaction that is rolled back then leaves the set as it was.
    """
    _require(0 < len(name) <= 100 and storable(name), "name", "1 to 100 characters for a gold set, without NUL")
    counted = dict.fromkeys(("added", "replaced", "unchanged"), 0)
    seen: dict[str, dict[str, Any]] = {}
    numbered = enumerate(records, start=1)
    while chunk := list(islice(numbered, CHUNK)):
        fresh: dict[str, dict[str, Any]] = {}
        for number, record in chunk:
            row = _row(number, record, schema)
            ref, earlier = row["ref"], seen.setdefault(row["ref"], row)
            _require(
                _same(earlier, row), f"record {number} ({ref!r}): id", "an id that no other record of the upload has"
            )
            counted["unchanged"] += earlier is not row
            fresh |= {ref: row} if earlier is row else {}
        _store(session, name, fresh, counted)
    return counted


def from_reviews(
    session: Session, name: str, who: str, *, batch: str | None = None, items: Sequence[int] = (), most: int = 10_000
) -> dict[str, int]:
    """Add what stands of a batch's settled items, or of these, to the set `name`; counts as of `upload`.

    A record's id is its item's; where another text has it, `batch:position`. The reviews say from then on that they
    are gold, so that nobody takes them back. Raises Conflict for an item that is not settled; NotFound where there is
    none; TooLarge for more than `most`.
    """
    query = select(Item).where(col(Item.batch_id) == batch if batch is not None else col(Item.id).in_(list(items)))
    # A batch gives what it has: no gold set can hold an empty text.
    settled = query if batch is None else query.where(col(Item.state) == State.resolved, col(Item.text) != "")
    found = session.exec(settled.order_by(col(Item.id)).limit(most + 1).with_for_update()).all()
    _check_settled(found, items, most)
    reviews = stored.answers(session, [stored.key(item) for item in found])
    schemas = stored.schemas(session, {item.batch_id for item in found})
    taken = _texts(session, name, [item.ref for item in found])
    records: dict[str, list[dict[str, Any]]] = {}
    for item in found:
        own = taken.setdefault(item.ref, item.text_sha256) == item.text_sha256
        ref = item.ref if own else f"{item.batch_id}:{item.position}"
        record = {"id": ref, "text": item.text, **reviews[stored.key(item)].labels}
        records.setdefault(item.batch_id, []).append(record)
        reviews[stored.key(item)].gold = name
    counted = dict.fromkeys(("added", "replaced", "unchanged"), 0)
    for one, rows in records.items():
        for what, count in upload(session, name, schemas[one], rows).items():
            counted[what] += count
    ids = [stored.key(item) for item in found]
    ledger.append(
        session, who=who, action="gold.from_reviews", subject=f"gold:{name}", before=None, after=[ids, records]
    )
    return counted


def sets(session: Session) -> list[dict[str, Any]]:
    """Every gold set by name: {"name", "size", "tasks": {task: how many of its texts are labelled for it}}."""
    if session.get_bind().dialect.name == "postgresql":
        task = func.jsonb_object_keys(col(GoldItem.labels)).table_valued("key").render_derived()
    else:
        task = func.json_each(col(GoldItem.labels)).table_valued("key")
    sizes = select(GoldItem.gold, func.count()).group_by(col(GoldItem.gold)).order_by(col(GoldItem.gold))
    found = dict(session.exec(sizes).all())
    tasks: dict[str, dict[str, int]] = {name: {} for name in found}
    labelled = (
        select(GoldItem.gold, task.c.key, func.count()).join(task, true()).group_by(col(GoldItem.gold), task.c.key)
    )
    for name, key, count in session.exec(labelled.order_by(col(GoldItem.gold), task.c.key)):
        tasks[name][key] = count
    return [{"name": name, "size": size, "tasks": tasks[name]} for name, size in found.items()]


def items(session: Session, name: str, after: int = 0, limit: int = 100) -> Page[dict[str, Any]]:
    """The records of a set in the order of their upload, as they can be uploaded again. Raises NotFound.

    limit: 1 to 1,000, and brought within.
    """
    limit = max(1, min(limit, 1000))
    query = select(GoldItem).where(col(GoldItem.gold) == name, col(GoldItem.id) > after).order_by(col(GoldItem.id))
    found = list(session.exec(query.limit(limit)))
    if not found and session.exec(select(GoldItem.id).where(col(GoldItem.gold) == name).limit(1)).first() is None:
        raise NotFound(f"no gold set {name!r}")
    rows = [{"id": item.ref, "text": item.text, **item.labels} for item in found]
    return Page(rows, found[-1].id if len(found) == limit else None)


def labelled(session: Session, name: str, schema: Schema) -> list[Gold]:
    """The set as gold of a schema, in the order of its upload; empty where there is none.

    Raises Invalid, naming the record and the field, for labels that do not fit.
    """
    query = select(GoldItem).where(col(GoldItem.gold) == name).order_by(col(GoldItem.id))
    return [
        Gold(item.text, from_row(item.labels, item.text, schema, f"{item.ref}: "), item.ref)
        for item in session.exec(query)
    ]


def _check_settled(found: Sequence[Item], wanted: Sequence[int], most: int) -> None:
    if len(found) > most:
        raise TooLarge(f"at most {most:,} texts at once; name the items of the rest", {"limit": most})
    missing = sorted(set(wanted) - {stored.key(item) for item in found})
    if missing or not found:
        raise NotFound(f"no item {missing[0]}" if missing else "no settled item")
    for item in found:
        if item.state != State.resolved:
            raise Conflict(f"item {item.id} is {item.state}, and not settled")


def _texts(session: Session, name: str, refs: Sequence[str]) -> dict[str, str]:
    """The hash of the text that has each of these ids in the set, by id."""
    known: dict[str, str] = {}
    for start in range(0, len(refs), CHUNK):
        there = col(GoldItem.ref).in_(refs[start : start + CHUNK])
        query = select(GoldItem.ref, GoldItem.text_sha256).where(col(GoldItem.gold) == name, there)
        known |= dict(session.exec(query).all())
    return known


def _row(number: int, record: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """A record, checked, as a row of the table without the name of its set."""
    where = f"record {number}"
    _require(isinstance(record, Mapping), where, "an object with id, text and labels")
    ref, text = record.get("id"), record.get("text")
    where += "" if ref is None else f" ({ref!r})"
    if not isinstance(text, str) or not text or not storable(text):
        raise _wrong(f"{where}: text", "a text that is not empty, without NUL and lone surrogates")
    if type(ref) is int:
        ref = str(ref)
    ref = fingerprint(text) if ref is None else ref
    _require(
        isinstance(ref, str) and 0 < len(ref) <= 200 and storable(ref),
        f"{where}: id",
        "1 to 200 characters, without NUL",
    )
    tasks = {task.name for task in schema.tasks}
    for field in record.keys() - tasks - EXPORTED:
        raise _wrong(f"{where}: {field}", f"a task of the schema {schema.name}: {', '.join(sorted(tasks))}")
    labels = plain(from_row(record, text, schema, where=f"{where}: "))
    _require(bool(labels), where, f"a label for at least one of {', '.join(sorted(tasks))}")
    return {"ref": ref, "text": text, "text_sha256": fingerprint(text), "labels": labels}


def _store(session: Session, name: str, fresh: Mapping[str, dict[str, Any]], counted: dict[str, int]) -> None:
    query = select(GoldItem.ref, GoldItem.text_sha256, GoldItem.labels)
    known = session.exec(query.where(col(GoldItem.gold) == name, col(GoldItem.ref).in_(list(fresh))))
    there = {ref: {"text_sha256": sha256, "labels": labels} for ref, sha256, labels in known}
    changed = []
    for ref, row in fresh.items():
        same = ref in there and _same(there[ref], row)
        counted["unchanged" if same else "replaced" if ref in there else "added"] += 1
        changed += [] if same else [row | {"gold": name, "created_at": now()}]
    if changed:
        # Two uploads of one set at once must not fail on each other: the later one replaces.
        insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        statement = insert(GoldItem).values(changed)
        new = {column: statement.excluded[column] for column in ("text", "text_sha256", "labels", "created_at")}
        session.execute(statement.on_conflict_do_update(index_elements=["gold", "ref"], set_=new))


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (one["text_sha256"], one["labels"]) == (other["text_sha256"], other["labels"])


def _wrong(field: str, expected: str) -> Invalid:
    return Invalid(f"{field}: expected {expected}", {"field": field})


def _require(holds: bool, field: str, expected: str) -> None:
    if not holds:
        raise _wrong(field, expected)

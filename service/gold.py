"""Gold sets: texts whose right labels people have agreed on, in versions that stay readable.

A record: {"id", "text", <choice task>: label, <spans task>: [{"start", "end", "label", "text"}]}. A task that is absent
was not labelled; an empty list says that there is no mention. Without an id the record is named by its text.
Every upload and every removal that changes a set makes a version of it, known by the hash that evaluations and
standards state. A set is never copied: a record that is replaced or removed stays, with the versions it was part of.
How far a batch agrees with a set is in `measure.py`; `agreement` is its door.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import Row, Select, delete, func, insert, literal, true, tuple_, union_all
from sqlalchemy import select as select_columns
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from service import ledger, stored
from service.errors import Conflict, Invalid, NotFound, TooLarge
from service.labels import from_row, plain
from service.measure import agreement
from service.models import GoldItem, GoldPast, GoldVersion, Item, State, fingerprint, now
from service.schema import RESERVED, Schema
from service.sets import Gold
from service.stored import Page, storable

__all__ = [
    "agreement",
    "from_reviews",
    "items",
    "labelled",
    "newest",
    "remove",
    "sets",
    "upload",
    "version",
    "versions",
]

CHUNK = 500
PREFIX = re.compile(r"^[0-9a-fA-F]{4,64}$")  # of a sha256
LOCK = 0x676F6C64  # any class of locks that nobody else takes; this one spells "gold"
_ITEM = tuple(
    col(x)
    for x in (
        GoldItem.id,
        GoldItem.gold,
        GoldItem.ref,
        GoldItem.text,
        GoldItem.text_sha256,
        GoldItem.labels,
        GoldItem.since,
    )
)
EXPORTED = RESERVED | {"reviewer"}  # fields that an export adds to a record, and that mean nothing here


def upload(session: Session, name: str, schema: Schema, records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Add records to the gold set `name`: {"added", "replaced", "unchanged"}, adding up to the records.

    A record whose id is in the set replaces what is there, text and labels, unless nothing differs. Raises Invalid,
    naming the record and the field: for what the schema does not allow, for a field that is neither a task nor one that
    exports add, for a record without any label, for a text or id that a database cannot keep as it is, and for two
    different records with one id in the same upload. A transaction that is rolled back then leaves the set as it was.
    Where anything was added or replaced the set has a new version. Waits for another change of the same set.
    """
    _require(0 < len(name) <= 100 and storable(name), "name", "1 to 100 characters for a gold set, without NUL")
    counted = dict.fromkeys(("added", "replaced", "unchanged"), 0)
    number = _next(session, name)
    seen: dict[str, dict[str, Any]] = {}
    numbered = enumerate(records, start=1)
    while chunk := list(islice(numbered, CHUNK)):
        fresh: dict[str, dict[str, Any]] = {}
        for place, record in chunk:
            row = _row(place, record, schema)
            ref, earlier = row["ref"], seen.setdefault(row["ref"], row)
            _require(
                _same(earlier, row), f"record {place} ({ref!r}): id", "an id that no other record of the upload has"
            )
            counted["unchanged"] += earlier is not row
            fresh |= {ref: row} if earlier is row else {}
        _store(session, name, number, fresh, counted)
    if counted["added"] or counted["replaced"]:
        _close(session, name, number, added=counted["added"], replaced=counted["replaced"])
    return counted


def remove(session: Session, name: str, ref: str) -> GoldVersion:
    """Take the record with this id out of the set; the version without it. Older versions keep it. Raises NotFound.

    Waits for another change of the same set.
    """
    number = _next(session, name)
    item = session.execute(select_columns(*_ITEM).where(col(GoldItem.gold) == name, col(GoldItem.ref) == ref)).first()
    if item is None:
        newest(session, name)
        raise NotFound(f"no record {ref!r} in the gold set {name!r}")
    session.execute(insert(GoldPast).values(_past(item, number)))
    session.execute(delete(GoldItem).where(col(GoldItem.id) == item.id))
    return _close(session, name, number, removed=1)


def newest(session: Session, name: str) -> GoldVersion:
    """The version of a set that is the set as it is. Raises NotFound."""
    query = select(GoldVersion).where(GoldVersion.gold == name).order_by(col(GoldVersion.number).desc())
    found = session.exec(query.limit(1)).first()
    if found is None:
        raise NotFound(f"no gold set {name!r}")
    return found


def version(session: Session, name: str, sha256: str) -> GoldVersion:
    """The version of a set with this hash, or whose hash begins so; of several that hold the same, the last.

    sha256: 4 to 64 hexadecimal digits. Raises NotFound; Invalid for what is no hash, and for a beginning that versions
    of different content share.
    """
    _require(PREFIX.fullmatch(sha256) is not None, "version", "4 to 64 hexadecimal digits of a sha256")
    begins = col(GoldVersion.sha256).startswith(sha256.lower())
    query = select(GoldVersion).where(GoldVersion.gold == name, begins).order_by(col(GoldVersion.number).desc())
    found = session.exec(query).all()
    if not found:
        newest(session, name)
        raise NotFound(f"no version {sha256!r} of the gold set {name!r}")
    several = len({one.sha256 for one in found}) > 1
    _require(not several, "version", f"more digits than {sha256!r}, with which several versions begin")
    return found[0]


def versions(session: Session, name: str, after: int = 0, limit: int = 100) -> Page[GoldVersion]:
    """The versions of a set, the newest first, those before number `after` unless it is 0. Raises NotFound."""
    query = select(GoldVersion).where(GoldVersion.gold == name).order_by(col(GoldVersion.number).desc())
    if after:
        query = query.where(GoldVersion.number < after)
    found = list(session.exec(query.limit(limit)))
    if not found:
        newest(session, name)
    return Page(found, found[-1].number if len(found) == limit else None)


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
    """Every gold set by name: {"name", "sha256", "size", "tasks": {task: texts that are labelled for it}}."""
    if session.get_bind().dialect.name == "postgresql":
        task = func.jsonb_object_keys(col(GoldItem.labels)).table_valued("key").render_derived()
    else:
        task = func.json_each(col(GoldItem.labels)).table_valued("key")
    last = select(GoldVersion.gold, func.max(GoldVersion.number)).group_by(col(GoldVersion.gold))
    newest = tuple_(col(GoldVersion.gold), col(GoldVersion.number)).in_(last)
    found = session.exec(select(GoldVersion).where(newest).order_by(col(GoldVersion.gold))).all()
    tasks: dict[str, dict[str, int]] = {one.gold: {} for one in found}
    labelled = (
        select(GoldItem.gold, task.c.key, func.count()).join(task, true()).group_by(col(GoldItem.gold), task.c.key)
    )
    for name, key, count in session.exec(labelled.order_by(col(GoldItem.gold), task.c.key)):
        tasks[name][key] = count
    return [{"name": x.gold, "sha256": x.sha256, "size": x.texts, "tasks": tasks[x.gold]} for x in found]


def items(
    session: Session, name: str, after: int = 0, limit: int = 100, sha256: str | None = None
) -> Page[dict[str, Any]]:
    """The records of a set in the order of their first upload, as they can be uploaded again. Raises NotFound.

    limit: 1 to 1,000, and brought within. sha256: of the version that is read, as for `version`; None for the newest.
    """
    limit = max(1, min(limit, 1000))
    found = session.execute(_holding(session, name, sha256, after).limit(limit)).all()
    rows = [{"id": ref, "text": text, **labels} for _, ref, text, labels in found]
    return Page(rows, found[-1][0] if len(found) == limit else None)


def labelled(session: Session, name: str, schema: Schema, sha256: str | None = None) -> list[Gold]:
    """A version of the set as gold of a schema, in the order of `items`; sha256 as there.

    Raises NotFound as `version`, and Invalid, naming the record and the field, for labels that do not fit.
    """
    tasks = {task.name for task in schema.tasks}
    found = []
    for _, ref, text, labels in session.execute(_holding(session, name, sha256)):
        further = {task: value for task, value in labels.items() if task not in tasks}
        found.append(Gold(text, from_row(labels, text, schema, f"{ref}: "), ref, further=further))
    return found


def _holding(session: Session, name: str, sha256: str | None, after: int = 0) -> Select[Any]:
    """Reads (item, ref, text, labels) of the records of a version, those after this item."""
    number = (newest(session, name) if sha256 is None else version(session, name, sha256)).number
    now_there = select_columns(*(col(x) for x in (GoldItem.id, GoldItem.ref, GoldItem.text, GoldItem.labels))).where(
        col(GoldItem.gold) == name, col(GoldItem.since) <= number
    )
    then = select_columns(*(col(x) for x in (GoldPast.item, GoldPast.ref, GoldPast.text, GoldPast.labels))).where(
        col(GoldPast.gold) == name, col(GoldPast.since) <= number, col(GoldPast.until) > number
    )
    rows = union_all(now_there, then).subquery()
    return select_columns(*rows.c).where(rows.c.id > after).order_by(rows.c.id)


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


def _next(session: Session, name: str) -> int:
    """The number of the set's next version; nobody else makes one before this transaction ends."""
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer at a time
        session.execute(select_columns(func.pg_advisory_xact_lock(literal(LOCK), func.hashtext(name))))
    last = session.exec(select(func.max(GoldVersion.number)).where(GoldVersion.gold == name)).one()
    return (last or 0) + 1


def _store(
    session: Session, name: str, number: int, fresh: Mapping[str, dict[str, Any]], counted: dict[str, int]
) -> None:
    known = session.execute(
        select_columns(*_ITEM).where(col(GoldItem.gold) == name, col(GoldItem.ref).in_(list(fresh)))
    )
    there = {item.ref: item for item in known}
    changed, replaced = [], []
    for ref, row in fresh.items():
        before = there.get(ref)
        same = before is not None and _same(before._asdict(), row)
        counted["unchanged" if same else "replaced" if before else "added"] += 1
        changed += [] if same else [row | {"gold": name, "since": number, "created_at": now()}]
        replaced += [_past(before, number)] if before and not same else []
    if replaced:
        session.execute(insert(GoldPast).values(replaced))
    if changed:
        add = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        statement = add(GoldItem).values(changed)
        new = {
            column: statement.excluded[column] for column in ("text", "text_sha256", "labels", "since", "created_at")
        }
        session.execute(statement.on_conflict_do_update(index_elements=["gold", "ref"], set_=new))


def _past(item: Row[Any], until: int) -> dict[str, Any]:
    kept = {name: getattr(item, name) for name in ("gold", "ref", "text", "labels", "since")}
    return kept | {"item": item.id, "until": until}


def _close(
    session: Session, name: str, number: int, added: int = 0, replaced: int = 0, removed: int = 0
) -> GoldVersion:
    """Note what the set holds now as a version of this number."""
    from eval.parts import version as hash_of

    query = select(GoldItem.ref, GoldItem.text, GoldItem.labels).where(GoldItem.gold == name)
    records = [{"id": ref, "text": text, **labels} for ref, text, labels in session.exec(query)]
    found = GoldVersion(
        gold=name,
        number=number,
        sha256=hash_of(records),
        texts=len(records),
        added=added,
        replaced=replaced,
        removed=removed,
    )
    session.add(found)
    session.flush()
    return found


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (one["text_sha256"], one["labels"]) == (other["text_sha256"], other["labels"])


def _wrong(field: str, expected: str) -> Invalid:
    return Invalid(f"{field}: expected {expected}", {"field": field})


def _require(holds: bool, field: str, expected: str) -> None:
    if not holds:
        raise _wrong(field, expected)

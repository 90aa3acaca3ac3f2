"""Batches: what comes in, how far it is, and what came of it. Functions over a Session that never commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from sqlalchemy import func, insert, literal, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel, col, select

from service import ledger, models, stored
from service.errors import Conflict, Invalid, NotFound, TooLarge
from service.labels import from_row, to_row
from service.models import Batch, Item, ItemDecision, SchemaVersion, State, fingerprint
from service.route import Policy
from service.schema import Schema
from service.settings import Settings
from service.stored import check_storable

MAX_META = 10_000  # characters of one text's meta, as JSON
MAX_META_DEPTH = 8
RATE_WINDOW = timedelta(seconds=60)
BY_CONTENT = "sha256:"  # a key that the service made of the content begins so

OPEN = (State.queued, State.leased)
BY_MODEL = (State.accepted, State.review, State.audit)


class TextCreate(BaseModel):
    """One text to annotate. Any Unicode that can be stored and sent on, the empty text too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = Field(description="the text; offsets in the answer count its code points")
    id: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="your id of the text, unique within the batch; its position where absent"
    )
    meta: dict[str, Any] = Field(
        default_factory=dict,
        description=f"given back with the result; at most {MAX_META:,} characters as JSON, {MAX_META_DEPTH} levels",
    )

    @field_validator("text", "id", mode="before")
    @classmethod
    def _storable(cls, value: object) -> object:
        if isinstance(value, str):
            check_storable(value)
        return value

    @field_validator("meta", mode="before")
    @classmethod
    def _small(cls, value: object) -> object:
        for word in _words(value, 0):
            check_storable(word)
        try:
            size = len(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            raise ValueError("only what JSON can hold, without NaN and infinities") from None
        if size > MAX_META:
            raise ValueError(f"at most {MAX_META:,} characters as JSON, not {size:,}")
        return value


class BatchCreate(BaseModel):
    """Texts to annotate with one schema and one prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    texts: Annotated[tuple[TextCreate, ...], Field(min_length=1)]
    schema_name: str = Field(alias="schema", min_length=1, max_length=40, description="name of the schema")
    schema_version: int | None = Field(None, ge=1, le=1_000_000, description="its version; the newest where absent")
    prompt: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        None, description="name of the prompt, like line.v1; the service's own where absent"
    )
    second_prompt: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        None, description="reads every text a second time; where it says otherwise the item goes to review"
    )
    policy: Policy = Field(default_factory=lambda: Policy(), description="thresholds that differ from the usual ones")
    gold: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        None, description="gold set: an answer that differs from it goes to review"
    )

    @field_validator("schema_name", "prompt", "second_prompt", "gold", mode="before")
    @classmethod
    def _storable(cls, value: object) -> object:
        if isinstance(value, str):
            check_storable(value)
        return value

    @model_validator(mode="after")
    def _distinct(self) -> BatchCreate:
        first: dict[str, int] = {}
        for position, ref in enumerate(self.refs()):
            if ref in first:
                raise ValueError(f"texts[{position}]: the id {ref!r} is that of texts[{first[ref]}] already")
            first[ref] = position
        return self

    def refs(self) -> list[str]:
        """Each text's id, or its position."""
        return [str(position) if text.id is None else text.id for position, text in enumerate(self.texts)]


@dataclass(frozen=True, slots=True)
class Progress:
    """counts: items by state, all states, adding up to total. done: total less queued and leased.

    rate: items a second over the last minute; seconds_left: None while the rate is 0 and work is left.
    """

    total: int
    counts: dict[State, int]
    done: int
    rate: float
    seconds_left: float | None


def submit(
    session: Session, client: str, key: str | None, new: BatchCreate, schema: Schema, prompt: str, settings: Settings
) -> tuple[Batch, bool]:
    """Store a batch once: (the batch, whether it is new). Safe when the same request comes twice at once.

    key: the client's Idempotency-Key. The same key with other content is a Conflict. Without one the content, the
    schema and the prompt are the key: the same again is the same batch, until it is cancelled; a client that wants
    it twice passes keys.
    Raises TooLarge for more texts, or a longer one, than the settings allow.
    """
    _check_sizes(new, settings)
    # The request as sent, not what its defaults mean today: a retry must find its batch after an update too.
    content = content_hash(new.model_dump(mode="json", exclude_unset=True))
    key = checked_key(key) if key is not None else BY_CONTENT + content_hash([content, schema.sha256, prompt])
    version = save_schema(session, schema)
    row = Batch(
        client=client,
        key=key,
        content_sha256=content,
        schema_id=version.id or 0,
        prompt=prompt,
        second_prompt=new.second_prompt,
        policy=new.policy.settled().model_dump(mode="json"),
        gold=new.gold,
        total=len(new.texts),
    )
    if insert_once(session, Batch, row.model_dump()):
        session.exec(insert(Item), params=list(_items(row.id, new)))
        return session.get_one(Batch, row.id), True
    existing = session.exec(select(Batch).where(Batch.client == client, Batch.key == key)).one()
    if existing.content_sha256 != content:
        raise Conflict("this key was used before, with other content", {"batch": existing.id})
    return existing, False


def save_schema(session: Session, schema: Schema) -> SchemaVersion:
    """The schema's row, new or as it was. Raises Conflict where the name and version already mean something else."""
    row = SchemaVersion(
        name=schema.name, version=schema.version, sha256=schema.sha256, body=schema.model_dump(mode="json")
    )
    insert_once(session, SchemaVersion, row.model_dump(exclude={"id"}))
    query = select(SchemaVersion).where(SchemaVersion.name == schema.name, SchemaVersion.version == schema.version)
    found = session.exec(query).one()
    if found.sha256 != schema.sha256:
        raise Conflict(
            f"the schema {schema.name!r} version {schema.version} is known with other content; raise its version",
            {"name": schema.name, "version": schema.version},
        )
    return found


def register(session: Session, schema: Schema, *, who: str) -> bool:
    """Save a schema for somebody, with a line in the ledger where it is new, which is returned. Raises Conflict."""
    known = session.exec(select(SchemaVersion.id).where(SchemaVersion.sha256 == schema.sha256)).first()
    save_schema(session, schema)
    if known is None:
        after, subject = schema.model_dump(mode="json"), f"schema:{schema.name}.v{schema.version}"
        ledger.append(session, who=who, action="schema.save", subject=subject, before=None, after=after)
    return known is None


def find_schema(session: Session, name: str, version: int | None = None) -> Schema:
    """The schema of this name, the newest version where none is named. Raises NotFound."""
    query = select(SchemaVersion).where(SchemaVersion.name == name).order_by(col(SchemaVersion.version).desc())
    if version is not None:
        query = query.where(SchemaVersion.version == version)
    found = session.exec(query.limit(1)).first()
    if found is None:
        raise NotFound(f"no schema {name!r}" + (f" version {version}" if version is not None else ""))
    return Schema.model_validate(found.body)


def find(session: Session, batch_id: str) -> Batch:
    """Raises NotFound."""
    batch = session.get(Batch, batch_id)
    if batch is None:
        raise NotFound(f"no batch {batch_id!r}")
    return batch


def counts(session: Session, batch_id: str) -> dict[State, int]:
    """Items by state, every state named, adding up to the batch's total at any moment. Raises NotFound."""
    find(session, batch_id)
    query = select(Item.state, func.count()).where(Item.batch_id == batch_id).group_by(Item.state)
    found = dict(session.exec(query).all())
    return {state: found.get(state, 0) for state in State}


def progress(session: Session, batch_id: str) -> Progress:
    """How far a batch is. Raises NotFound."""
    batch = find(session, batch_id)
    found = counts(session, batch_id)
    now = models.now()
    recent = select(func.count()).where(
        Item.batch_id == batch_id, col(Item.state).in_(BY_MODEL), col(Item.updated_at) > now - RATE_WINDOW
    )
    window = min(RATE_WINDOW, max(now - batch.created_at, timedelta(seconds=1)))
    rate = session.exec(recent).one() / window.total_seconds()
    left = sum(found[state] for state in OPEN)
    seconds_left = 0.0 if not left else left / rate if rate else None
    return Progress(batch.total, found, batch.total - left, rate, seconds_left)


def cancel(session: Session, batch_id: str) -> int:
    """Cancel what is queued or with a worker, and return how many items that was; what is done stays.

    Raises NotFound. Cancelling again is no error. The content of a batch without a client's key may then come anew.
    """
    batch = find(session, batch_id)
    # All who lock several items lock them by id, so that none waits for one that waits for it.
    open_items = select(Item.id).where(Item.batch_id == batch_id, col(Item.state).in_(OPEN)).order_by(col(Item.id))
    now = models.now()
    statement = (
        update(Item)
        .where(col(Item.id).in_(open_items.with_for_update()))
        .values(state=State.cancelled, lease_owner=None, lease_until=None, updated_at=now)
    )
    cancelled = session.exec(statement.execution_options(synchronize_session=False)).rowcount
    if batch.cancelled_at is None:
        batch.cancelled_at = now
        if batch.key.startswith(BY_CONTENT):
            batch.key = f"{batch.key}/{batch.id}"
        session.add(batch)
        session.flush()
    return cancelled


def results(session: Session, batch_id: str, after: int = -1, limit: int = 1000) -> list[dict[str, Any]]:
    """Rows by position, those after position `after`, at most `limit`; positions are 0, 1, 2, … without a gap.

    A row: "id", "text", "state", "meta"; once it is done also one key a task as in `labels.to_row`, "decision",
    "reasons" and "recipe", and where calibration says something "probability", that all labels agree with people, and
    "standard", the version that decided; once a person settled it the person's labels, with "reviewer", and the
    model's under "proposed" (None where it had none).
    Raises NotFound.
    """
    find(session, batch_id)
    schema = stored.schemas(session, [batch_id])[batch_id]
    query = (
        select(Item, ItemDecision)
        .join(ItemDecision, col(ItemDecision.item_id) == col(Item.id), isouter=True)
        .where(Item.batch_id == batch_id, Item.position > after)
        .order_by(col(Item.position))
        .limit(limit)
    )
    page = session.exec(query).all()
    said = stored.said(session, [item.id for item, _ in page if item.id is not None])
    resolved = [item.id for item, _ in page if item.id is not None and item.state == State.resolved]
    answers = stored.answers(session, resolved)
    rows = []
    for item, decision in page:
        row: dict[str, Any] = {"id": item.ref, "text": item.text, "state": item.state, "meta": item.meta}
        proposed = said.get(item.id or 0)
        answer = answers.get(item.id or 0)
        if answer is not None:
            labels = from_row(answer.labels, item.text, schema)
            own = to_row(proposed, item.text) if proposed is not None else None
            row |= to_row(labels, item.text) | {"reviewer": answer.reviewer, "proposed": own}
        elif proposed is not None and item.state not in (*OPEN, State.cancelled):
            row |= to_row(proposed, item.text)
        if decision is not None and item.state not in (*OPEN, State.cancelled):
            row |= {"decision": decision.outcome, "reasons": decision.reasons, "recipe": decision.recipe}
            held = {"standard": decision.standard, "probability": decision.probability}
            row |= {name: value for name, value in held.items() if value is not None}
        rows.append(row)
    return rows


def _check_sizes(new: BatchCreate, settings: Settings) -> None:
    if len(new.texts) > settings.max_texts:
        raise TooLarge(f"at most {settings.max_texts:,} texts in a batch, not {len(new.texts):,}")
    for position, text in enumerate(new.texts):
        if len(text.text) > settings.max_text:
            detail = {"index": position}
            raise TooLarge(
                f"texts[{position}]: at most {settings.max_text:,} characters, not {len(text.text):,}", detail
            )


def checked_key(key: str) -> str:
    """An Idempotency-Key as it can be stored. Raises Invalid."""
    try:
        check_storable(key)
    except ValueError as error:
        raise Invalid(f"the key has {error}") from None
    if not 1 <= len(key) <= 200:
        raise Invalid(f"a key has 1 to 200 characters, not {len(key)}")
    if key.startswith(BY_CONTENT):
        raise Invalid(f"a key that begins with {BY_CONTENT!r} is the service's own")
    return key


def content_hash(value: object) -> str:
    """The sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _items(batch_id: str, new: BatchCreate) -> Iterator[dict[str, Any]]:
    now = models.now()
    for position, (ref, create) in enumerate(zip(new.refs(), new.texts, strict=True)):
        yield {
            "batch_id": batch_id,
            "position": position,
            "ref": ref,
            "text": create.text,
            "text_sha256": fingerprint(create.text),
            "meta": create.meta,
            "state": State.queued,
            "attempt": 0,
            "fence": 0,
            "priority": 0.0,
            "updated_at": now,
        }


def insert_once(session: Session, table: type[SQLModel], row: dict[str, Any]) -> bool:
    """Whether the row is new. Waits for another transaction that is inserting the same one."""
    insert_into = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert_into(table).values(**row).on_conflict_do_nothing().returning(literal(1))
    return session.exec(statement).first() is not None


def _words(value: object, depth: int) -> Iterator[str]:
    """Every string in a JSON value, keys too. Raises ValueError where it is nested too deep."""
    if depth > MAX_META_DEPTH:
        raise ValueError(f"nested more than {MAX_META_DEPTH} deep")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _words(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner, depth + 1)

"""The tables. What comes from outside enters as a `…Create` and never builds a row directly."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import uuid4

from sqlalchemy import JSON, DateTime, Index, Text, TypeDecorator, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlmodel import Column, Field, SQLModel

Document = JSON().with_variant(JSONB(), "postgresql")


class UTCDateTime(TypeDecorator[datetime]):
    """Aware times in UTC, also from SQLite, which forgets the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    return datetime.now(UTC)


def fingerprint(text: str) -> str:
    """`text_sha256`: equal for equal texts, code point for code point; nothing is normalised."""
    return hashlib.sha256(text.encode()).hexdigest()


# The parts of tables that are asked for again and again. As literal SQL, since an index on part of a table serves no
# bound values.
QUEUED = text("state = 'queued'")
LEASED = text("state = 'leased'")
FOR_PEOPLE = text("state IN ('review', 'audit')")
HELD = text("state IN ('review', 'audit') AND lease_owner IS NOT NULL")
READ_ONCE = text("state IN ('review', 'audit') AND read_by IS NOT NULL")
DISPUTED = text("state = 'adjudication'")
STANDS = text("stands")
COUNTS = text("withdrawn_at IS NULL")
AUDITED = text("outcome = 'audit'")
UNFINISHED = text("state IN ('queued', 'running')")


def _given(value: str) -> dict[str, Any]:
    """The value that rows from before the column have."""
    return {"server_default": text(value)}


class State(StrEnum):
    """An item is in exactly one of these at any moment."""

    queued = "queued"
    leased = "leased"  # a worker holds it
    accepted = "accepted"
    review = "review"  # a person must settle it
    audit = "audit"  # accepted, and a person looks all the same
    adjudication = "adjudication"  # people disagree, or ask about the guideline; a lead settles it
    resolved = "resolved"  # a person has settled it
    cancelled = "cancelled"


class Kind(StrEnum):
    """What a person said of an item."""

    answer = "answer"
    flag = "flag"  # the guideline does not say what is right
    adjudication = "adjudication"  # a lead's decision between answers, or on a flag


class RunState(StrEnum):
    """An evaluation is in exactly one of these at any moment."""

    queued = "queued"
    running = "running"  # a process holds it
    done = "done"
    failed = "failed"
    cancelled = "cancelled"


class Role(StrEnum):
    client = "client"
    reviewer = "reviewer"
    lead = "lead"  # sees everybody's work, settles what people disagree on
    admin = "admin"  # says who may do what


class SchemaVersion(SQLModel, table=True):
    """A schema as it was used; the same name and version never mean two things."""

    __tablename__ = "schema_version"
    __table_args__ = (UniqueConstraint("name", "version"),)

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=40)
    version: int
    sha256: str = Field(max_length=64, unique=True)
    body: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))


class Recipe(SQLModel, table=True):
    """Everything that decided a label, by its hash."""

    sha256: str = Field(primary_key=True, max_length=64)
    body: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))


class Batch(SQLModel, table=True):
    """What came in with one POST. key: the client's Idempotency-Key, or the hash of the content."""

    __table_args__ = (UniqueConstraint("client", "key"),)

    id: str = Field(default_factory=lambda: uuid4().hex, primary_key=True, max_length=32)
    client: str = Field(max_length=100)
    key: str = Field(max_length=200)
    content_sha256: str = Field(max_length=64)
    schema_id: int = Field(foreign_key="schema_version.id")
    prompt: str = Field(max_length=100)
    second_prompt: str | None = Field(default=None, max_length=100)
    policy: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))
    gold: str | None = Field(default=None, max_length=100)
    total: int
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))
    claimed_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))  # last, for fair turns
    cancelled_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))


class Item(SQLModel, table=True):
    """One text of a batch, and its place in the queue.

    fence: raised at every claim; whoever writes must name it, so that a late worker's result is dropped.
    attempt: claims so far, less those that were given back through no fault of the item.
    priority: place among the items that wait for a person, least first; from `review.priority`.
    readers, hidden: by how many people it is read, should people read it, and who of them is not shown the proposal,
    as a `route.Readings` has it. answers: how many of them have answered so far; read_by: who of them, while another
    one is to come.
    taken_at: when it was given to whom a person's lease names.
    """

    __table_args__ = (
        UniqueConstraint("batch_id", "position"),
        Index("ix_item_queued", "batch_id", "attempt", "position", sqlite_where=QUEUED, postgresql_where=QUEUED),
        Index("ix_item_leased", "lease_owner", "lease_until", sqlite_where=LEASED, postgresql_where=LEASED),
        # Not (batch, state, …): before its first ANALYZE PostgreSQL would prefer that to ix_item_queued, and sort.
        Index("ix_item_progress", "batch_id", "updated_at", "state"),
        Index("ix_item_text", "text_sha256"),
        Index("ix_item_for_people", "priority", "id", sqlite_where=FOR_PEOPLE, postgresql_where=FOR_PEOPLE),
        Index("ix_item_held", "lease_owner", sqlite_where=HELD, postgresql_where=HELD),
        Index("ix_item_read_once", "read_by", sqlite_where=READ_ONCE, postgresql_where=READ_ONCE),
        Index("ix_item_adjudication", "id", sqlite_where=DISPUTED, postgresql_where=DISPUTED),
    )

    id: int | None = Field(default=None, primary_key=True)
    batch_id: str = Field(foreign_key="batch.id", max_length=32)
    position: int
    ref: str = Field(max_length=200)  # the client's id of the text, or its position
    text: str = Field(sa_column=Column(Text, nullable=False))
    text_sha256: str = Field(max_length=64)
    meta: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))  # as sent, order and all
    state: str = Field(default=State.queued, max_length=16)
    attempt: int = 0
    fence: int = 0
    lease_owner: str | None = Field(default=None, max_length=100)
    lease_until: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    priority: float = 0.0
    readers: int = Field(default=1, sa_column_kwargs=_given("1"))
    hidden: int = Field(default=0, sa_column_kwargs=_given("0"))
    answers: int = Field(default=0, sa_column_kwargs=_given("0"))
    read_by: str | None = Field(default=None, max_length=100)
    taken_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    updated_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))


class Annotation(SQLModel, table=True):
    """What one recipe said of one item for one task: a Choice or Mentions as JSON."""

    __table_args__ = (UniqueConstraint("item_id", "task", "recipe"),)

    id: int | None = Field(default=None, primary_key=True)
    item_id: int = Field(foreign_key="item.id")
    task: str = Field(max_length=40)
    recipe: str = Field(foreign_key="recipe.sha256", max_length=64)
    value: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))


class ItemDecision(SQLModel, table=True):
    """The decision on an item: outcome, reasons and the numbers behind them."""

    __tablename__ = "decision"
    __table_args__ = (
        Index("ix_decision_order", "recipe", "created_at", "item_id"),
        Index("ix_decision_audit", "recipe", "created_at", "item_id", sqlite_where=AUDITED, postgresql_where=AUDITED),
    )

    item_id: int = Field(primary_key=True, foreign_key="item.id")
    recipe: str | None = Field(default=None, foreign_key="recipe.sha256", max_length=64)
    outcome: str = Field(max_length=16)
    reasons: list[dict[str, Any]] = Field(sa_column=Column(Document, nullable=False))
    inclusion: float | None = None
    standard: int | None = Field(default=None, foreign_key="standard.id")  # None: by the thresholds of the policy
    probability: float | None = None  # that all labels agree with people, where a standard says so
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))


class Review(SQLModel, table=True):
    """What a person said of an item. Rows are never deleted: what was taken back stays, with the time of it.

    changed: whether the labels differ from the model's. labels: as in a gold file; none of a flag.
    stands: these labels are the resolution; at most one of an item. shown: whether the person saw the proposal.
    taken_at: when the item was given to the person. seconds, actions: what it cost them, as the page measured it: time
    with the item before them, and keys, clicks and drags that changed something.
    bulk: id of the act that settled many at once. gold: set into which the labels went.
    """

    __table_args__ = (
        Index("ix_review_stands", "item_id", unique=True, sqlite_where=STANDS, postgresql_where=STANDS),
        Index(
            "ix_review_reviewer",
            *("reviewer", "created_at", "id", "kind"),
            sqlite_where=COUNTS,
            postgresql_where=COUNTS,
        ),
        Index("ix_review_bulk", "bulk"),
    )

    id: int | None = Field(default=None, primary_key=True)
    item_id: int = Field(foreign_key="item.id", index=True)
    reviewer: str = Field(max_length=100)
    kind: str = Field(default=Kind.answer, max_length=16, sa_column_kwargs=_given("'answer'"))
    changed: bool
    labels: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))
    note: str = Field(default="", sa_column=Column(Text, nullable=False))
    stands: bool = Field(default=True, sa_column_kwargs=_given("true"))
    shown: bool = Field(default=True, sa_column_kwargs=_given("true"))
    seconds: float | None = None
    actions: int | None = None
    taken_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    withdrawn_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    bulk: str | None = Field(default=None, max_length=32)
    gold: str | None = Field(default=None, max_length=100)
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))


class GoldItem(SQLModel, table=True):
    """One text of a named gold set as it is now, with the labels that people agreed on, in the form of a result row.

    since: number of the version of the set that brought it in this form.
    """

    __tablename__ = "gold_item"
    __table_args__ = (UniqueConstraint("gold", "ref"), Index("ix_gold_text", "gold", "text_sha256"))

    id: int | None = Field(default=None, primary_key=True)
    gold: str = Field(max_length=100)
    ref: str = Field(max_length=200)
    text: str = Field(sa_column=Column(Text, nullable=False))
    text_sha256: str = Field(max_length=64)
    labels: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))
    since: int = 1
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))


class GoldPast(SQLModel, table=True):
    """What a GoldItem was before it was replaced or removed: part of the versions `since` up to, not with, `until`.

    item: its id then, by which the records of every version have an order.
    """

    __tablename__ = "gold_past"
    __table_args__ = (Index("ix_gold_past", "gold", "item"),)

    id: int | None = Field(default=None, primary_key=True)
    gold: str = Field(max_length=100)
    item: int
    ref: str = Field(max_length=200)
    text: str = Field(sa_column=Column(Text, nullable=False))
    labels: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))
    since: int
    until: int


class GoldVersion(SQLModel, table=True):
    """A gold set as an upload or a removal left it. Numbers of a set are 1, 2, 3, … without a gap; none is changed.

    sha256: `eval.parts.version` of its records; two versions that hold the same have the same.
    texts: how many it holds; added, replaced, removed: against the version before.
    """

    __tablename__ = "gold_version"

    gold: str = Field(primary_key=True, max_length=100)
    number: int = Field(primary_key=True)
    sha256: str = Field(max_length=64)
    texts: int
    added: int
    replaced: int
    removed: int
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))


class Measurement(SQLModel, table=True):
    """How often a recipe's uses of a label agreed with a gold set; what `low_agreement` is judged by."""

    __table_args__ = (UniqueConstraint("recipe", "gold", "task", "label"),)

    id: int | None = Field(default=None, primary_key=True)
    recipe: str = Field(foreign_key="recipe.sha256", max_length=64)
    gold: str = Field(max_length=100)
    task: str = Field(max_length=40)
    label: str = Field(max_length=100)
    agreed: int
    uses: int
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))


class Reading(SQLModel, table=True):
    """What a recipe said of a text outside of any batch, kept so that asking again costs nothing."""

    recipe: str = Field(primary_key=True, foreign_key="recipe.sha256", max_length=64)
    text_sha256: str = Field(primary_key=True, max_length=64)
    value: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))  # of annotate.Annotated
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))


class StandardVersion(SQLModel, table=True):
    """What labels of a recipe are held to from a moment on. The newest of a recipe is in force; none is ever changed.

    body: a `route.Standard`, with what it was made from: gold, errors, promises, calibrators.
    """

    __tablename__ = "standard"

    id: int | None = Field(default=None, primary_key=True)
    recipe: str = Field(foreign_key="recipe.sha256", max_length=64, index=True)
    predecessor: int | None = Field(default=None, foreign_key="standard.id")
    body: dict[str, Any] = Field(sa_column=Column(Document, nullable=False))
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))


class EvaluationRun(SQLModel, table=True):
    """An evaluation or a comparison that was asked for, and what came of it.

    key: the client's Idempotency-Key, if any; content_sha256: of the request.
    gold_version: sha256 of the version of the gold set that is read; None: as the set is when it is read.
    prompts: one, or several to be compared. errors: as for `standards.make`. limit: texts that are read; None for all.
    done, total: texts, each prompt's counted; total is 0 until the gold was read.
    work: a `findings.Workload`; None for the usual one. attempt, fence, lease_owner, lease_until: as of Item.
    standard: {"recipe", "body", "lacking"} of an evaluation with errors: the arguments of `standards.put`, and why it
    cannot be put in force, nothing if it can.
    """

    __tablename__ = "evaluation"
    __table_args__ = (
        UniqueConstraint("client", "key", name="uq_evaluation_key"),
        Index("ix_evaluation_unfinished", "created_at", "id", sqlite_where=UNFINISHED, postgresql_where=UNFINISHED),
    )

    id: str = Field(default_factory=lambda: uuid4().hex, primary_key=True, max_length=32)
    client: str = Field(max_length=100)
    key: str | None = Field(default=None, max_length=200)
    content_sha256: str | None = Field(default=None, max_length=64)
    gold: str = Field(max_length=100)
    gold_version: str | None = Field(default=None, max_length=64)
    schema_id: int = Field(foreign_key="schema_version.id")
    prompts: list[str] = Field(sa_column=Column(JSON, nullable=False))
    errors: dict[str, float] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))  # in their order
    confidence: float
    limit: int | None = None
    work: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    state: str = Field(default=RunState.queued, max_length=16)
    attempt: int = 0
    fence: int = 0
    lease_owner: str | None = Field(default=None, max_length=100)
    lease_until: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    done: int = 0
    total: int = 0
    error: str | None = Field(default=None, sa_column=Column(Text))
    # Not as JSONB, which would forget the order of tasks and prompts.
    document: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    standard: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))
    finished_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))


class LedgerEntry(SQLModel, table=True):
    """One change of state: who, what, to what; before and after as hashes. See `ledger`."""

    __tablename__ = "ledger"
    __table_args__ = (Index("ix_ledger_subject", "subject", "number"),)

    number: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))
    who: str = Field(max_length=100)
    action: str = Field(max_length=40)
    subject: str = Field(max_length=300)
    before: str | None = Field(default=None, max_length=64)
    after: str | None = Field(default=None, max_length=64)
    recipe: str | None = Field(default=None, max_length=64)
    previous: str = Field(max_length=64)
    sha256: str = Field(default="", max_length=64)


class LedgerHead(SQLModel, table=True):
    """The last line of the ledger, in a single row: held while a line is added, and what tells that lines are gone."""

    __tablename__ = "ledger_head"

    id: int = Field(default=1, primary_key=True)
    number: int = 0
    sha256: str = Field(default="0" * 64, max_length=64)


class Account(SQLModel, table=True):
    """Somebody who may sign in, or whose keys may ask.

    name: what is recorded with batches and reviews; never changed. password: its argon2 hash, None where only keys may
    ask. roles: those that were given; what they imply is added by `auth`. epoch: raised when all sessions end; a
    session names the epoch that it was made in. failures: sign-ins in a row that did not succeed; paused_until: no
    other is tried before. must_change: nothing else is allowed before the password is changed.
    """

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(max_length=100, unique=True)
    password: str | None = Field(default=None, max_length=200)
    roles: list[str] = Field(sa_column=Column(JSON, nullable=False))
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))
    disabled_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    epoch: int = 0
    failures: int = 0
    paused_until: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))
    must_change: bool = False


class ApiKey(SQLModel, table=True):
    """A key of an account, by the sha256 of it; the key itself is told once and kept nowhere."""

    __tablename__ = "api_key"

    id: int | None = Field(default=None, primary_key=True)
    account_id: int = Field(foreign_key="account.id", index=True)
    digest: str = Field(max_length=64, unique=True)
    label: str = Field(default="", max_length=100)
    created_at: datetime = Field(default_factory=now, sa_column=Column(UTCDateTime, nullable=False))
    revoked_at: datetime | None = Field(default=None, sa_column=Column(UTCDateTime))


class Secret(SQLModel, table=True):
    """What signs the sessions of a service that CONCORD_SECRET names none for, in a single row."""

    id: int = Field(default=1, primary_key=True)
    value: str = Field(max_length=100)

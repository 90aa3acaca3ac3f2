"""Evaluations and comparisons that were asked for: accepted, held by one process, kept with what came of them.

Functions over a Session that never commit. A run is held under a lease with a fence, as items are (`queue.py`): who was
given up for dead writes nothing any more. What runs them is `evaluator.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import and_, or_, tuple_
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from service import batches, db, gold, prompt, standards
from service.annotate import Plan
from service.engine import Identity
from service.errors import Conflict, Invalid, NotFound
from service.findings import Workload
from service.gold import PREFIX
from service.models import UNFINISHED, EvaluationRun, RunState, SchemaVersion, StandardVersion
from service.schema import Schema
from service.settings import Settings
from service.standards import ITEM
from service.stored import check_storable, cleaned

ATTEMPTS = 3  # claims that end in nothing, after which a run has failed
MOST_PROMPTS = 8  # in a comparison: each two of them are compared on each task


def _storable(value: str) -> str:
    check_storable(value)
    return value


Named = Annotated[str, AfterValidator(_storable), Field(min_length=1, max_length=100)]
Share = Annotated[float, Field(gt=0, lt=1, strict=True)]


class EvaluationCreate(BaseModel):
    """A gold set to be read with one prompt, or with several to be compared."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    gold: Named = Field(description="name of the gold set")
    gold_version: str | None = Field(
        None,
        pattern=PREFIX.pattern,
        description="sha256 of the version that is read, or how it begins; the newest where absent",
    )
    schema_name: Annotated[str, AfterValidator(_storable)] = Field(
        alias="schema", min_length=1, max_length=40, description="name of the schema"
    )
    schema_version: int | None = Field(
        None, ge=1, le=1_000_000, strict=True, description="its version; the newest where absent"
    )
    prompts: tuple[Named, ...] = Field(
        min_length=1, max_length=MOST_PROMPTS, description="names like line.v1; two or more are compared"
    )
    errors: dict[str, Share] = Field(
        default_factory=dict,
        description=f"by task, or by `{ITEM}` for all tasks of a text together: the share of accepted labels that may "
        "disagree with people; thresholds are sought at which that can be promised",
    )
    confidence: Share = Field(0.95, description="how sure all promises together are to be")
    limit: int | None = Field(None, ge=1, le=1_000_000, strict=True, description="read at most so many texts")
    work: Workload = Field(
        default_factory=lambda: Workload(),
        description="with `errors`: the hours and the cost of what is left for people",
    )


@dataclass(frozen=True, slots=True)
class Held:
    """A run in the hands of one process. Whoever writes what came of it names `fence`."""

    id: str
    fence: int
    gold: str
    gold_version: str | None
    schema: Schema
    prompts: tuple[str, ...]
    errors: dict[str, float]
    confidence: float
    limit: int | None
    work: Workload


def submit(
    session: Session, client: str, key: str | None, new: EvaluationCreate, settings: Settings
) -> tuple[EvaluationRun, bool]:
    """Store what is to be run: (the run, whether it is new). Safe when the same request comes twice at once.

    key: the client's Idempotency-Key. The same key with the same content gives the run that is there, whatever became
    of it; with other content it is a Conflict. Without one it is a new run each time.
    Raises NotFound or Invalid, naming the field, for what could only fail.
    """
    # The request as sent, not what its defaults mean today: a retry must find its run after an update too.
    content = batches.content_hash(new.model_dump(mode="json", exclude_unset=True))
    checked = None if key is None else batches.checked_key(key)
    under = select(EvaluationRun).where(EvaluationRun.client == client, EvaluationRun.key == checked)
    found = None if key is None else session.exec(under).first()
    if found is None:
        run = _run(session, client, new, settings).model_dump() | {"key": key, "content_sha256": content}
        if batches.insert_once(session, EvaluationRun, run):
            return session.get_one(EvaluationRun, run["id"]), True
        found = session.exec(under).one()
    if found.content_sha256 != content:
        raise Conflict("this key was used before, with other content", {"evaluation": found.id})
    return found, False


def find(session: Session, run_id: str) -> EvaluationRun:
    """Raises NotFound."""
    run = session.get(EvaluationRun, run_id)
    if run is None:
        raise NotFound(f"no evaluation {run_id!r}")
    return run


def schema_of(session: Session, run: EvaluationRun) -> SchemaVersion:
    """The version of the schema that the run reads its gold with."""
    return session.get_one(SchemaVersion, run.schema_id)


def listing(session: Session, after: str | None, limit: int, *, whole: bool = False) -> list[EvaluationRun]:
    """At most `limit` runs, the newest first, those older than the run `after`; whole: with documents and standards."""
    query = select(EvaluationRun).order_by(col(EvaluationRun.created_at).desc(), col(EvaluationRun.id).desc())
    last = session.get(EvaluationRun, after) if after else None
    if last is not None:
        place = (last.created_at, last.id)
        query = query.where(tuple_(col(EvaluationRun.created_at), col(EvaluationRun.id)) < place)
    if not whole:
        query = query.options(defer(col(EvaluationRun.document)), defer(col(EvaluationRun.standard)))  # type: ignore[arg-type]
    return list(session.exec(query.limit(limit)))


def cancel(session: Session, run_id: str) -> tuple[EvaluationRun, bool]:
    """Drop a run that is not finished: (the run, whether it was dropped now); a finished one stays. Raises NotFound."""
    run = find(session, run_id)
    session.refresh(run, with_for_update=True)
    unfinished = run.state in (RunState.queued, RunState.running)
    if unfinished:
        _end(session, run, RunState.cancelled)
    return run, unfinished


def claim(session: Session, owner: str, lease_seconds: float) -> Held | None:
    """Lease the oldest run that nobody holds, or whose holder is given up for dead; None where there is none.

    One that was left behind ATTEMPTS times has failed.
    """
    clock = db.clock(session)
    abandoned = and_(col(EvaluationRun.state) == RunState.running, col(EvaluationRun.lease_until) < clock)
    query = (
        select(EvaluationRun)
        .where(UNFINISHED, or_(col(EvaluationRun.state) == RunState.queued, abandoned))
        .order_by(col(EvaluationRun.created_at), col(EvaluationRun.id))
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    while (run := session.exec(query).first()) is not None and run.attempt >= ATTEMPTS:
        _end(session, run, RunState.failed, f"{ATTEMPTS} processes ended while they ran it")
    if run is None:
        return None
    run.state = RunState.running
    run.attempt += 1
    run.fence += 1
    run.lease_owner = owner
    run.lease_until = clock + timedelta(seconds=lease_seconds)
    run.done = run.total = 0
    session.add(run)
    session.flush()
    schema = Schema.model_validate(schema_of(session, run).body)
    return Held(
        id=run.id,
        fence=run.fence,
        gold=run.gold,
        gold_version=run.gold_version,
        schema=schema,
        prompts=tuple(run.prompts),
        errors=run.errors,
        confidence=run.confidence,
        limit=run.limit,
        work=Workload.model_validate(run.work or {}),
    )


def renew(session: Session, held: Held, done: int, total: int, lease_seconds: float) -> bool:
    """Extend the lease and note how far the run is; whether it is still the holder's."""
    run = _still(session, held)
    if run is None:
        return False
    run.done, run.total = done, total
    run.lease_until = db.clock(session) + timedelta(seconds=lease_seconds)
    session.add(run)
    session.flush()
    return True


def release(session: Session, held: Held) -> bool:
    """Give a run back unfinished, through no fault of its own; whether it was still the holder's."""
    run = _still(session, held)
    if run is None:
        return False
    run.state, run.attempt = RunState.queued, run.attempt - 1
    run.lease_owner = run.lease_until = None
    session.add(run)
    session.flush()
    return True


def finish(session: Session, held: Held, total: int, document: dict[str, Any], standard: dict[str, Any] | None) -> bool:
    """Keep what came of a run of so many texts; whether it was still the holder's."""
    run = _still(session, held)
    if run is None:
        return False
    run.document, run.standard = document, standard
    run.done = run.total = total
    _end(session, run, RunState.done)
    return True


def fail(session: Session, held: Held, reason: str) -> bool:
    """Say why a run came to nothing; whether it was still the holder's."""
    run = _still(session, held)
    if run is None:
        return False
    _end(session, run, RunState.failed, reason)
    return True


def put_in_force(session: Session, run_id: str) -> tuple[StandardVersion, bool]:
    """Put the standard that an evaluation made in force: (the standard, whether it is new); in force already is no
    error.

    Raises NotFound; Conflict for a run that is not done, that was asked to promise nothing, or that cannot promise all
    it was asked to.
    """
    run = find(session, run_id)
    session.refresh(run, with_for_update=True)  # asked for twice at once, it is put in force once
    if run.state != RunState.done:
        raise Conflict(f"the evaluation is {run.state}; a standard comes of one that is done")
    if run.standard is None:
        raise Conflict("the evaluation was asked to promise nothing: it has no errors")
    if run.standard["lacking"]:
        reasons = "; ".join(run.standard["lacking"])
        raise Conflict(f"not all of it can be promised: {reasons}", {"lacking": run.standard["lacking"]})
    before = standards.newest(session, run.standard["recipe"])
    if before is not None and before.body.get("evaluation") == run.id:
        return before, False
    body = run.standard["body"]
    return standards.put(session, run.standard["recipe"], body["recipe"], body | {"evaluation": run.id}), True


def _run(session: Session, client: str, new: EvaluationCreate, settings: Settings) -> EvaluationRun:
    """What was asked for, checked against what there is."""
    with _of("schema"):
        schema = batches.find_schema(session, new.schema_name, new.schema_version)
    with _of("gold"):
        held = gold.newest(session, new.gold)
    if new.gold_version is not None:
        with _of("gold_version"):
            held = gold.version(session, new.gold, new.gold_version)
    for number, name in enumerate(new.prompts):
        with _of(f"prompts[{number}]"):
            Plan(schema, prompt.load(settings.prompts, name), Identity(settings.engine, settings.model))
            if name in new.prompts[:number]:
                raise Invalid(f"expected a prompt that is not there yet; {name} is")
    tasks = [task.name for task in schema.tasks]
    for name in new.errors:
        with _of(f"errors.{name}"):
            if name != ITEM and name not in tasks:
                raise Invalid(f"expected {ITEM}, or a task of the schema {schema.name}: {', '.join(tasks)}")
    with _of("errors"):
        if new.errors and len(new.prompts) > 1:
            raise Invalid("expected none where prompts are compared; promise for the one that is chosen")
    return EvaluationRun(
        client=client,
        gold=new.gold,
        gold_version=held.sha256,
        schema_id=batches.save_schema(session, schema).id or 0,
        prompts=list(new.prompts),
        errors=new.errors,
        confidence=new.confidence,
        limit=new.limit,
        work=new.work.model_dump(),
    )


@contextmanager
def _of(field: str) -> Iterator[None]:
    """Have an error name the field that it is about."""
    try:
        yield
    except (NotFound, Invalid) as error:
        raise type(error)(f"{field}: {error.message}", {"field": field}) from error


def _still(session: Session, held: Held) -> EvaluationRun | None:
    """The run, locked, if it is still the holder's."""
    query = select(EvaluationRun).where(
        EvaluationRun.id == held.id, EvaluationRun.fence == held.fence, EvaluationRun.state == RunState.running
    )
    return session.exec(query.with_for_update()).first()


def _end(session: Session, run: EvaluationRun, state: RunState, error: str | None = None) -> None:
    run.state = state
    run.error = None if error is None else cleaned(error)
    run.finished_at = db.clock(session)
    run.lease_owner = run.lease_until = None
    session.add(run)
    session.flush()

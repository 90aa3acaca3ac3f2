"""Puts a batch on stage as workers leave it: annotated, decided, waiting for people. For tests only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from sqlalchemy import Engine
from sqlmodel import select

from service import db, review
from service.labels import Choice, Labels, Mentions, Span
from service.models import Annotation, Batch, Item, ItemDecision, Recipe, SchemaVersion, State, fingerprint
from service.route import ONCE, Code, Decision, Outcome, Readings, Reason, refuse
from service.schema import Schema
from service.stored import key

RECIPE = "r" * 64
SCHEMA = Schema.model_validate(
    {
        "name": "shop",
        "tasks": [
            {"name": "sentiment", "kind": "choice", "labels": ["negative", "neutral", "positive"]},
            {"name": "entities", "kind": "spans", "labels": ["person", "place"]},
        ],
    }
)
DOUBT = Decision(
    outcome=Outcome.review,
    reasons=(Reason(code=Code.low_confidence, task="sentiment", label="neutral", value=0.5, threshold=0.6),),
)
ACCEPTED = Decision(outcome=Outcome.accepted, inclusion=0.02)
FAILED = refuse(Code.failed, "no answer after 3 attempts")
_numbers = count(1)


@dataclass(frozen=True)
class Play:
    """One text with what the model said and what was decided. labels None: it could not be labelled."""

    text: str
    labels: Labels | None
    decision: Decision = DOUBT
    ref: str | None = None
    readings: Readings = ONCE


def labels(
    text: str,
    sentiment: str,
    spans: Sequence[tuple[int, int, str]] = (),
    confidence: float = 0.5,
    complete: float = 0.9,
) -> Labels:
    found = [Span(start=s, end=e, label=label, text=text[s:e], confidence=confidence) for s, e, label in spans]
    return Labels(
        choices={"sentiment": Choice(label=sentiment, confidence=confidence)},
        mentions={"entities": Mentions(spans=tuple(found), complete=complete)},
    )


def stage(
    engine: Engine, plays: Sequence[Play], schema: Schema = SCHEMA, recipe: str = RECIPE
) -> tuple[str, list[int]]:
    """Store a batch of these; its id and the ids of its items."""
    with db.begin(engine) as session:
        version = session.exec(select(SchemaVersion).where(SchemaVersion.sha256 == schema.sha256)).first()
        if version is None:
            body = schema.model_dump(mode="json")
            version = SchemaVersion(name=schema.name, version=schema.version, sha256=schema.sha256, body=body)
        if session.get(Recipe, recipe) is None:
            session.add(Recipe(sha256=recipe, body={}))
        session.add(version)
        session.flush()
        number = str(next(_numbers))
        batch = Batch(
            client="test",
            key=number,
            content_sha256="0" * 64,
            schema_id=version.id or 0,
            prompt="line.v1",
            policy={},
            total=len(plays),
        )
        session.add(batch)
        session.flush()
        items = [_item(batch.id, position, play) for position, play in enumerate(plays)]
        session.add_all(items)
        session.flush()
        for item, play in zip(items, plays, strict=True):
            said = play.labels
            for task, value in {**said.choices, **said.mentions}.items() if said else ():
                body = value.model_dump(mode="json")
                session.add(Annotation(item_id=key(item), task=task, recipe=recipe, value=body))
            session.add(
                ItemDecision(
                    item_id=key(item),
                    recipe=recipe if said else None,
                    outcome=play.decision.outcome,
                    reasons=[reason.model_dump(mode="json") for reason in play.decision.reasons],
                    inclusion=play.decision.inclusion,
                    standard=play.decision.standard,
                    probability=play.decision.probability,
                )
            )
    return batch.id, [key(item) for item in items]


def _item(batch: str, position: int, play: Play) -> Item:
    return Item(
        batch_id=batch,
        position=position,
        ref=play.ref or str(position),
        text=play.text,
        text_sha256=fingerprint(play.text),
        state=State(play.decision.outcome),
        attempt=1,
        fence=1,
        priority=review.priority(play.labels, play.decision),
        readers=play.readings.readers,
        hidden=play.readings.hidden,
    )

"""A few texts, answered now. Nothing is stored."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag
from starlette.concurrency import run_in_threadpool

from service import batches, db, prompt, route, standards
from service.annotate import Failure, Plan
from service.api.bodies import Route
from service.api.dependencies import BODY, ClientDep, RunningDep, Word, errors
from service.batches import TextCreate
from service.confidence import calibrated
from service.engine import Engine
from service.errors import EngineError, TooLarge
from service.labels import to_row
from service.measure import measured
from service.route import Decision, Evidence, Measured, Policy, Standard
from service.running import Running
from service.settings import Settings

router = APIRouter(route_class=Route, tags=["annotate"])


def _form(value: Any) -> str:
    return "plain" if isinstance(value, str) else "object"


PlainOrText = Annotated[
    Annotated[Word, Tag("plain")] | Annotated[TextCreate, Tag("object")],
    Discriminator(_form),
]

EXAMPLE: dict[str, Any] = {
    "texts": [
        "My Samsung tablet arrived broken in New York, I want my money back.",
        {"id": "mail-17", "text": "Where is order #A-1042?", "meta": {"channel": "mail"}},
    ],
    "schema": "support",
}
ROW: dict[str, Any] = {
    "id": "0",
    "text": "The Samsung is broken.",
    "meta": {},
    "sentiment": {"label": "negative", "confidence": 0.94, "alternatives": [{"label": "neutral", "confidence": 0.05}]},
    "entities": [
        {
            "start": 4,
            "end": 11,
            "label": "product",
            "text": "Samsung",
            "confidence": 0.81,
            "start_utf16": 4,
            "end_utf16": 11,
        }
    ],
    "complete": 0.97,
    "state": "accepted",
    "decision": "accepted",
    "reasons": [],
    "recipe": "6f1d2a…",
}


class AnnotateCreate(BaseModel):
    """Texts to annotate now, with one schema and one prompt."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, json_schema_extra={"examples": [EXAMPLE]}
    )

    texts: Annotated[tuple[PlainOrText, ...], Field(min_length=1), FailFast()] = Field(
        description="texts, each alone or with an id and meta that come back with its row"
    )
    schema_name: Annotated[Word, Field(min_length=1, max_length=40)] = Field(
        alias="schema", description="name of the schema"
    )
    schema_version: int | None = Field(None, ge=1, le=1_000_000, description="its version; the newest where absent")
    prompt: Annotated[Word, Field(min_length=1, max_length=100)] | None = Field(
        None, description="name of the prompt, like line.v1; the service's own where absent"
    )
    second_prompt: Annotated[Word, Field(min_length=1, max_length=100)] | None = Field(
        None, description="reads every text a second time; where it says otherwise the item goes to review"
    )
    policy: Policy = Field(default_factory=lambda: Policy(), description="thresholds that differ from the usual ones")


class AnnotateAnswer(BaseModel):
    """One row a text, in the order of the request, as in the results of a batch; `state` is what it would be there."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"rows": [ROW]}]})

    rows: list[dict[str, Any]]


@router.post("/v1/annotate", summary="Annotate a few texts now", responses=errors(404, 503, *BODY))
async def annotate(new: AnnotateCreate, service: RunningDep, _caller: ClientDep) -> AnnotateAnswer:
    """Labels, confidence and decision of each text, at once. A text that cannot be labelled has a row that says why.

    Nothing is stored, so nothing is drawn for the audit and no person will see it: post a batch where that matters.
    """
    texts = [TextCreate(text=text) if isinstance(text, str) else text for text in new.texts]
    _check_sizes(texts, service.settings)
    engine = service.engine()
    plan, known, standard = await run_in_threadpool(_prepare, new, service, engine)
    rows: dict[int, dict[str, Any]] = {}
    failures: list[Failure] = []
    async for index, outcome in service.metrics.annotate([text.text for text in texts], plan, engine):
        text = texts[index]
        row: dict[str, Any] = {"id": str(index) if text.id is None else text.id, "text": text.text, "meta": text.meta}
        if isinstance(outcome, Failure):
            failures.append(outcome)
            rows[index] = row | _decided(route.refuse(outcome.code, outcome.detail), None)
        else:
            labels = calibrated(outcome.labels, standard) if standard else outcome.labels
            # The highest lot: an audit draws from what is stored, and this is not.
            evidence = Evidence(1.0, None, outcome.second, known, outcome.truncated, standard)
            decision = route.decide(labels, new.policy, evidence)
            rows[index] = row | to_row(labels, text.text) | _decided(decision, plan.sha256)
    if len(failures) == len(texts) and all(failure.retryable for failure in failures):
        raise EngineError(failures[0].detail, retryable=True, hint="the engine went away; send the same request again")
    return AnnotateAnswer(rows=[rows[index] for index in range(len(texts))])


def _check_sizes(texts: list[TextCreate], settings: Settings) -> None:
    if len(texts) > settings.max_annotate:
        raise TooLarge(
            f"texts: at most {settings.max_annotate:,} at once, not {len(texts):,}; post a batch instead",
            {"limit": settings.max_annotate},
        )
    together = 0
    for index, text in enumerate(texts):
        together += len(text.text)
        if len(text.text) > settings.max_text:
            raise TooLarge(
                f"texts[{index}]: at most {settings.max_text:,} characters, not {len(text.text):,}",
                {"index": index, "limit": settings.max_text},
            )
    if together > settings.max_text:
        raise TooLarge(
            f"texts: at most {settings.max_text:,} characters together, not {together:,}; post a batch instead",
            {"limit": settings.max_text},
        )


def _prepare(
    new: AnnotateCreate, service: Running, engine: Engine
) -> tuple[Plan, dict[tuple[str, str], Measured], Standard | None]:
    template = prompt.load(service.settings.prompts, new.prompt or service.settings.prompt)
    second = prompt.load(service.settings.prompts, new.second_prompt) if new.second_prompt else None
    with db.read(service.database) as session:
        plan = Plan(
            batches.find_schema(session, new.schema_name, new.schema_version), template, engine.identity, second
        )
        return plan, measured(session, plan.sha256), standards.in_force(session, plan.sha256)


def _decided(decision: Decision, recipe: str | None) -> dict[str, Any]:
    return {"state": decision.outcome.value, **decision.row(), "recipe": recipe}

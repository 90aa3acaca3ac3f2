"""Schemas and prompts: what may be said, and how it is asked."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import col, select

from service import batches, prompt, schema
from service.annotate import Plan
from service.api.bodies import Route
from service.api.dependencies import BODY, AnyoneDep, BytesDep, ClientDep, ReadDep, RunningDep, SessionDep, Word, errors
from service.engine import Identity
from service.errors import NotFound
from service.models import SchemaVersion
from service.prompt import Prompt
from service.schema import Schema

router = APIRouter(route_class=Route)

Version = Annotated[int | None, Query(ge=1, le=1_000_000, description="its version; the newest where absent")]
Name = Annotated[Word, Path(min_length=1, max_length=100)]

YAML = """\
name: mood
version: 1
tasks:
  - name: sentiment
    kind: choice
    labels: [negative, neutral, positive]
  - name: entities
    kind: spans
    labels:
      - name: product
        definition: Name of a thing that can be bought.
"""
JSON = {
    "name": "mood",
    "version": 1,
    "tasks": [{"name": "sentiment", "kind": "choice", "labels": ["negative", "neutral", "positive"]}],
}
# Read by `schema.parse`, which names lines; so it is documented here and not by a parameter.
BODY_DOCUMENTED = {
    "requestBody": {
        "required": True,
        "description": f"A schema as YAML or JSON, at most {schema.MAX_BYTES:,} bytes",
        "content": {
            "application/yaml": {"schema": {"type": "string"}, "examples": {"mood": {"value": YAML}}},
            "application/json": {"schema": {"type": "object"}, "examples": {"mood": {"value": JSON}}},
        },
    }
}


class SchemaSummary(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "mood", "version": 1, "sha256": "9b2f…"}]})

    name: str
    version: int
    sha256: str = Field(description="of the content; the same name and version never mean two things")


class SchemaPublic(SchemaSummary):
    body: Schema = Field(description="the schema itself, as it can be posted again")


class PromptSummary(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "line.v1", "sha256": "0eed…", "wire": "line"}]})

    name: str = Field(description="name and version, as a batch names it")
    sha256: str = Field(description="of its file; a published prompt is never edited")
    wire: str = Field(description="how the model writes its answers")


class PromptPublic(PromptSummary):
    template: str = Field(description="the file, a Jinja template")


@router.get("/v1/schemas", tags=["schemas"], summary="List schemas", responses=errors(503))
def schemas(session: ReadDep, _caller: AnyoneDep) -> list[SchemaSummary]:
    """Every version of every schema, by name, newest version first."""
    query = select(SchemaVersion).order_by(col(SchemaVersion.name), col(SchemaVersion.version).desc())
    return [SchemaSummary(name=row.name, version=row.version, sha256=row.sha256) for row in session.exec(query)]


@router.get("/v1/schemas/{name}", tags=["schemas"], summary="One schema", responses=errors(404, 422, 503))
def one_schema(name: Name, session: ReadDep, _caller: AnyoneDep, version: Version = None) -> SchemaPublic:
    """A schema with all its tasks, labels and examples."""
    return _public(batches.find_schema(session, name, version))


@router.post(
    "/v1/schemas",
    tags=["schemas"],
    status_code=201,
    summary="Register a schema",
    response_description="It is new",
    responses=errors(409, 503, *BODY) | {200: {"model": SchemaPublic, "description": "It was known, and is the same"}},
    openapi_extra=BODY_DOCUMENTED,
)
def register(
    body: BytesDep, session: SessionDep, service: RunningDep, caller: ClientDep, response: Response
) -> SchemaPublic:
    """Have a schema checked and kept. The same name and version with other content is a conflict: raise the version."""
    new = schema.parse(body)
    # Its worked examples are checked against tasks and texts when a prompt is rendered.
    asked = prompt.load(service.settings.prompts, service.settings.prompt)
    Plan(new, asked, Identity(service.settings.engine, service.settings.model))
    response.status_code = 201 if batches.register(session, new, who=caller.name) else 200
    return _public(new)


@router.get("/v1/prompts", tags=["prompts"], summary="List prompts", responses=errors(503))
def prompts(service: RunningDep, _caller: AnyoneDep) -> list[PromptSummary]:
    """Every prompt that a batch can name."""
    return [PromptSummary(**_named(found)) for found in prompt.load_all(service.settings.prompts).values()]


@router.get("/v1/prompts/{name}", tags=["prompts"], summary="One prompt", responses=errors(404, 422, 503))
def one_prompt(name: Name, service: RunningDep, _caller: AnyoneDep) -> PromptPublic:
    """A prompt with its template."""
    found = prompt.load(service.settings.prompts, name)
    path = service.settings.prompts / f"{found.id}.jinja"
    if not path.is_file():
        raise NotFound(f"no prompt {name!r}")
    return PromptPublic(**_named(found), template=path.read_text("utf-8"))


def _public(found: Schema) -> SchemaPublic:
    return SchemaPublic(name=found.name, version=found.version, sha256=found.sha256, body=found)


def _named(found: Prompt) -> dict[str, Any]:
    return {"name": found.id, "sha256": found.sha256, "wire": found.wire}

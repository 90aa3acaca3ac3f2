"""Schemas: what may be said of a text. A YAML file in `schemas/`, read, checked and frozen here.

A schema comes from outside, so it is refused before it can cost anything: size and depth are bounded
before it is parsed, every error names the line, and nothing refused here ever reaches an engine.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from service.errors import Invalid, NotFound

MAX_BYTES = 400_000
MAX_DEPTH = 8
MAX_LABELS = 500
MAX_NODES = 20_000

# Keys of a result row that are not tasks.
RESERVED = frozenset(
    ("id", "text", "meta", "source", "state", "decision", "reasons", "recipe", "reviewer", "proposed", "complete")
    + ("batch", "position", "labels", "annotations", "intents", "standard", "probability", "item")
)
# What separates fields on the wire: a label that contains one could not be told from two.
SEPARATORS = ("|", "=", '"', "\\")
# What the shared tasks' labels mean: a model reads words.
ABBREVIATIONS = {"PER": "person", "LOC": "location", "ORG": "organization", "MISC": "miscellaneous"}

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Prose = Annotated[str, StringConstraints(max_length=4000, strip_whitespace=True)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Label(_Frozen):
    """One possible answer. `name` is stored and returned; `display` is what the model reads and writes."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    definition: Annotated[str, StringConstraints(max_length=1000, strip_whitespace=True)] = ""
    display: Annotated[str, StringConstraints(max_length=100)] = Field(default="", validate_default=True)

    @field_validator("name", "display")
    @classmethod
    def _printable(cls, value: str) -> str:
        for separator in SEPARATORS:
            if separator in value:
                raise ValueError(f"{value!r} contains {separator!r}, which separates fields in the model's answer")
        if any(not c.isprintable() for c in value) or value != value.strip() or "  " in value:
            raise ValueError(f"{value!r} has control characters, or blanks at an end or in a row")
        return value

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @property
    def shown(self) -> str:
        return self.display or as_words(self.name)


class _Task(_Frozen):
    name: Name
    instruction: Prose = ""
    labels: Annotated[tuple[Label, ...], Field(max_length=MAX_LABELS)]

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value in RESERVED:
            raise ValueError(f"{value!r} is a field of every result and cannot name a task")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> _Task:
        for what, values in (
            ("label", [x.name for x in self.labels]),
            ("displayed label", [x.shown for x in self.labels]),
        ):
            repeated = [value for value, count in Counter(values).items() if count > 1]
            if repeated:
                raise ValueError(f"the {what} {repeated[0]!r} stands more than once")
        if any(not label.shown for label in self.labels):
            raise ValueError("a label has no letters to show; give it a display name")
        return self

    @property
    def title(self) -> str:
        return as_words(self.name).capitalize()

    @cached_property
    def by_shown(self) -> dict[str, str]:
        """Label name by what the model writes."""
        return {label.shown: label.name for label in self.labels}

    @cached_property
    def by_name(self) -> dict[str, Label]:
        return {label.name: label for label in self.labels}


class ChoiceTask(_Task):
    """Exactly one label for the whole text."""

    kind: Literal["choice"] = "choice"

    @field_validator("labels")
    @classmethod
    def _two(cls, value: tuple[Label, ...]) -> tuple[Label, ...]:
        if len(value) < 2:
            raise ValueError("a choice needs at least two labels")
        return value


class SpansTask(_Task):
    """Any number of mentions, each a run of whole tokens of the text with one label."""

    kind: Literal["spans"] = "spans"

    @field_validator("labels")
    @classmethod
    def _one(cls, value: tuple[Label, ...]) -> tuple[Label, ...]:
        if not value:
            raise ValueError("a spans task needs at least one label")
        return value


Task = Annotated[ChoiceTask | SpansTask, Field(discriminator="kind")]


class Example(BaseModel):
    """A worked example for prompts that show some: a text and one key a task, a label or a list of {text, label}.

    Checked against tasks and text when a prompt is rendered.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    text: Annotated[str, StringConstraints(min_length=1, max_length=2000)]


class Schema(_Frozen):
    """A named, versioned set of tasks. Identified by name, version and sha256."""

    name: Name
    version: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    description: Prose = ""
    guideline: Annotated[str, StringConstraints(max_length=20_000, strip_whitespace=True)] = ""
    tasks: Annotated[tuple[Task, ...], Field(min_length=1, max_length=12)]
    examples: Annotated[tuple[Example, ...], Field(max_length=20)] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Schema:
        repeated = [name for name, count in Counter(task.name for task in self.tasks).items() if count > 1]
        if repeated:
            raise ValueError(f"the task {repeated[0]!r} stands more than once")
        if sum(isinstance(task, SpansTask) for task in self.tasks) > 1:
            raise ValueError("one spans task at most: put its labels together, or use two schemas")
        return self

    @property
    def choices(self) -> tuple[ChoiceTask, ...]:
        return tuple(task for task in self.tasks if isinstance(task, ChoiceTask))

    @property
    def spans(self) -> SpansTask | None:
        return next((task for task in self.tasks if isinstance(task, SpansTask)), None)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def as_words(name: str) -> str:
    """A label as the model reads it: `refund_request`, `RefundRequest` and `refund.request` are "refund request".

    The abbreviations of CoNLL-2003 are written out; any other label can have a display name.
    """
    if name in ABBREVIATIONS:
        return ABBREVIATIONS[name]
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = re.sub(r"[\s_.\-/:]+", " ", spaced).strip()
    return words.lower()


def load(path: Path) -> Schema:
    """Read a schema file. Raises NotFound, or Invalid with file, line and reason."""
    if not path.is_file():
        raise NotFound(f"no schema file {path}")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    return parse(data, str(path))


def find(name: str, folder: Path) -> Schema:
    """The schema file that is named, or the one of that name in the folder. Raises as `load` does."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        return load(path)
    shipped = folder / f"{name}.yaml"
    if not shipped.is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise NotFound(f"no schema {name!r} in {folder}; there is {there}; or name a file")
    return load(shipped)


def parse(data: bytes, source: str = "schema") -> Schema:
    """A schema from YAML (or JSON, which is YAML). Raises Invalid with line and reason, within milliseconds."""
    if len(data) > MAX_BYTES:
        raise Invalid(f"{source}: a schema has at most {MAX_BYTES:,} bytes")
    try:
        node = _compose(data.decode("utf-8"), source)
        return Schema.model_validate(_construct(node))
    except UnicodeDecodeError as error:
        raise Invalid(f"{source}: not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise Invalid(f"{source}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    except ValidationError as error:
        problems = [
            {"line": _line(node, problem["loc"]), "field": _field(problem["loc"]), "reason": _reason(problem)}
            for problem in error.errors()[:20]
        ]
        first = problems[0]
        raise Invalid(f"{source}, line {first['line']}: {first['field']}: {first['reason']}", problems) from None


def infer(name: str, records: Iterable[Mapping[str, Any]]) -> Schema:
    """A schema from gold records: every field that holds a string is a choice, every list of spans a spans task.

    The fields of RESERVED (id, text, source, meta, ...) are not tasks. Choices come first, in order of their
    first appearance; labels are sorted, so that the order of the records does not change the schema.
    """
    found: dict[str, dict[str, None]] = {}
    spans: dict[str, dict[str, None]] = {}
    for record in records:
        for key, value in record.items():
            if key in RESERVED or value is None:
                continue
            if isinstance(value, str):
                found.setdefault(key, {})[value] = None
            elif isinstance(value, list) and all(isinstance(x, Mapping) and "label" in x for x in value):
                spans.setdefault(key, {}).update({str(x["label"]): None for x in value})
    tasks: list[dict[str, Any]] = [
        {"name": key, "kind": "choice", "labels": sorted(labels)} for key, labels in found.items()
    ]
    tasks += [{"name": key, "kind": "spans", "labels": sorted(labels)} for key, labels in spans.items() if labels]
    try:
        return Schema.model_validate({"name": name, "tasks": tasks})
    except ValidationError as error:
        problem = error.errors()[0]
        raise Invalid(f"no schema can be made of these records: {_field(problem['loc'])}: {_reason(problem)}") from None


def to_yaml(schema: Schema) -> str:
    """The schema as a file that `load` reads back to an equal one."""
    data = schema.model_dump(exclude_defaults=True) | {"version": schema.version}
    data["tasks"] = [
        {"name": t.name, "kind": t.kind, **t.model_dump(exclude_defaults=True, exclude={"name", "kind"})}
        for t in schema.tasks
    ]
    for task in data["tasks"]:
        task["labels"] = list(task["labels"])
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


def _compose(text: str, source: str) -> yaml.Node:
    """YAML to nodes that know their lines. Depth is checked on the event stream, before anything recurses."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
        line = f"line {event.start_mark.line + 1}" if event.start_mark else "line 1"
        if count > MAX_NODES:
            raise Invalid(f"{source}, {line}: more than {MAX_LABELS} labels or {MAX_NODES} nodes")
        if isinstance(event, yaml.AliasEvent):
            raise Invalid(f"{source}, {line}: aliases are not allowed in a schema")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise Invalid(f"{source}, {line}: nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    node = yaml.compose(text, Loader=yaml.CSafeLoader)
    if node is None:
        raise Invalid(f"{source}: the schema is empty")
    return node


def _construct(node: yaml.Node) -> Any:
    """Plain data from nodes; a repeated key is an error, not a silent overwrite."""
    if isinstance(node, yaml.MappingNode):
        data: dict[Any, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key must be a word", key.start_mark)
            if key.value in data:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            data[key.value] = _construct(value)
        return data
    if isinstance(node, yaml.SequenceNode):
        return [_construct(value) for value in node.value]
    return node.value  # a bare yes, no, null or 1.5 is meant as the word it is


def _line(node: yaml.Node, path: tuple[int | str, ...]) -> int:
    for step in path:
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == step), node)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
    return int(node.start_mark.line) + 1


def _field(path: tuple[int | str, ...]) -> str:
    steps = [step for step in path if step not in ("choice", "spans")]
    return ".".join(str(step) for step in steps) or "schema"


def _reason(problem: Any) -> str:
    return str(problem["msg"]).removeprefix("Value error, ")

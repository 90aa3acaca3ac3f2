"""Prompts: named, versioned templates in `prompts/`, sandboxed and strict, never edited once published."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from service.engine import Message
from service.errors import Invalid, NotFound, ServiceError
from service.labels import from_row
from service.schema import Schema
from service.wire import WIRES, Wire, locate, render
from service.words import Window, windows

PUBLISHED = "SHA256SUMS"

_environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=False)


@dataclass(frozen=True)
class Prompt:
    """A template, identified by name, version and the sha256 of its file. wire: how its answers are written."""

    name: str
    version: int
    sha256: str
    wire: str
    template: jinja2.Template = field(repr=False, compare=False)

    @property
    def id(self) -> str:
        return f"{self.name}.v{self.version}"

    def open_wire(self, schema: Schema) -> Wire:
        return WIRES[self.wire](schema)

    def messages(self, window: Window, schema: Schema) -> tuple[Message, ...]:
        """The conversation that asks for the labels of a window. Raises Invalid where the template fails."""
        spans = (schema.spans,) if schema.spans else ()
        context = self.template.new_context(
            {
                "schema": schema,
                "tasks": [*schema.choices, *spans],
                "text": window.text,
                "examples": _examples(schema, self.open_wire(schema)),
            }
        )
        try:
            system, user = ("".join(self.template.blocks[name](context)) for name in ("system", "user"))
        except jinja2.TemplateError as error:
            raise Invalid(f"prompt {self.id}: {error}") from error
        return (Message("system", system), Message("user", user))


def load(folder: Path, name: str) -> Prompt:
    """The prompt `NAME.vN` of a folder. Raises NotFound, and Invalid where a published file was changed."""
    stem, _, version = name.rpartition(".v")
    path = folder / f"{name}.jinja"
    if not stem.replace("_", "").isalnum() or not version.isdigit() or not path.is_file():
        raise NotFound(f"no prompt {name!r}; there is {', '.join(names(folder)) or 'none'}")
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if _published(folder).get(path.name, sha256) != sha256:
        raise Invalid(f"prompt {name} was changed after it was published; restore it and make a new version")
    try:
        template = _environment.from_string(data.decode())
        assignments = _environment.parse(data.decode()).find_all(jinja2.nodes.Assign)
    except (jinja2.TemplateError, UnicodeDecodeError) as error:
        raise Invalid(f"prompt {name}: {error}") from error
    wires = [a.node for a in assignments if getattr(a.target, "name", "") == "wire"]
    wire = wires[0].value if wires and isinstance(wires[0], jinja2.nodes.Const) else None
    if wire not in WIRES or not {"system", "user"} <= template.blocks.keys():
        raise Invalid(f"prompt {name} must set wire to one of {', '.join(WIRES)} and have the blocks system and user")
    return Prompt(stem, int(version), sha256, wire, template)


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.jinja"))


def load_all(folder: Path) -> dict[str, Prompt]:
    """Every prompt of the folder by name; raises for the first that cannot be used."""
    missing = [file for file in _published(folder) if not (folder / file).is_file()]
    if missing:
        raise ServiceError(f"the published prompt {missing[0]} is missing from {folder}")
    return {name: load(folder, name) for name in names(folder)}


def _published(folder: Path) -> dict[str, str]:
    """sha256 by file name, in the format of the command sha256sum."""
    path = folder / PUBLISHED
    lines = path.read_text().splitlines() if path.is_file() else []
    return {file.strip().lstrip("*"): sha256 for sha256, _, file in (line.partition(" ") for line in lines)}


@lru_cache(maxsize=128)
def _examples(schema: Schema, wire: Wire) -> list[dict[str, str]]:
    """The schema's worked examples, with the completion that would be right. Raises Invalid, naming the field."""
    examples = []
    for number, example in enumerate(schema.examples):
        where = f"examples[{number}]"
        window, *more = windows(example.text)
        if more:
            raise Invalid(f"{where}.text: longer than one window")
        said = example.model_extra or {}
        unknown = said.keys() - {task.name for task in schema.tasks}
        if unknown:
            raise Invalid(f"{where}.{min(unknown)}: no such task")
        row = dict(said)
        if schema.spans:
            row[schema.spans.name] = _located(said.get(schema.spans.name), window, f"{where}.{schema.spans.name}")
        labels = from_row(row, window.text, schema, f"{where}.")
        try:
            completion = render(labels, window, schema, wire)
        except KeyError as error:
            raise Invalid(f"{where}.{error.args[0]}: expected a label") from error
        examples.append({"text": window.text, "completion": completion})
    return examples


def _located(mentions: Any, window: Window, where: str) -> list[dict[str, Any]]:
    """Spans from `{"text", "label"}` in reading order: each stands at its first place after the one before."""
    if not isinstance(mentions, list) or not all(
        isinstance(m, dict) and m.keys() == {"text", "label"} for m in mentions
    ):
        raise Invalid(f"{where}: expected a list of {{text, label}}")
    spans = []
    after = 0
    for number, mention in enumerate(mentions):
        run = locate(window, mention["text"], after)
        if run is None:
            raise Invalid(
                f"{where}[{number}].text: {mention['text']!r} does not stand in the text after what is before it"
            )
        spans.append({"start": window.words[run[0]][0], "end": window.words[run[1] - 1][1], "label": mention["label"]})
        after = run[1]
    return spans

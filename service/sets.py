"""Collections of gold sets, for training and for measuring: declared in a YAML file, read from a folder.

A declaration names each set as anyone can get it, with its licence and attribution; the texts stay elsewhere.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service import schema
from service.errors import Invalid
from service.files import read_records
from service.labels import Labels, from_row, plain
from service.schema import Schema, SpansTask
from service.settings import PROJECT, Settings
from service.stored import check_storable

OTHER = "other"  # how a label that means none of these is shown

Split = Literal["train", "dev", "test"]
Declaration = TypeVar("Declaration", bound=BaseModel)


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GoldSet(_Declared):
    """One set. Files are relative to the data folder, or, with a leading `./`, to the project."""

    source: str = Field(description="where anyone can get it: a public repository, or its name on the hub")
    licence: str
    attribution: str
    train: str | None = None
    dev: str | None = None
    test: str | None = None
    examples: Annotated[int, Field(ge=0)] = 0  # texts of the train file that one training reads; 0: only measured
    schema_name: str | None = Field(None, alias="schema")  # default: the schema that fits all of its files
    by: str | None = None  # field of `meta` that tells parts with label sets of their own apart
    other: str | None = None  # the label that means none of these
    strangers: tuple[str, ...] = ()  # other sets, whose texts get that label here
    without: tuple[str, ...] = ()  # labels whose texts are left out
    display: dict[str, str] = Field(default_factory=dict)  # what the model reads, by label


class Collection(_Declared):
    """Sets by name. definitions, aliases: of labels as the model reads them, for all sets that have such a label."""

    sets: dict[str, GoldSet]
    definitions: dict[str, str] = Field(default_factory=dict)
    aliases: dict[str, tuple[str, ...]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What one person said of a text. asked: for mentions of which labels alone; None for everything."""

    who: str
    labels: Labels
    asked: frozenset[str] | None = None


@dataclass(frozen=True)
class Gold:
    """A text with the labels that people agreed on.

    people: what each of them said, where the record tells; several judgements of one person are of different labels.
    further: labels of a stored record for tasks that the schema does not have, as they are stored.
    """

    text: str
    labels: Labels
    id: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    people: Sequence[Judgement] = ()
    further: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As it stands in a gold file, without meta and people."""
        return {"id": self.id, "text": self.text, **self.further, **plain(self.labels)}


@dataclass(frozen=True)
class Part:
    """A set, or what of it shares one label set.

    other: by choice task, the label that means none of these. strangers: sets whose texts are of that label here.
    refused: why records cannot be used, one entry each.
    """

    name: str
    of: str
    schema: Schema
    splits: Mapping[Split, tuple[Gold, ...]]
    other: Mapping[str, str]
    examples: int
    strangers: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


def parse_declaration(path: Path, model: type[Declaration]) -> Declaration:
    """A YAML file as `model`. Raises Invalid with the file, the field and what is wrong."""
    try:
        return model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problem = error.errors()[0]
        raise Invalid(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise Invalid(f"{path}: {error}") from error


def read_part(name: str, declared: GoldSet, files: Mapping[Split, Iterable[Mapping[str, Any]]]) -> list[Part]:
    """The parts of a set from its records by split. Raises Invalid, naming set, split and record."""
    grouped: dict[str, dict[Split, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for split, records in files.items():
        for record in records:
            if not _left_out(record, declared):
                grouped[str((record.get("meta") or {}).get(declared.by, "")) if declared.by else ""][split].append(
                    record
                )
    sizes = {key: len(group.get("train", ())) for key, group in grouped.items()}
    total = sum(sizes.values())
    return [
        _part(f"{name}/{key}" if key else name, name, declared, group, declared.examples * sizes[key] // max(1, total))
        for key, group in sorted(grouped.items())
    ]


def read_sets(collection: Collection, data: Path, splits: Iterable[Split], names: Iterable[str] = ()) -> list[Part]:
    """All parts of the sets that are named, or of all, whose files lie in the folder.

    The schema of a set is made from all of its files, also those of splits that are not asked for.
    Raises Invalid for a name that is not declared, and for a set without one of its files.
    """
    wanted = list(names) or list(collection.sets)
    unknown = [name for name in wanted if name not in collection.sets]
    if unknown:
        raise Invalid(f"no set {unknown[0]!r}; there is {', '.join(collection.sets)}")
    asked = set(splits)
    parts = []
    for name in wanted:
        declared = collection.sets[name]
        files: dict[Split, list[dict[str, Any]]] = {}
        for split in ("train", "dev", "test"):
            file = getattr(declared, split)
            if file is not None:
                files[split] = list(read_records(str(_resolve(file, data))))
        parts += [_narrowed(part, asked) for part in read_part(name, declared, files)]
    return [part for part in parts if any(part.splits.values())]


def read_file(source: str, schema_name: str | None, settings: Settings, split: Split = "test") -> Part:
    """A gold file as a set of its own. Raises Invalid, naming the record and the field, for one that does not fit."""
    records = list(read_records(source))
    if not records:
        raise Invalid(f"{source}: no records")
    name = Path(source).name.split(".")[0]
    what = schema.find(schema_name, settings.schemas) if schema_name else schema.infer(_plain(name), records)
    gold = []
    for number, record in enumerate(records, 1):
        where = f"record {number}: "
        if not isinstance(record.get("text"), str):
            raise Invalid(
                f"{where}expected a text in the field 'text', found {', '.join(map(str, record)) or 'nothing'}"
            )
        try:
            check_storable(record["text"])
        except ValueError as error:
            raise Invalid(f"{where}{error}") from None
        gold.append(_gold(record, what, number, where))
    return Part(name, name, what, {split: tuple(gold)}, _other(what), 0)


def _gold(record: Mapping[str, Any], what: Schema, number: int, where: str = "") -> Gold:
    meta = record.get("meta")
    return Gold(
        record["text"],
        from_row(record, record["text"], what, where),
        str(record.get("id", number)),
        meta if isinstance(meta, Mapping) else {},
        tuple(_people(record, what, where)),
    )


def _people(record: Mapping[str, Any], what: Schema, where: str) -> Iterator[Judgement]:
    """Who said what, from "annotations": [{"annotator", <task>: as in gold, "labels": those asked for, if not all}]."""
    listed = record.get("annotations")
    for said in listed if isinstance(listed, list) else ():
        if not (isinstance(said, Mapping) and isinstance(said.get("annotator"), str)):
            continue
        who = said["annotator"]
        place = f"{where}annotations, {who}: "
        if "labels" not in said:
            yield Judgement(who, from_row(said, record["text"], what, place))
        elif what.spans is not None and (asked := _asked(said["labels"], what.spans, place)):
            marked = {what.spans.name: _within(said.get(what.spans.name), said["labels"], what.spans, place)}
            if (labels := from_row(marked, record["text"], what, place)).mentions:
                yield Judgement(who, labels, asked)


def _asked(labels: Any, task: SpansTask, place: str) -> frozenset[str]:
    """The labels that somebody was asked for, as far as the task has them."""
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise Invalid(f"{place}labels: expected a list of the labels that were asked for")
    return frozenset(labels) & {label.name for label in task.labels}


def _within(entries: Any, asked: Sequence[str], task: SpansTask, place: str) -> Any:
    """Mentions without those that were asked for and that the task has no label for; what is no list as it is."""
    if not isinstance(entries, list):
        return entries
    known = [label.name for label in task.labels]
    kept = []
    for number, entry in enumerate(entries):
        label = entry.get("label") if isinstance(entry, Mapping) else None
        if label in known and label not in asked:
            raise Invalid(f"{place}{task.name}[{number}].label: expected a label that was asked for, not {label!r}")
        kept += [entry] if label in known or label not in asked else []
    return kept


def _plain(name: str) -> str:
    """A name that a schema may have."""
    found = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:39]
    return found if found[:1].isalpha() else f"s_{found}"


def _other(what: Schema) -> dict[str, str]:
    return {task.name: label.name for task in what.choices for label in task.labels if label.shown == OTHER}


def _resolve(file: str, data: Path) -> Path:
    return PROJECT / file if file.startswith("./") else data / file


def _narrowed(part: Part, splits: set[Split]) -> Part:
    kept = {split: gold for split, gold in part.splits.items() if split in splits}
    return replace(part, splits=kept)


def _left_out(record: Mapping[str, Any], declared: GoldSet) -> bool:
    return any(value in declared.without for value in record.values() if isinstance(value, str))


def _part(name: str, of: str, declared: GoldSet, group: Mapping[Split, list[Mapping[str, Any]]], examples: int) -> Part:
    everything = [record for records in group.values() for record in records]
    if declared.schema_name:
        what = schema.find(declared.schema_name, PROJECT / "schemas")
    else:
        try:
            what = _displayed(schema.infer(_plain(name), everything), declared)
        except Invalid as error:
            raise Invalid(f"{name}: {error.message}") from None
    splits: dict[Split, tuple[Gold, ...]] = {}
    refused: list[str] = []
    for split, records in group.items():
        found = []
        for number, record in enumerate(records, 1):
            try:
                found.append(_gold(record, what, number))
            except Invalid as error:  # such as spans that overlap, which the schema cannot hold
                refused.append(f"{name}, {split}, record {record.get('id', number)}: {error.message}")
        splits[split] = tuple(found)
    return Part(name, of, what, splits, _other(what), examples, declared.strangers, tuple(refused))


def _displayed(what: Schema, declared: GoldSet) -> Schema:
    shown = dict(declared.display) | ({declared.other: OTHER} if declared.other else {})
    data = what.model_dump()
    for task in data["tasks"]:
        for label in task["labels"]:
            label["display"] = shown.get(label["name"], label["display"])
    return Schema.model_validate(data)

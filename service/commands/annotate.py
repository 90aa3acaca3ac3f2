"""`annotate`: the texts of a file, labelled and decided on without a service."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import make_url

from service import db, prompt, schema, standards
from service.annotate import Annotated as Answer
from service.annotate import Failure, Plan, annotate
from service.commands.console import (
    EngineOption,
    LimitOption,
    PromptOption,
    SchemaOption,
    SecondOption,
    err,
    opened,
    opened_database,
    progress_bar,
    settings_of,
)
from service.confidence import calibrated
from service.errors import Invalid
from service.files import read_records
from service.labels import Labels, to_row
from service.route import Decision, Evidence, Policy, Standard, decide, lot, refuse
from service.settings import Settings

CHUNK = 512  # texts handed to the engine at once: enough to keep any engine full


def annotate_file(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="JSONL, CSV or Parquet file, or a data set of the hub")
    ],
    schema_name: SchemaOption = "support",
    prompt_name: PromptOption = None,
    second_name: SecondOption = None,
    engine_name: EngineOption = None,
    target: Annotated[Path | None, typer.Option("--out", help="JSONL file to write; default: standard output")] = None,
    text_field: Annotated[str, typer.Option("--text", help="field that holds the text")] = "text",
    id_field: Annotated[str, typer.Option("--id", help="field that names it; its line where absent")] = "id",
    limit: LimitOption = None,
) -> None:
    """Label the texts of a file; one JSON object a line, in the order in which they finish."""
    settings = settings_of(engine=engine_name, prompt=prompt_name)
    records = islice(read_records(source), limit)
    texts = _texts(records, text_field, id_field, settings)
    what = schema.find(schema_name, settings.schemas)
    prompts = [prompt.load(settings.prompts, name) for name in (settings.prompt, second_name) if name]
    begun = list(islice(texts, CHUNK))  # what is wrong with the file is said before the model is loaded
    asyncio.run(_annotate_file(chain(begun, texts), what, prompts, settings, target))


async def _annotate_file(
    texts: Iterator[tuple[str, str]],
    what: schema.Schema,
    prompts: Sequence[prompt.Prompt],
    settings: Settings,
    target: Path | None,
) -> None:
    outcomes = {"accepted": 0, "audit": 0, "review": 0}
    async with opened(settings) as engine:
        plan = Plan(what, prompts[0], engine.identity, *prompts[1:])
        standard = _standard(settings, plan.sha256)
        with _writing(target) as write, progress_bar() as progress:
            bar = progress.add_task("labelling", total=None)
            position = 0
            while chunk := list(islice(texts, CHUNK)):
                async for index, answer in annotate([text for _, text in chunk], plan, engine):
                    name, text = chunk[index]
                    labels, decision = _decided(answer, standard, settings, position + index)
                    outcomes[decision.outcome] += 1
                    write(_row(name, text, labels, decision, plan.sha256))
                    progress.advance(bar)
                position += len(chunk)
            progress.update(bar, total=position)
    err.print(
        f"{position} texts: {outcomes['accepted']} accepted, {outcomes['audit']} accepted and drawn for an audit, "
        f"{outcomes['review']} for review"
    )


def _texts(
    records: Iterator[dict[str, Any]], text_field: str, id_field: str, settings: Settings
) -> Iterator[tuple[str, str]]:
    """(id, text) of each record. Raises Invalid, naming the record and what was expected."""
    for number, record in enumerate(records, start=1):
        text = record.get(text_field)
        if not isinstance(text, str):
            fields = ", ".join(map(str, record)) or "nothing"
            raise Invalid(f"record {number}: expected a text in the field {text_field!r}, found {fields}; see --text")
        if len(text) > settings.max_text:
            raise Invalid(f"record {number}: {len(text):,} code points; CONCORD_MAX_TEXT is {settings.max_text:,}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Invalid(f"record {number}: a lone surrogate at {error.start}, which is no character") from None
        name = record.get(id_field)
        yield str(number - 1 if name is None else name), text


def _standard(settings: Settings, recipe: str) -> Standard | None:
    """What the recipe's labels are held to; a database that is not there yet holds nothing."""
    file = make_url(settings.database_url).database
    if settings.database_url.startswith("sqlite") and not (file and Path(file).is_file()):
        return None
    with opened_database(settings) as database, db.read(database) as session:
        return standards.in_force(session, recipe)


def _decided(
    answer: Answer | Failure, standard: Standard | None, settings: Settings, position: int
) -> tuple[Labels | None, Decision]:
    if isinstance(answer, Failure):
        return None, refuse(answer.code, answer.detail)
    labels = calibrated(answer.labels, standard) if standard else answer.labels
    draw = lot(settings.seed, "", position)
    evidence = Evidence(draw, second=answer.second, truncated=answer.truncated, standard=standard)
    return labels, decide(labels, Policy(), evidence)


def _row(name: str, text: str, labels: Labels | None, decision: Decision, recipe: str) -> dict[str, Any]:
    shown = to_row(labels, text) if labels else {}
    return {"id": name, "text": text, **shown, **decision.row(), "recipe": recipe}


@contextmanager
def _writing(target: Path | None) -> Iterator[Any]:
    file = target.open("w", encoding="utf-8") if target else sys.stdout

    def write(row: dict[str, Any]) -> None:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")

    try:
        yield write
    finally:
        file.flush()
        if target:
            file.close()

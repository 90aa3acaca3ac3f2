"""What all commands share: where they write, how they open an engine, and the options that several have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from sqlalchemy import Engine as Database

from service import db, evaluation, gold, schema, sets
from service.annotate import Plan
from service.engine import Engine, open_engine
from service.settings import Settings

out = Console()
err = Console(stderr=True)

SchemaOption = Annotated[str, typer.Option("--schema", help="a schema file, or the name of one in the schema folder")]
PromptOption = Annotated[str | None, typer.Option("--prompt", help="a prompt such as line.v1; default: CONCORD_PROMPT")]
SecondOption = Annotated[
    str | None, typer.Option("--second-prompt", help="a prompt that reads each text as well; a difference means review")
]
EngineOption = Annotated[str | None, typer.Option("--engine", help="transformers or vllm; default: CONCORD_ENGINE")]
GoldArgument = Annotated[
    str,
    typer.Argument(
        metavar="GOLD", help="file of gold records, or a gold set in the database: NAME, or NAME@SHA256 for a version"
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="also write the figures to this file")]
ReportOption = Annotated[Path | None, typer.Option("--report", help="also write a report, one HTML file")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="take only the first so many texts")]


def settings_of(**given: Any) -> Settings:
    return Settings(**{name: value for name, value in given.items() if value is not None})


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Engine]:
    """The engine of the settings, open and proven."""
    with err.status("opening the engine"):
        engine = await asyncio.to_thread(open_engine, settings)
        await engine.ready()
    try:
        yield engine
    finally:
        await engine.close()


@contextmanager
def opened_database(settings: Settings) -> Iterator[Database]:
    """The database of the settings, its tables brought to this version."""
    database = db.connect(settings.database_url)
    try:
        db.migrate(database)
        yield database
    finally:
        database.dispose()


def progress_bar() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err)


def read_gold(source: str, schema_name: str | None, settings: Settings, database: Database) -> sets.Part:
    """A gold file, or a gold set in the database, of a version where one is named, or a data set of the hub."""
    if schema_name and not Path(source).is_file():
        with db.read(database) as session:
            known = {held["name"] for held in gold.sets(session)}
            name, _, sha256 = (source, "", "") if source in known else source.rpartition("@")
            if name in known:
                what = schema.find(schema_name, settings.schemas)
                stored = gold.labelled(session, name, what, sha256 or None)
                return sets.Part(name, name, what, {"test": tuple(stored)}, {}, 0)
    return sets.read_file(source, schema_name, settings)


async def evaluated(
    chosen: Sequence[sets.Gold], plan: Plan, engine: Engine, database: Database, progress: Progress, title: str
) -> evaluation.Evaluation:
    """An evaluation with its progress shown under a title."""
    bar = progress.add_task(title, total=len(chosen))
    found = await evaluation.evaluate(chosen, plan, engine, database, lambda: progress.advance(bar))
    progress.remove_task(bar)
    return found


def write_documents(document: dict[str, Any], json_target: Path | None, report: Path | None) -> None:
    if json_target:
        json_target.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        err.print(f"wrote {json_target}")
    if report:
        from service.report import html

        report.write_text(html(document), encoding="utf-8")
        err.print(f"wrote {report}")

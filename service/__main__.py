"""The command `concord`."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from service import evaluation, prompt, schema, sets
from service.annotate import Annotated as Answer
from service.annotate import Failure, Plan, annotate
from service.engine import Engine, Identity, let_threads_sleep, open_engine
from service.engine.embedded import UNTRAINED
from service.errors import Invalid, ServiceError
from service.files import read_records
from service.labels import to_row
from service.mixture import Training
from service.route import Decision, Evidence, Policy, decide, lot, refuse
from service.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Label texts with an open language model.")
schema_app = typer.Typer(no_args_is_help=True, help="Schemas: what may be said of a text.")
app.add_typer(schema_app, name="schema")

CHUNK = 512  # texts handed to the engine at once by `annotate`: enough to keep any engine full

out = Console()
err = Console(stderr=True)

SchemaOption = Annotated[str, typer.Option("--schema", help="a schema file, or the name of one in the schema folder")]
PromptOption = Annotated[str | None, typer.Option("--prompt", help="a prompt such as line.v1; default: CONCORD_PROMPT")]
SecondOption = Annotated[
    str | None, typer.Option("--second-prompt", help="a prompt that reads each text as well; a difference means review")
]
EngineOption = Annotated[str | None, typer.Option("--engine", help="transformers or vllm; default: CONCORD_ENGINE")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="take only the first so many texts")]


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="default: CONCORD_HOST")] = None,
    port: Annotated[int | None, typer.Option(help="default: CONCORD_PORT")] = None,
) -> None:
    """Run the service: HTTP API and, unless CONCORD_WORKERS is 0, the workers that label."""
    from service import app as service

    service.serve(_settings(host=host, port=port))


@app.command()
def worker() -> None:
    """Run one annotation worker beside the service, on the same database. Start as many as the engine can feed."""
    from service import db
    from service.worker import work

    settings = _settings()

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        database = db.connect(settings.database_url)
        db.migrate(database)
        engine = open_engine(settings)
        try:
            await engine.ready()
            err.print(f"worker {_owner()} is ready: {engine.identity.engine}, {engine.identity.model}")
            await work(_owner(), database, engine, settings, settings.prompts, stop)
        finally:
            await engine.close()
            database.dispose()

    asyncio.run(run())


@app.command("annotate")
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
    settings = _settings(engine=engine_name, prompt=prompt_name)
    records = islice(read_records(source), limit)
    texts = _texts(records, text_field, id_field, settings)
    what = schema.find(schema_name, settings.schemas)
    asyncio.run(_annotate_file(texts, what, second_name, settings, target))


async def _annotate_file(
    texts: Iterator[tuple[str, str]], what: schema.Schema, second: str | None, settings: Settings, target: Path | None
) -> None:
    outcomes = {"accepted": 0, "audit": 0, "review": 0}
    async with _opened(settings) as engine:
        first, *other = (prompt.load(settings.prompts, name) for name in (settings.prompt, second) if name)
        plan = Plan(what, first, engine.identity, *other)
        with _writing(target) as write, _progress() as progress:
            bar = progress.add_task("labelling", total=None)
            position = 0
            while chunk := list(islice(texts, CHUNK)):
                async for index, answer in annotate([text for _, text in chunk], plan, engine):
                    name, text = chunk[index]
                    decision = _decide(answer, settings, position + index)
                    outcomes[decision.outcome] += 1
                    write(_row(name, text, answer, decision, plan.sha256))
                    progress.advance(bar)
                position += len(chunk)
            progress.update(bar, total=position)
    err.print(
        f"{position} texts: {outcomes['accepted']} accepted, {outcomes['audit']} accepted and drawn for an audit, "
        f"{outcomes['review']} for review"
    )


@app.command()
def evaluate(
    gold: Annotated[
        str, typer.Argument(metavar="GOLD", help="file of gold records, or a YAML file that declares several sets")
    ],
    schema_name: Annotated[str | None, typer.Option("--schema", help="default: inferred from the gold file")] = None,
    data: Annotated[Path, typer.Option(help="folder that holds the files of the declared sets")] = Path(),
    names: Annotated[list[str] | None, typer.Option("--set", help="a declared set; default: all")] = None,
    prompt_name: PromptOption = None,
    engine_name: EngineOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="so many texts of a set at most, the same ones every time")
    ] = None,
    orders: Annotated[
        str | None, typer.Option(help="a choice: also count how often an instruction inside a text changes it")
    ] = None,
    json_target: Annotated[Path | None, typer.Option("--json", help="also write the figures to this file")] = None,
    table_target: Annotated[
        Path | None, typer.Option("--markdown", help="also write the table over several sets to this file")
    ] = None,
) -> None:
    """Label the texts of a gold set, or of several, and say how far the labels agree with it."""
    settings = _settings(engine=engine_name, prompt=prompt_name)
    if Path(gold).suffix in (".yaml", ".yml"):
        parts = sets.read_sets(sets.parse_declaration(Path(gold), Training), data, ["test"], names or [])
        asyncio.run(_evaluate_sets(parts, limit, orders, settings, json_target, table_target))
    else:
        figures = asyncio.run(_evaluate_file(sets.read_file(gold, schema_name, settings), limit, orders, settings))
        if json_target:
            json_target.write_text(json.dumps(figures, indent=1) + "\n")


async def _evaluate_file(part: sets.Part, limit: int | None, orders: str | None, settings: Settings) -> dict[str, Any]:
    async with _opened(settings) as engine:
        with _progress() as progress:
            found, figures = await _measure(part, limit, orders, engine, settings, progress)
    print_agreement(out, found.tasks)
    speed = f"{found.texts / found.seconds:.1f} texts/s, {found.tokens / found.texts:.1f} output tokens a text"
    out.print(f"{found.texts} texts, {found.failed} failed; {speed}")
    return figures


async def _evaluate_sets(
    parts: list[sets.Part],
    limit: int | None,
    orders: str | None,
    settings: Settings,
    json_target: Path | None,
    table_target: Path | None,
) -> None:
    """A line a set; what is written is written anew after each, so that nothing measured is lost."""
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    async with _opened(settings) as engine:
        with _progress() as progress:
            for part in parts:
                found, figures[part.name] = await _measure(part, limit, orders, engine, settings, progress)
                rows.append(evaluation.row(part.name, part.schema, found))
                progress.console.print("  ".join(rows[-1]), highlight=False)
                if json_target:
                    json_target.write_text(json.dumps({"sets": figures}, indent=1) + "\n")
                if table_target:
                    lines = [evaluation.HEADINGS, ["---"] * len(evaluation.HEADINGS), *rows]
                    table_target.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    table = Table(*evaluation.HEADINGS)
    for line in rows:
        table.add_row(*line)
    out.print(table)


async def _measure(
    part: sets.Part, limit: int | None, orders: str | None, engine: Engine, settings: Settings, progress: Progress
) -> tuple[evaluation.Evaluation, dict[str, Any]]:
    plan = Plan(part.schema, prompt.load(settings.prompts, settings.prompt), engine.identity)
    gold = evaluation.sample(part.splits["test"], limit)
    bar = progress.add_task(part.name, total=len(gold))
    found = await evaluation.evaluate(gold, plan, engine, lambda: progress.advance(bar))
    figures = found.figures() | {"refused": len(part.refused), "recipe": plan.body}
    if any(task.name == orders for task in part.schema.choices):
        progress.reset(bar, total=2 * len(gold), description=f"{part.name}, with orders")
        texts = [one.text for one in gold]
        swayed = await evaluation.obedience(texts, str(orders), plan, engine, lambda: progress.advance(bar))
        figures["orders"] = swayed
        changed, obeyed = evaluation.shown(swayed["changed"]), evaluation.shown(swayed["obeyed"])
        out.print(f"{part.name}: {orders} changed by an order {changed}, to what was ordered {obeyed}", highlight=False)
    progress.remove_task(bar)
    if part.refused:
        err.print(f"{part.name}: {len(part.refused)} left out, such as {part.refused[0]}", highlight=False)
    return found, figures


@app.command()
def tune(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="GOLD…", help="files of gold records, or one YAML file that declares a training"),
    ],
    target: Annotated[Path, typer.Option("--out", help="folder for the adapter; a training that stopped goes on here")],
    schema_name: Annotated[str | None, typer.Option("--schema", help="default: inferred from each file")] = None,
    data: Annotated[Path, typer.Option(help="folder that holds the files of the declared sets")] = Path(),
    start: Annotated[
        Path | None, typer.Option("--from", help="folder of an adapter to go on from; default: a new one")
    ] = None,
    passes: Annotated[float, typer.Option(min=0.01, help="times that each text of a gold file is read")] = 3.0,
    rate: Annotated[float | None, typer.Option(help="peak learning rate")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of the mixture and of the adapter's first weights")] = None,
    prompt_name: PromptOption = None,
) -> None:
    """Train an adapter on gold, so that a model answers a prompt better. CONCORD_MODEL names the base."""
    for package in ("torch", "peft", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise ServiceError(f"training needs the package {package}: pip install 'concord[tune]'")
    let_threads_sleep()
    from service import tune as training

    settings = _settings(prompt=prompt_name, adapter=UNTRAINED)
    how, parts = training.declared(sources, schema_name, data, passes, settings)
    given = {"prompt": prompt_name, "rate": rate, "seed": seed}
    how = how.model_copy(update={name: value for name, value in given.items() if value is not None})
    for part in parts:
        for refused in part.refused[:1]:
            err.print(f"left out, {len(part.refused)} of {part.name}: {refused}", highlight=False)
    with err.status("reading the model"):
        trainer = training.open_trainer(how, parts, target, start, settings)
    err.print(f"{trainer.describe()}")
    with _progress() as progress:
        bar = progress.add_task("training", total=trainer.progress.steps, completed=trainer.progress.step)

        def report(now: training.Progress) -> None:
            progress.update(bar, completed=now.step, description=now.line())
            if now.measured:
                err.print(now.line())

        try:
            trainer.run(report)
        except KeyboardInterrupt:
            err.print(f"stopped at step {trainer.progress.step}; the same command goes on from there")
            raise typer.Exit(130) from None
    err.print(f"wrote {target}; use it with CONCORD_ADAPTER={target}")


@schema_app.command("infer")
def infer_schema(
    gold: Annotated[str, typer.Argument(metavar="GOLD.jsonl", help="gold records")],
    name: Annotated[str | None, typer.Option(help="name of the schema; default: that of the file")] = None,
    target: Annotated[Path | None, typer.Option("--out", help="YAML file to write; default: standard output")] = None,
) -> None:
    """Write a schema that fits a gold file: every field that holds a label is a choice, every list of spans a task."""
    stem = Path(gold).name.split(".")[0].lower().replace("-", "_")
    text = schema.to_yaml(schema.infer(name or stem, read_records(gold)))
    if target:
        target.write_text(text)
        err.print(f"wrote {target}; give each label a definition: models and people both read them")
    else:
        sys.stdout.write(text)


@schema_app.command("check")
def check_schema(path: Annotated[Path, typer.Argument(help="schema file")]) -> None:
    """Read a schema file and say what it holds, or which line is wrong."""
    what = schema.load(path)
    for task in what.tasks:
        out.print(f"{task.name} ({task.kind}): {', '.join(label.name for label in task.labels)}")


@app.command()
def doctor(engine_name: EngineOption = None) -> None:
    """Say what is installed, which engine answers, and whether its constraint bites."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    ready = True
    for name in ("concord", "transformers", "llguidance", "outlines", "torch", "fastapi", "sqlmodel", "psycopg"):
        try:
            table.add_row(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            table.add_row(name, "not installed")
    try:
        settings = _settings(engine=engine_name)
        table.add_row("prompts", ", ".join(prompt.load_all(settings.prompts)))
        table.add_row("schemas", ", ".join(schema.load(path).name for path in sorted(settings.schemas.glob("*.yaml"))))
        table.add_row("database", _database_answers(settings))
        identity = asyncio.run(_engine_answers(settings))
        table.add_row("engine", f"{identity.engine}: {identity.model} {identity.revision} {identity.adapter}".strip())
        table.add_row("constraint", "[green]bites[/]: the canary's answer follows its grammar")
    except ServiceError as error:
        ready = False
        table.add_row("[red]problem[/]", f"{error.message} {getattr(error, 'hint', '')}".strip())
    out.print(table)
    raise typer.Exit(0 if ready else 1)


def print_agreement(console: Console, tasks: dict[str, Any]) -> None:
    """A table of agreement by task, as `measure.compare` gives it."""
    table = Table(title="Agreement with gold", title_justify="left")
    for heading in ("task", "texts", "measure", "value", "95 % interval"):
        table.add_column(heading, justify="left" if heading in ("task", "measure") else "right")
    for name, task in tasks.items():
        measures = [("exact match", "exact"), ("Cohen's kappa", "kappa"), ("macro F1", "macro_f1")]
        if task["kind"] == "spans":
            measures = [("strict F1", "f1"), ("precision", "precision"), ("recall", "recall"), ("exact match", "exact")]
        for title, key in measures:
            value = task[key]
            if isinstance(value, dict):
                interval = f"{value['low']:.3f} to {value['high']:.3f}"
                table.add_row(name, str(task["n"]), title, f"{value['value']:.3f}", interval)
            else:
                shown = task["notes"].get(key, "undefined") if value is None else f"{value:.3f}"
                table.add_row(name, str(task["n"]), title, shown, "")
    console.print(table)


def _settings(**given: Any) -> Settings:
    return Settings(**{name: value for name, value in given.items() if value is not None})


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


def _decide(answer: Answer | Failure, settings: Settings, position: int) -> Decision:
    if isinstance(answer, Failure):
        return refuse(answer.code, answer.detail)
    evidence = Evidence(draw=lot(settings.seed, "", position), truncated=answer.truncated, second=answer.second)
    return decide(answer.labels, Policy(), evidence)


def _row(name: str, text: str, answer: Answer | Failure, decision: Decision, recipe: str) -> dict[str, Any]:
    labels = to_row(answer.labels, text) if isinstance(answer, Answer) else {}
    return {"id": name, "text": text, **labels, **decision.row(), "recipe": recipe}


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Engine]:
    """The engine of the settings, open and proven."""
    with err.status("opening the engine"):
        engine = await asyncio.to_thread(open_engine, settings)
        await engine.ready()
    try:
        yield engine
    finally:
        await engine.close()


async def _engine_answers(settings: Settings) -> Identity:
    async with _opened(settings) as engine:
        return engine.identity


def _database_answers(settings: Settings) -> str:
    from sqlalchemy import text

    from service import db

    database = db.connect(settings.database_url)
    with database.connect() as connection:
        connection.execute(text("select 1"))
    shown = database.url.render_as_string(hide_password=True)
    database.dispose()
    return f"answers: {shown}"


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


def _progress() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err)


def _owner() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def main() -> None:
    """Errors of the service are one line that says what is wrong, not a traceback."""
    try:
        sys.exit(app(standalone_mode=False))
    except ServiceError as error:
        hint = getattr(error, "hint", "")
        err.print(f"[red]error:[/] {error.message}{f' ({hint})' if hint else ''}", highlight=False, markup=True)
        sys.exit(1)
    except typer.Abort:
        sys.exit(130)


if __name__ == "__main__":
    main()

"""`evaluate`: how far a recipe agrees with gold."""

from __future__ import annotations

import asyncio
import json
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy import Engine as Database

from service import db, evaluation, findings, prompt, sets
from service.annotate import Plan
from service.commands.console import (
    EngineOption,
    JsonOption,
    PromptOption,
    ReportOption,
    err,
    evaluated,
    opened,
    opened_database,
    out,
    progress_bar,
    read_gold,
    settings_of,
    write_documents,
)
from service.engine import Engine
from service.mixture import Training
from service.settings import Settings

MANY = 8  # label sets of one set that have a line each; more have one together


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
    json_target: JsonOption = None,
    report: ReportOption = None,
    table_target: Annotated[
        Path | None, typer.Option("--markdown", help="also write the table over several sets to this file")
    ] = None,
) -> None:
    """Label the texts of a gold set, or of several, and say how far the labels agree with it."""
    settings = settings_of(engine=engine_name, prompt=prompt_name)
    how = prompt.load(settings.prompts, settings.prompt)
    with opened_database(settings) as database:
        if Path(gold).suffix in (".yaml", ".yml"):
            parts = sets.read_sets(sets.parse_declaration(Path(gold), Training), data, ["test"], names or [])
            asyncio.run(_evaluate_sets(parts, how, limit, orders, settings, database, json_target, table_target))
            return
        part = read_gold(gold, schema_name, settings, database)
        found, more = asyncio.run(_evaluate_file(part, how, limit, orders, settings, database))
        if json_target or report:
            with err.status("measuring"), db.read(database) as session:
                document = findings.document(found, part.name, part.splits["test"], session) | more
            write_documents(document, json_target, report)


async def _evaluate_file(
    part: sets.Part,
    how: prompt.Prompt,
    limit: int | None,
    orders: str | None,
    settings: Settings,
    database: Database,
) -> tuple[evaluation.Evaluation, dict[str, Any]]:
    async with opened(settings) as engine:
        with progress_bar() as progress:
            found, more = await _measure(part, how, limit, orders, engine, database, progress)
    print_agreement(out, found.tasks)
    asked = len(found.gold) - found.cached
    speed = f"{asked / found.seconds:.1f} texts/s, {found.tokens / asked:.1f} output tokens a text" if asked else ""
    known = f"{found.cached} known from before" if found.cached else ""
    failed = f"{len(found.gold) - len(found.pairs)} failed"
    out.print(f"{len(found.gold)} texts, {'; '.join(filter(None, (failed, known, speed)))}")
    return found, more


async def _evaluate_sets(
    parts: list[sets.Part],
    how: prompt.Prompt,
    limit: int | None,
    orders: str | None,
    settings: Settings,
    database: Database,
    json_target: Path | None,
    table_target: Path | None,
) -> None:
    """A line a part, or one for a set of many; what is written is written anew after each, so that nothing is lost."""
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    async with opened(settings) as engine:
        with progress_bar() as progress:
            for name, group in groupby(parts, attrgetter("of")):
                each: dict[str, evaluation.Evaluation] = {}
                for part in group:
                    each[part.name], more = await _measure(part, how, limit, orders, engine, database, progress)
                    figures[part.name] = each[part.name].figures() | more
                if len(each) > MANY:
                    figures[name] = evaluation.pooled(list(each.values()))
                    lines = [evaluation.pooled_row(name, figures[name])]
                else:
                    lines = [evaluation.row(one, found) for one, found in each.items()]
                for line in lines:
                    progress.console.print("  ".join(line), highlight=False)
                rows += lines
                if json_target:
                    json_target.write_text(json.dumps({"sets": figures}, indent=1) + "\n")
                if table_target:
                    written = [evaluation.HEADINGS, ["---"] * len(evaluation.HEADINGS), *rows]
                    table_target.write_text("".join(f"| {' | '.join(line)} |\n" for line in written))
    table = Table(*evaluation.HEADINGS)
    for line in rows:
        table.add_row(*line)
    out.print(table)


async def _measure(
    part: sets.Part,
    how: prompt.Prompt,
    limit: int | None,
    orders: str | None,
    engine: Engine,
    database: Database,
    progress: Progress,
) -> tuple[evaluation.Evaluation, dict[str, Any]]:
    """An evaluation, and what else is told of it: "refused", and "orders" where they were asked for."""
    plan = Plan(part.schema, how, engine.identity)
    gold = evaluation.sample(part.splits["test"], limit)
    found = await evaluated(gold, plan, engine, database, progress, part.name)
    more: dict[str, Any] = {"refused": len(part.refused)}
    if any(task.name == orders for task in part.schema.choices):
        bar = progress.add_task(f"{part.name}, with orders", total=2 * len(gold))
        texts = [one.text for one in gold]
        swayed = await evaluation.obedience(texts, str(orders), plan, engine, lambda: progress.advance(bar))
        progress.remove_task(bar)
        more["orders"] = swayed
        changed, obeyed = evaluation.shown(swayed["changed"]), evaluation.shown(swayed["obeyed"])
        out.print(f"{part.name}: {orders} changed by an order {changed}, to what was ordered {obeyed}", highlight=False)
    if part.refused:
        err.print(f"{part.name}: {len(part.refused)} left out, such as {part.refused[0]}", highlight=False)
    return found, more


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

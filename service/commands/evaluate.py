"""`evaluate`: how far a recipe agrees with gold."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from service import evaluation, prompt, sets
from service.annotate import Plan
from service.commands.console import EngineOption, PromptOption, err, opened, out, progress_bar, settings_of
from service.engine import Engine
from service.mixture import Training
from service.settings import Settings


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
    settings = settings_of(engine=engine_name, prompt=prompt_name)
    if Path(gold).suffix in (".yaml", ".yml"):
        parts = sets.read_sets(sets.parse_declaration(Path(gold), Training), data, ["test"], names or [])
        asyncio.run(_evaluate_sets(parts, limit, orders, settings, json_target, table_target))
    else:
        figures = asyncio.run(_evaluate_file(sets.read_file(gold, schema_name, settings), limit, orders, settings))
        if json_target:
            json_target.write_text(json.dumps(figures, indent=1) + "\n")


async def _evaluate_file(part: sets.Part, limit: int | None, orders: str | None, settings: Settings) -> dict[str, Any]:
    async with opened(settings) as engine:
        with progress_bar() as progress:
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
    async with opened(settings) as engine:
        with progress_bar() as progress:
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

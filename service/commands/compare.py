"""`compare`: whether one prompt is better than another on the same gold."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.table import Table

from service import comparison, evaluation, prompt
from service.annotate import Plan
from service.commands.console import (
    EngineOption,
    GoldArgument,
    JsonOption,
    LimitOption,
    ReportOption,
    evaluated,
    opened,
    opened_database,
    out,
    progress_bar,
    read_gold,
    settings_of,
    write_documents,
)
from service.errors import Invalid
from service.evaluation import Evaluation


def compare(
    gold: GoldArgument,
    prompts: Annotated[list[str], typer.Option("--prompt", help="a prompt such as line.v1; two or more")],
    schema_name: Annotated[str | None, typer.Option("--schema", help="default: inferred from the gold file")] = None,
    engine_name: EngineOption = None,
    limit: LimitOption = None,
    json_target: JsonOption = None,
    report: ReportOption = None,
) -> None:
    """Say whether one prompt is better than another, item by item, and how sure that is."""
    if len(set(prompts)) < 2:
        raise Invalid("--prompt: expected two or more different prompts")
    settings = settings_of(engine=engine_name)
    with opened_database(settings) as database:
        part = read_gold(gold, schema_name, settings, database)
        chosen = evaluation.sample(part.splits["test"], limit)
        compared = {name: prompt.load(settings.prompts, name) for name in prompts}

        async def run() -> dict[str, Evaluation]:
            async with opened(settings) as engine:
                with progress_bar() as progress:
                    return {
                        name: await evaluated(
                            chosen,
                            Plan(part.schema, one, engine.identity),
                            engine,
                            database,
                            progress,
                            name,
                        )
                        for name, one in compared.items()
                    }

        found = asyncio.run(run())
    document = comparison.document(found, part.name, part.splits["test"])
    table = Table("task", "measure", "first", "second", "difference, 95 % interval", "p, corrected")
    for contrast in document["comparison"]["contrasts"]:
        effect = contrast["effect"]
        scores = [
            f"{contrast[side]} {contrast[f'{side}_score']:.3f}" if effect else contrast[side]
            for side in ("first", "second")
        ]
        difference = effect["difference"] if effect else None
        shown = (
            f"{difference['value']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f})" if difference else ""
        )
        table.add_row(
            contrast["task"], contrast["measure"], *scores, shown, f"{effect['p_corrected']:.3g}" if effect else ""
        )
    out.print(table)
    out.print(document["comparison"]["verdict"], highlight=False)
    write_documents(document, json_target, report)

"""`prompt improve`: worked examples, definitions and order of labels that make a recipe better, if any do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from service import improve as improvement
from service import prompt
from service.annotate import Plan
from service.commands.console import (
    EngineOption,
    GoldArgument,
    JsonOption,
    LimitOption,
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
from service.evaluation import Evaluation
from service.improve import Improvement, Trial
from service.schema import to_yaml
from service.sets import Gold


def improve(
    gold: GoldArgument,
    schema_name: Annotated[str | None, typer.Option("--schema", help="default: inferred from the gold file")] = None,
    prompt_name: PromptOption = None,
    engine_name: EngineOption = None,
    limit: LimitOption = None,
    seed: Annotated[int, typer.Option(help="decides between worked examples that are equally good")] = 0,
    json_target: JsonOption = None,
    report: ReportOption = None,
    out_target: Annotated[
        Path | None, typer.Option("--out", help="write the better schema, if any, to this file")
    ] = None,
) -> None:
    """Try worked examples, definitions and orders of labels; keep one only where it is shown to be better."""
    settings = settings_of(engine=engine_name, prompt=prompt_name)
    with opened_database(settings) as database:
        part = read_gold(gold, schema_name, settings, database)
        prompts = prompt.load_all(settings.prompts)

        async def run() -> Improvement:
            async with opened(settings) as engine:
                present = Plan(part.schema, prompt.load(settings.prompts, settings.prompt), engine.identity)
                with progress_bar() as progress:

                    async def measure(texts: Sequence[Gold], plan: Plan, title: str) -> Evaluation:
                        return await evaluated(texts, plan, engine, database, progress, title)

                    return await improvement.improve(
                        part.splits["test"], part.name, present, prompts.values(), measure, limit=limit, seed=seed
                    )

        found = asyncio.run(run())
    _tell(found)
    write_documents(found.document(), json_target, None)
    if found.test:
        write_documents(found.test, None, report)
    elif report:
        err.print("no report was written: nothing was compared on the test part")
    if found.kept and out_target:
        out_target.write_text(to_yaml(found.kept.plan.schema), encoding="utf-8")
        err.print(f"wrote {out_target}")
    if found.kept:
        where = out_target or "the schema that --out writes"
        out.print(f"use {where} with --prompt {found.kept.plan.prompt.id}", highlight=False)


def _tell(found: Improvement) -> None:
    uses = ", ".join(f"{count} to {use}" for use, count in found.uses.items())
    out.print(f"{sum(found.uses.values())} gold texts: {uses}", highlight=False)
    table = Table("candidate", "prompt", "on tune", "task", "difference, 95 % interval", "p, corrected", "")
    for trial in found.trials:
        for row in _rows(trial):
            table.add_row(*row)
    if found.trials:
        out.print(table)
    out.print(found.verdict, highlight=False, markup=False)


def _rows(trial: Trial) -> list[list[str]]:
    tune = "nothing to score" if trial.screened is None else f"{trial.screened:+.3f}"
    head = [trial.candidate.name, trial.candidate.plan.prompt.id, tune]
    if not trial.contrasts:
        return [[*head, "", "", "", "not tried"]]
    rows = []
    for contrast in trial.contrasts:
        cells = ["", ""]
        if contrast.effect:
            seen = contrast.effect.difference
            cells = [f"{seen.value:+.3f} ({seen.low:+.3f} to {seen.high:+.3f})", f"{contrast.effect.p_corrected:.3g}"]
        rows.append([*head, contrast.task, *cells, "wins" if trial.wins else "no"])
        head = ["", "", ""]
    return rows

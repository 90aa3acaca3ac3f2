"""`calibrate` and `standards`: how far confidence can be trusted, what can be promised, and what is in force."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer
from rich.table import Table

from service import db, evaluation, findings, ledger, prompt, standards
from service.annotate import Plan
from service.commands.accounts import WHO
from service.commands.console import (
    EngineOption,
    GoldArgument,
    JsonOption,
    LimitOption,
    PromptOption,
    ReportOption,
    SecondOption,
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
from service.errors import Invalid
from service.evaluation import Evaluation
from service.models import StandardVersion
from service.standards import ITEM, Made

Document = dict[str, Any]


def calibrate(
    gold: GoldArgument,
    schema_name: Annotated[str | None, typer.Option("--schema", help="default: inferred from the gold file")] = None,
    prompt_name: PromptOption = None,
    second_name: SecondOption = None,
    engine_name: EngineOption = None,
    errors: Annotated[
        list[str] | None,
        typer.Option(
            "--error",
            metavar="[TASK=]SHARE",
            help="share of accepted labels that may disagree with people: of whole items, or of a task's labels",
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="how sure the promise is to be")] = 0.95,
    apply: Annotated[
        bool, typer.Option("--apply", help="decide by it from now on; without it nothing changes")
    ] = False,
    items: Annotated[int, typer.Option(min=1, max=1_000_000_000, help="texts for which the work left is told")] = 1000,
    seconds: Annotated[float, typer.Option(min=0, max=1_000_000, help="a person's time for one text")] = 15.0,
    price: Annotated[float, typer.Option(min=0, max=1_000_000, help="of a person's hour, in any currency")] = 0.0,
    limit: LimitOption = None,
    json_target: JsonOption = None,
    report: ReportOption = None,
) -> None:
    """Fit confidence to gold, and find the thresholds at which an error can be promised."""
    settings = settings_of(engine=engine_name, prompt=prompt_name)
    wanted = dict(map(_error, errors or ()))
    with opened_database(settings) as database:
        part = read_gold(gold, schema_name, settings, database)
        chosen = evaluation.sample(part.splits["test"], limit)
        prompts = [prompt.load(settings.prompts, name) for name in (settings.prompt, second_name) if name]

        async def run() -> Evaluation:
            async with opened(settings) as engine:
                plan = Plan(part.schema, prompts[0], engine.identity, *prompts[1:])
                with progress_bar() as progress:
                    return await evaluated(chosen, plan, engine, database, progress, part.name)

        found = asyncio.run(run())
        with err.status("measuring"):
            with db.read(database) as session:
                document = findings.document(found, part.name, part.splits["test"], session)
                document |= {"refused": len(part.refused)}
            identity = {"name": part.name, "sha256": document["gold"]["sha256"]}
            made = standards.make(part.schema, found.gold, found.answers, wanted, confidence, identity)
            load = findings.Workload(items=items, seconds=seconds, price=price)
            document = findings.promised(document, found, made, load)
        _tell(document, made)
        write_documents(document, json_target, report)
        if apply:
            if made.lacking:
                raise Invalid(f"nothing was put in force: {'; '.join(made.lacking)}")
            with db.begin(database) as session:
                body = made.body(found.plan.body, identity)
                row = standards.put(session, found.plan.sha256, found.plan.body, body)
                ledger.append(session, who=WHO, action="standard.put", **standards.noted(row))
            before = f"; before it: {row.predecessor}" if row.predecessor else ""
            out.print(f"standard {row.id} is in force for {_recipe(row)}{before}")
        else:
            out.print("nothing was changed; --apply decides by it from now on")


def show_standards(
    restore: Annotated[int | None, typer.Option(help="put this earlier standard in force again")] = None,
) -> None:
    """List what the labels of each recipe are held to, the newest first."""
    settings = settings_of()
    with opened_database(settings) as database:
        if restore is not None:
            with db.begin(database) as session:
                row = standards.restore(session, restore)
                ledger.append(session, who=WHO, action="standard.restore", **standards.noted(row))
            out.print(f"standard {row.id}, which is {restore} again, is in force for {_recipe(row)}")
        with db.read(database) as session:
            found = standards.history(session)
    table = Table("standard", "in force", "recipe", "promise", "gold", "since", "before it")
    seen: set[str] = set()
    for row in found:
        promises = [
            f"{one['of']} {100 * one['error']:.3g} %, {100 * one['level']:.4g} % sure" for one in row.body["promises"]
        ]
        gold = f"{row.body['gold']['name']} {row.body['gold']['sha256'][:8]}"
        newest = "" if row.recipe in seen else "yes"
        since = f"{row.created_at:%Y-%m-%d %H:%M}"
        before = str(row.predecessor or "")
        table.add_row(str(row.id), newest, _recipe(row), "; ".join(promises) or "none", gold, since, before)
        seen.add(row.recipe)
    out.print(table if found else "no standard was ever put in force")


def _error(given: str) -> tuple[str, float]:
    task, _, share = given.rpartition("=")
    try:
        return task or ITEM, float(share)
    except ValueError:
        raise Invalid(f"--error {given}: expected a share such as 0.03, or TASK=SHARE such as intent=0.05") from None


def _recipe(row: StandardVersion) -> str:
    what = row.body["recipe"]
    named = (
        f"{what['schema']['name']}.v{what['schema']['version']}, {what['prompt']['name']}.v{what['prompt']['version']}"
    )
    return f"{named}, {what['engine']['model']} ({row.recipe[:8]})"


def _tell(document: Document, made: Made) -> None:
    parts = ", ".join(f"{count} to {name}" for name, count in made.sizes.items())
    gold = document["gold"]
    out.print(f"{gold['name']} {gold['sha256'][:8]}: {document['texts']} texts, {parts}", highlight=False)
    table = Table("task", "measure", "confidence as it is", "calibrated", title="Can confidence be trusted?")
    for name, task in document["tasks"].items():
        both = task["confidence"]
        for title, key in (("calibration error", "ece"), ("Brier score", "brier"), ("AUROC", "auroc")):
            if both:
                table.add_row(name, title, *(_shown(both[side][key]) for side in ("before", "after")))
    out.print(table)
    for promise in made.promises:
        out.print(_sentence(promise), highlight=False)
    for note in made.notes.values():
        out.print(note, highlight=False)
    for check in made.checks:
        told = f"{check['of']}: of {check['n']} untouched test texts {_percent(check['coverage'])} are accepted"
        out.print(f"{told}, {_percent(check['error'])} of these disagree with people", highlight=False)
    if document["work"]:
        left, hours, cost = (document["work"][key] for key in ("left", "hours", "cost"))
        paid = f", {cost['value']:.0f} in money" if document["work"]["price"] else ""
        told = f"of {document['work']['items']:,} texts {left['value']:.0f} are left for people"
        out.print(
            f"{told} ({left['low']:.0f} to {left['high']:.0f}): {hours['value']:.1f} hours{paid}", highlight=False
        )


def _sentence(promise: Document) -> str:
    what = "items" if promise["of"] == ITEM else "labels"
    stated = f"at most {100 * promise['error']:.3g} % of accepted {what} wrong, {100 * promise['level']:.4g} % sure"
    if promise["threshold"] is None:
        return f"{promise['of']}: {stated}: {promise['notes']['threshold']}"
    seen = f"{promise['wrong']} of {promise['accepted']} accepted were wrong"
    coverage = _percent(promise["coverage"])
    return (
        f"{promise['of']}: {stated}: accept from {promise['threshold']:.4f} up, which is {coverage} of texts ({seen})"
    )


def _shown(estimate: Document | None) -> str:
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})" if estimate else "not defined"


def _percent(estimate: Document | None) -> str:
    if not estimate:
        return "none"
    return f"{estimate['value']:.1%} ({estimate['low']:.1%} to {estimate['high']:.1%})"

"""`tune`: training an adapter on gold."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from service.commands.console import PromptOption, err, progress_bar, settings_of
from service.engine import let_threads_sleep
from service.engine.embedded import UNTRAINED
from service.errors import ServiceError


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

    settings = settings_of(prompt=prompt_name, adapter=UNTRAINED)
    how, parts = training.declared(sources, schema_name, data, passes, settings)
    given = {"prompt": prompt_name, "rate": rate, "seed": seed}
    how = how.model_copy(update={name: value for name, value in given.items() if value is not None})
    for part in parts:
        for refused in part.refused[:1]:
            err.print(f"left out, {len(part.refused)} of {part.name}: {refused}", highlight=False)
    with err.status("reading the model"):
        trainer = training.open_trainer(how, parts, target, start, settings)
    err.print(f"{trainer.describe()}")
    with progress_bar() as progress:
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

"""What all commands share: where they write, how they open an engine, and the options that several have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

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


def progress_bar() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err)

"""`schema infer` and `schema check`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from service import schema
from service.commands.console import err, out
from service.files import read_records


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


def check_schema(path: Annotated[Path, typer.Argument(help="schema file")]) -> None:
    """Read a schema file and say what it holds, or which line is wrong."""
    what = schema.load(path)
    for task in what.tasks:
        out.print(f"{task.name} ({task.kind}): {', '.join(label.name for label in task.labels)}")

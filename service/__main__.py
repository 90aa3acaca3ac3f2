"""The command `concord`."""

from __future__ import annotations

import sys

import typer

from service.commands import annotate, calibrate, compare, evaluate, improve, schemas, serve, tune
from service.commands.console import err
from service.errors import ServiceError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Label texts with an open language model.")
app.command()(serve.serve)
app.command()(serve.worker)
app.command("annotate")(annotate.annotate_file)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(calibrate.calibrate)
app.command("standards")(calibrate.show_standards)
app.command()(tune.tune)
app.command()(serve.doctor)
schema_app = typer.Typer(no_args_is_help=True, help="Schemas: what may be said of a text.")
schema_app.command("infer")(schemas.infer_schema)
schema_app.command("check")(schemas.check_schema)
app.add_typer(schema_app, name="schema")
prompt_app = typer.Typer(no_args_is_help=True, help="Prompts: how the model is asked.")
prompt_app.callback()(lambda: None)  # keeps the name of its one command
prompt_app.command()(improve.improve)
app.add_typer(prompt_app, name="prompt")


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

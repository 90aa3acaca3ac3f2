"""The command `concord`."""

from __future__ import annotations

import sys

import typer

from service.commands import accounts, annotate, audit, calibrate, compare, evaluate, improve, schemas, serve, tune
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
accounts_app = typer.Typer(no_args_is_help=True, help="Accounts: who may sign in, and the keys they ask with.")
accounts_app.command()(accounts.add)
accounts_app.command("list")(accounts.show)
accounts_app.command()(accounts.disable)
accounts_app.command()(accounts.enable)
accounts_app.command()(accounts.password)
accounts_app.command()(accounts.key)
accounts_app.command()(accounts.revoke)
app.add_typer(accounts_app, name="accounts")
audit_app = typer.Typer(no_args_is_help=True, help="The ledger: who changed what, and whether it is whole.")
audit_app.command()(audit.verify)
audit_app.command("list")(audit.show)
app.add_typer(audit_app, name="audit")


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

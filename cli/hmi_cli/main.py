"""The ``hmi`` command: its global options, its commands, and how it ends."""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from hmi_cli.commands import accounts, billing, deletion, demo, inference, resources, up, version
from hmi_cli.errors import CliError, complain
from hmi_cli.session import open_session, trimmed_option

app = typer.Typer(
    name="hmi",
    help="Declare customised language models; have them trained, served, metered and billed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    context: typer.Context,
    home: Annotated[
        Path,
        typer.Option(
            envvar="HMI_HOME",
            help="Folder of the embedded system; its admin key is used.",
            callback=trimmed_option,
        ),
    ] = Path(".hmi"),
    server: Annotated[
        str | None,
        typer.Option(
            envvar="HMI_SERVER",
            help="Server to ask, such as http://127.0.0.1:8080.",
            callback=trimmed_option,
        ),
    ] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(
            envvar="HMI_ADMIN_KEY",
            help="Administrator's key, instead of the home folder's.",
            callback=trimmed_option,
        ),
    ] = None,
) -> None:
    """Keep the global options for the commands."""
    context.obj = open_session(home, server, admin_key)


resources.register(app)
deletion.register(app)
inference.register(app)
billing.register(app)
accounts.register(app)
up.register(app)
demo.register(app)
version.register(app)


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 refused or failed, 2 not understood."""
    try:
        app(arguments, standalone_mode=True)
    except CliError as error:
        complain(error)
        return error.exit_code
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    return 0


def run() -> None:
    """Entry point of the console script."""
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`hmi get ... | head`); Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


if __name__ == "__main__":
    run()

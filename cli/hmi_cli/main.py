"""The ``hmi`` command: its global options, its commands, and how it ends."""

import io
import os
import platform
import signal
import sys
from importlib.metadata import version as installed
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from hmi_api.names import API_VERSION
from hmi_cli.commands import accounts, billing, inference, local, resources, tables
from hmi_cli.context import CommandContext, trimmed_option
from hmi_cli.errors import EXIT_FAILED, CliError, UsageError, print_error
from hmi_cli.system.home import HomeFolder

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
            help="Address of the server, such as http://127.0.0.1:8080.",
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
    """Pass the global options on to the commands."""
    context.obj = CommandContext(HomeFolder(home), server, admin_key)


for command in (
    *(resources.apply, resources.get, resources.describe, resources.delete),
    *(tables.refresh, tables.rollback),
    *(inference.classify, inference.models, billing.usage, billing.bill, local.up, local.demo),
):
    app.command()(command)
for name, group in (("price", billing.prices), ("tenant", accounts.tenants), ("key", accounts.keys)):
    app.add_typer(group, name=name)


@app.command()
def version() -> None:
    """Print the version of the command and of the API that it uses."""
    typer.echo(f"hmi {installed('hmi')} ({API_VERSION}, Python {platform.python_version()})")


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 success, 1 failure, 2 invalid command line."""
    try:
        app(_global_options_first(sys.argv[1:] if arguments is None else arguments), standalone_mode=True)
    except CliError as error:
        print_error(error)
        return error.exit_code
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except OSError as error:
        print_error(_system_error(error))
        return EXIT_FAILED
    except _UNEXPECTED as error:
        if os.environ.get("HMI_TRACEBACK"):
            raise
        hint = "perhaps the server is no HMI server, or of another version; HMI_TRACEBACK=1 shows more"
        print_error(CliError(f"unexpected {type(error).__name__}: {error}", hint=hint))
        return EXIT_FAILED
    return 0


GLOBAL_OPTIONS = ("--home", "--server", "--admin-key")
_UNEXPECTED = (LookupError, TypeError, AttributeError, ValueError, RecursionError)
"""Raised for answers of an unexpected form, or by a bug of this command."""


def _global_options_first(arguments: list[str]) -> list[str]:
    """Return the arguments with the global options first. Raise ``UsageError`` if one is not UTF-8."""
    first, others = [], []
    left = iter(arguments)
    for argument in left:
        if any("\ud800" <= sign <= "\udfff" for sign in argument):  # bytes that are not UTF-8
            raise UsageError(f"the argument {argument!a} is not UTF-8 text")
        if argument == "--":
            others += [argument, *left]
        elif argument in GLOBAL_OPTIONS:
            first += [argument, *islice(left, 1)]
        elif argument.partition("=")[0] in GLOBAL_OPTIONS:
            first.append(argument)
        else:
            others.append(argument)
    return [*first, *others]


def _system_error(error: OSError) -> CliError:
    about = f"{error.filename}: " if error.filename is not None else ""
    return CliError(f"{about}{error.strerror or error}")


def run() -> None:
    """Run the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that cannot show all of Unicode
    sys.exit(_flushed(main()))


def _flushed(code: int) -> int:
    """Flush the output and return the exit code, so that Python has nothing left to fail on at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if isinstance(error, BrokenPipeError):  # the reader went away, as in `hmi get ... | head`
                code = 128 + signal.SIGPIPE
            elif code == 0:
                print_error(_system_error(error))
                code = EXIT_FAILED
    return code


if __name__ == "__main__":
    run()

"""The ``hmi`` command: its global options, its commands, and how it ends."""

import io
import os
import signal
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from hmi_cli.commands import accounts, billing, deletion, demo, inference, resources, up, version
from hmi_cli.errors import EXIT_FAILED, CliError, complain, usage_error
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
        app(_readable(sys.argv[1:] if arguments is None else arguments), standalone_mode=True)
    except CliError as error:
        complain(error)
        return error.exit_code
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except OSError as error:
        complain(_system_error(error))
        return EXIT_FAILED
    except _UNEXPECTED as error:
        if os.environ.get("HMI_TRACEBACK"):
            raise
        complain(_unexpected(error))
        return EXIT_FAILED
    return 0


GLOBAL_OPTIONS = ("--home", "--server", "--admin-key")
_UNEXPECTED = (LookupError, TypeError, AttributeError, ValueError, RecursionError)
"""What an answer of an unknown form leads to, or a fault of this command."""


def _readable(arguments: list[str]) -> list[str]:
    """Return the arguments with the global options first, where they are read; ``CliError`` for no text."""
    first, others = [], []
    left = iter(arguments)
    for argument in left:
        if any("\ud800" <= sign <= "\udfff" for sign in argument):  # as Python keeps what is not UTF-8
            raise usage_error(f"the argument {argument!a} is not UTF-8 text")
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


def _unexpected(error: BaseException) -> CliError:
    return CliError(
        f"unexpected {type(error).__name__}: {error}",
        hint="perhaps the server is no HMI server, or of another version; HMI_TRACEBACK=1 shows more",
    )


def run() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that cannot show all of Unicode
    sys.exit(_flushed(main()))


def _flushed(code: int) -> int:
    """Return the exit code after what is printed has been written; Python must not complain at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if isinstance(error, BrokenPipeError):  # the reader went away, as in `hmi get ... | head`
                code = 128 + signal.SIGPIPE
            elif code == 0:
                complain(_system_error(error))
                code = EXIT_FAILED
    return code


if __name__ == "__main__":
    run()

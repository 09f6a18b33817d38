"""``hmi get | describe runtime``: the runtimes that are registered."""

import typer

from hmi_cli.api import AdminApi, Answer
from hmi_cli.context import CommandContext
from hmi_cli.errors import CliError
from hmi_cli.render.output import Output, format_answer
from hmi_cli.render.runtimes import describe_runtime, runtimes_table

NAMES = ("runtime", "runtimes")


def is_runtime(word: str) -> bool:
    """Return whether a TYPE on the command line means runtimes."""
    return word.lower() in NAMES


def get_runtimes(context: CommandContext, name: str | None, output: Output | None) -> None:
    """Print the runtimes, or one."""
    found = _read(context, name)
    typer.echo(format_answer(found, output, runtimes_table))


def describe_runtimes(context: CommandContext, name: str | None) -> None:
    """Print the runtimes, or one, in full."""
    typer.echo("\n\n".join(describe_runtime(found) for found in _read(context, name)))


def _read(context: CommandContext, name: str | None) -> list[Answer]:
    with context.admin() as client:
        runtimes = AdminApi(client).runtimes()
    if name is None:
        if not runtimes:
            typer.echo("No runtimes found.", err=True)
        return runtimes
    found = [runtime for runtime in runtimes if runtime["id"] == name]
    if not found:
        known = ", ".join(runtime["id"] for runtime in runtimes[:10])
        raise CliError(f'there is no runtime "{name}"', hint=f"runtimes: {known or 'none'}")
    return found

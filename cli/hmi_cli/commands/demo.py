"""``hmi demo``: the main job on the examples of this repository, from empty folder to bill."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hmi_cli.demo.run import Plan, demonstrate
from hmi_cli.errors import EXIT_FAILED, usage_error
from hmi_cli.session import finite, session_of

PIPE_WIDTH = 132
"""Columns where no terminal says how many there are, as in a log."""


def demo(
    context: typer.Context,
    examples: Annotated[Path, typer.Option(help="Folder of the examples.")] = Path("examples/demo"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 0,
    limit: Annotated[
        float, typer.Option(min=0, help="Minutes to wait for everything to be Ready.", callback=finite)
    ] = 20.0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the system running until Ctrl-C.")] = False,
) -> None:
    """Start the system, apply the examples, train, serve, meter and bill them, and show the figures."""

    if not (examples / "tree.yaml").exists():
        raise usage_error(
            f"there are no examples in {examples}", hint="run it in the repository, or say --examples FOLDER"
        )
    plan = Plan(examples, session_of(context).home, port, limit * 60, keep)
    if not demonstrate(plan, _console()):
        raise typer.Exit(EXIT_FAILED)


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)

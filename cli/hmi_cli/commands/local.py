"""``hmi up | demo``: the whole system on this machine, and the demonstration on it."""

import asyncio
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hmi_cli.context import called_as, finite, get_context, trimmed_option
from hmi_cli.errors import EXIT_FAILED, UsageError
from hmi_cli.system.home import HomeFolder

PIPE_WIDTH = 132
"""Columns of the output if it is not a terminal."""


def up(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(envvar="HMI_HOST", help="Address to listen on.", callback=trimmed_option)
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(envvar="HMI_PORT", min=0, max=65535, help="Port to listen on; 0 takes a free one."),
    ] = 8080,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
) -> None:
    """Run control plane, reconciler and one runtime here, until Ctrl-C.

    All state is in the home folder (--home before or after `up`, or HMI_HOME): stop or kill it, start it
    again, and it continues where it was.
    """
    # Imported here: the planes take seconds to import, and other commands need none of them.
    from hmi_cli.system.server import compose, listen, serve, url_of  # noqa: PLC0415

    home = get_context(context).home
    home.create()
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    for library in ("httpx", "httpcore", "alembic", "uvicorn"):
        logging.getLogger(library).setLevel(logging.WARNING)
    with home.locked(), listen(host, port) as listener:
        url = url_of(listener)
        system = compose(home, url)
        asyncio.run(serve(system, listener, lambda: _announce(home, url)))
    typer.echo("stopped; `hmi up` continues from here")


def _announce(home: HomeFolder, url: str) -> None:
    home.write_url(url)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]HMI is up at {url}[/bold]  (home {home.path}, logs in {home.logs})")
    console.print(f"  interface   {url}/docs")
    hmi = called_as(home.path)
    console.print(
        f"  try         {hmi} apply -f examples/demo -R; {hmi} get all -A; {hmi} describe ta NAME -n seaview"
    )
    console.print("  stop        Ctrl-C; everything stays in the home folder")


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
        raise UsageError(
            f"there are no examples in {examples}", hint="run it in the repository, or give --examples FOLDER"
        )
    # Imported here, as in `up`.
    from hmi_cli.demo.run import DemoOptions, run_demo  # noqa: PLC0415

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    if not run_demo(DemoOptions(examples, get_context(context).home, port, limit * 60, keep), console):
        raise typer.Exit(EXIT_FAILED)

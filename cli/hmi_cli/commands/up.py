"""``hmi up``: the whole system on this machine."""

import asyncio
import logging
from typing import Annotated

import typer
from rich.console import Console

from hmi_cli.invocation import called_as
from hmi_cli.session import session_of, trimmed_option
from hmi_cli.system.home import Home


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

    Everything is kept in the home folder (--home before or after `up`, or HMI_HOME): stop it, kill it, start
    it again, and it goes on where it was.
    """
    # Imported here, not above: the planes take seconds to import, and `hmi get` needs none of them.
    from hmi_cli.system.compose import compose  # noqa: PLC0415
    from hmi_cli.system.server import listen, serve, url_of  # noqa: PLC0415

    home = session_of(context).home
    home.create()
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    for chatty in ("httpx", "httpcore", "alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    with home.owned(), listen(host, port) as listener:
        url = url_of(listener)
        system = compose(home, url)
        asyncio.run(serve(system, listener, lambda: _announce(home, url)))
    typer.echo("stopped; `hmi up` goes on from here")


def _announce(home: Home, url: str) -> None:
    home.write_url(url)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]HMI is up at {url}[/bold]  (home {home.path}, logs in {home.logs})")
    console.print(f"  interface   {url}/docs")
    hmi = called_as(home.path)
    console.print(
        f"  try         {hmi} apply -f examples/demo -R; {hmi} get all -A; {hmi} describe ta NAME -n seaview"
    )
    console.print("  stop        Ctrl-C; everything stays in the home folder")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(up)

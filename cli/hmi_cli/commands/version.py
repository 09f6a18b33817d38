"""``hmi version``."""

import platform
from importlib.metadata import version as installed

import typer

from hmi_api.names import API_VERSION


def version() -> None:
    """Print the version of the command and of the API it speaks."""
    typer.echo(f"hmi {installed('hmi')} ({API_VERSION}, Python {platform.python_version()})")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(version)

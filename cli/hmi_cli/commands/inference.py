"""``hmi classify | models``: inference, as a tenant."""

import sys
from functools import partial
from typing import Annotated

import typer

from hmi_cli.client import Client
from hmi_cli.context import CommandContext, KeyOption, OutputOption, get_context, not_empty
from hmi_cli.errors import EXIT_FAILED, UsageError
from hmi_cli.render.inference import models_table, predictions_table, read_predictions
from hmi_cli.render.output import format_answer

Tenant = Annotated[
    str | None,
    typer.Option(
        "--tenant", "-t", help="Act as this tenant, with a key that is created for you.", callback=not_empty
    ),
]


def classify(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="Name of the TaskAdapter; not with --models.")] = None,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Texts; - reads lines.")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", "-m", help="Fan-out: several models, a,b,c.")
    ] = None,
    key: KeyOption = None,
    tenant: Tenant = None,
    output: OutputOption = None,
) -> None:
    """Classify texts with one model, or each text with several in one request."""
    given = [*([model] if model else []), *(texts or [])]
    if models:
        target: dict[str, str | list[str]] = {
            "models": [name.strip() for name in models.split(",") if name.strip()]
        }
        rows = given
    else:
        target = {"model": given[0]} if given else {}
        rows = given[1:]
    if rows == ["-"]:
        rows = _lines()
    if not target or not rows:
        raise UsageError(
            "name a model and a text",
            hint='hmi classify MODEL "some text", or hmi classify --models a,b "some text"',
        )
    with _client(get_context(context), key, tenant) as client:
        answer = client.request("POST", "/classify", json={**target, "input": rows})
    typer.echo(format_answer(answer, output, partial(predictions_table, rows)))
    if any(prediction.error for prediction in read_predictions(answer)):
        raise typer.Exit(EXIT_FAILED)


def _lines() -> list[str]:
    """Return the non-empty lines of standard input."""
    try:
        return [line.rstrip("\n") for line in sys.stdin or () if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError("standard input has bytes that are not UTF-8") from error


def models(
    context: typer.Context,
    key: KeyOption = None,
    tenant: Tenant = None,
    output: OutputOption = None,
) -> None:
    """List the models of a tenant."""
    with _client(get_context(context), key, tenant) as client:
        answer = client.request("GET", "/v1/models")
    typer.echo(format_answer(answer, output, models_table))


def _client(session: CommandContext, key: str | None, tenant: str | None) -> Client:
    if tenant:
        return session.as_tenant(tenant)
    if key:
        return session.client(key)
    raise UsageError(
        "name the tenant",
        hint="--tenant NAME if you are the administrator; otherwise an API key, with --key or HMI_API_KEY",
    )

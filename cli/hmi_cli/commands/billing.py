"""``hmi usage | bill | price``: what was used, and what it costs."""

from enum import StrEnum
from typing import Annotated

import typer

from hmi_cli.api import AdminApi, Query, pages
from hmi_cli.client import Client
from hmi_cli.context import CommandContext, get_context, not_empty, trimmed_option
from hmi_cli.errors import CliError, UsageError
from hmi_cli.render.accounts import bill_table, usage_table
from hmi_cli.render.output import Output, dump_value, format_table


class Bucket(StrEnum):
    """The periods that a report can be split by."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        "-k",
        envvar="HMI_API_KEY",
        help="A tenant's own view, with its API key; without TENANT.",
        callback=trimmed_option,
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--from", help="First moment: a date, or RFC 3339 with a zone. The start of this month when absent."
    ),
]
End = Annotated[
    str | None,
    typer.Option("--to", help="Moment after the last. When absent: now, or for a bill a month after --from."),
]
OutputOption = Annotated[Output | None, typer.Option("--output", "-o", help="json or yaml.")]


def usage(
    context: typer.Context,
    tenant: Annotated[
        str | None,
        typer.Argument(help="Only this tenant, by name or id; all when absent.", callback=not_empty),
    ] = None,
    by: Annotated[str, typer.Option("--by", help="Split by any of tenant,adapter.")] = "tenant,adapter",
    bucket: Annotated[Bucket | None, typer.Option(help="Split by time.")] = None,
    start: Start = None,
    end: End = None,
    key: Key = None,
    output: OutputOption = None,
) -> None:
    """Show usage by tenant, adapter and meter."""
    query: Query = {**_period(start, end), "group_by": ["meter", *(word for word in by.split(",") if word)]}
    if bucket:
        query["bucket"] = bucket.value
    session = get_context(context)
    if key and not tenant:
        with session.with_key(key) as client:
            lines = pages(client, "/v1/usage", query)
    else:
        with _administrator(session, key) as client:
            lines = AdminApi(client).usage({**query, **({"tenant": tenant} if tenant else {})})
    if output in (Output.JSON, Output.YAML):
        typer.echo(dump_value(lines, output))
    elif lines:
        typer.echo(usage_table(lines))
    else:
        typer.echo("No usage in this period.", err=True)


def bill(
    context: typer.Context,
    tenant: Annotated[
        str | None,
        typer.Argument(help="The tenant, by name or id; not needed with --key.", callback=not_empty),
    ] = None,
    start: Start = None,
    end: End = None,
    key: Key = None,
    output: OutputOption = None,
) -> None:
    """Show the bill of a tenant, by the price list."""
    session, period = get_context(context), _period(start, end)
    if tenant:
        with _administrator(session, key) as client:
            answer = AdminApi(client).bill(tenant, period)
    elif key:
        with session.with_key(key) as client:
            answer = client.ask("GET", "/v1/bill", params=period)
    else:
        raise UsageError(
            "name the tenant of the bill",
            hint="hmi bill TENANT, or with a tenant's own key: hmi bill --key KEY",
        )
    typer.echo(dump_value(answer, output) if output in (Output.JSON, Output.YAML) else bill_table(answer))


def _administrator(session: CommandContext, key: str | None) -> Client:
    """Return an administrator's client for a named tenant; ``key`` is not used, as it may be another's."""
    try:
        return session.admin()
    except CliError as error:
        if key:
            error.hint = f"leave TENANT out to see the figures of the key's own tenant; else {error.hint}"
        raise


def _period(start: str | None, end: str | None) -> Query:
    return {name: value for name, value in (("from", start), ("to", end)) if value}


prices = typer.Typer(help="The price list.", no_args_is_help=True)


@prices.command("list")
def list_prices(context: typer.Context, output: OutputOption = None) -> None:
    """Show the price of each meter, by date."""
    with get_context(context).admin() as client:
        found = AdminApi(client).prices()
    if output in (Output.JSON, Output.YAML):
        typer.echo(dump_value(found, output))
        return
    rows = [
        [price["meter"], price["unitPrice"], price["currency"], price["effectiveFrom"]] for price in found
    ]
    typer.echo(format_table(["METER", "UNIT PRICE", "CURRENCY", "FROM"], rows))


@prices.command("set")
def set_price(
    context: typer.Context,
    meter: Annotated[str, typer.Argument(help="requests, rows, prompt_tokens, training_seconds, ...")],
    unit_price: Annotated[str, typer.Argument(help="Price of one unit, such as 0.000002.")],
    currency: Annotated[
        str | None, typer.Option(help="Three letters, such as EUR. The installation's currency when absent.")
    ] = None,
) -> None:
    """Set a price from now on."""
    with get_context(context).admin() as client:
        price = AdminApi(client).set_price(meter, unit_price, currency)
    typer.echo(
        f"{price['meter']} costs {price['unitPrice']} {price['currency']} from {price['effectiveFrom']} on"
    )


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(usage)
    app.command()(bill)
    app.add_typer(prices, name="price")

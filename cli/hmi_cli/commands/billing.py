"""``hmi usage | bill | price``: what was used, and what it costs."""

from enum import StrEnum
from typing import Annotated

import typer

from hmi_cli.api import AdminApi, Query, pages
from hmi_cli.client import Client
from hmi_cli.context import CommandContext, KeyOption, OutputOption, get_context, not_empty
from hmi_cli.errors import CliError, UsageError
from hmi_cli.render.accounts import bill_table, prices_table, usage_table
from hmi_cli.render.output import Output, format_answer


class Bucket(StrEnum):
    """The periods that a report can be split by."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


Start = Annotated[
    str | None,
    typer.Option(
        "--from", help="Start of the period: a date, or RFC 3339 with a zone. Default: start of this month."
    ),
]
End = Annotated[
    str | None,
    typer.Option("--to", help="End of the period, exclusive. Default: now; for bills a month after --from."),
]


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
    key: KeyOption = None,
    output: OutputOption = None,
) -> None:
    """Show usage by tenant, adapter and meter; with --key and without TENANT, that of the key's tenant."""
    query: Query = {**_period(start, end), "group_by": ["meter", *(word for word in by.split(",") if word)]}
    if bucket:
        query["bucket"] = bucket.value
    session = get_context(context)
    if key and not tenant:
        with session.client(key) as client:
            lines = pages(client, "/v1/usage", query)
    else:
        with _administrator(session, key) as client:
            lines = AdminApi(client).usage({**query, **({"tenant": tenant} if tenant else {})})
    if lines or output in (Output.JSON, Output.YAML):
        typer.echo(format_answer(lines, output, usage_table))
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
    key: KeyOption = None,
    output: OutputOption = None,
) -> None:
    """Show the bill of a tenant by the price list; with --key and without TENANT, of the key's tenant."""
    session, period = get_context(context), _period(start, end)
    if tenant:
        with _administrator(session, key) as client:
            answer = AdminApi(client).bill(tenant, period)
    elif key:
        with session.client(key) as client:
            answer = client.request("GET", "/v1/bill", params=period)
    else:
        raise UsageError(
            "name the tenant of the bill",
            hint="hmi bill TENANT, or with a tenant's own key: hmi bill --key KEY",
        )
    typer.echo(format_answer(answer, output, bill_table))


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
    typer.echo(format_answer(found, output, prices_table))


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

"""``hmi tenant | key``: tenants and their API keys."""

from typing import Annotated

import typer

from hmi_cli.api import AdminApi
from hmi_cli.context import OutputOption, get_context
from hmi_cli.render.accounts import keys_table, tenants_table
from hmi_cli.render.output import format_answer

tenants = typer.Typer(help="Tenants: usage is metered and billed by tenant.", no_args_is_help=True)
keys = typer.Typer(help="API keys of a tenant.", no_args_is_help=True)

Tenant = Annotated[str, typer.Argument(help="Name of the tenant.")]


@tenants.command("create")
def create_tenant(context: typer.Context, name: Tenant) -> None:
    """Create a tenant; those of namespaces are created automatically."""
    with get_context(context).admin() as client:
        AdminApi(client).create_tenant(name)
    typer.echo(f"tenant/{name} created")


@tenants.command("list")
def list_tenants(
    context: typer.Context,
    deleted: Annotated[
        bool, typer.Option("--deleted", help="Deleted tenants; `hmi usage` and `hmi bill` take their ids.")
    ] = False,
    output: OutputOption = None,
) -> None:
    """List the tenants."""
    with get_context(context).admin() as client:
        found = AdminApi(client).tenants(deleted=deleted)
    typer.echo(format_answer(found, output, tenants_table))


@tenants.command("delete")
def delete_tenant(context: typer.Context, name: Tenant) -> None:
    """Delete a tenant and its keys; its usage and invoices stay, under its id, for administrators."""
    with get_context(context).admin() as client:
        AdminApi(client).delete_tenant(name)
    typer.echo(f"tenant/{name} deleted")


@keys.command("create")
def create_key(
    context: typer.Context,
    tenant: Tenant,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "default",
    output: OutputOption = None,
) -> None:
    """Create an API key and print it alone, for `export HMI_API_KEY=$(hmi key create TENANT)`; shown once."""
    with get_context(context).admin() as client:
        made = AdminApi(client).create_key(tenant, name)
    typer.echo(format_answer(made, output, lambda key: str(key["key"])))
    typer.echo(f"key {made['id']} of tenant {tenant}: save it, it is not shown again", err=True)


@keys.command("list")
def list_keys(context: typer.Context, tenant: Tenant, output: OutputOption = None) -> None:
    """List a tenant's keys."""
    with get_context(context).admin() as client:
        found = AdminApi(client).keys(tenant)
    typer.echo(format_answer(found, output, keys_table))


@keys.command("revoke")
def revoke_key(
    context: typer.Context, tenant: Tenant, key: Annotated[str, typer.Argument(help="Id of the key.")]
) -> None:
    """Revoke a key; requests with it are refused within seconds."""
    with get_context(context).admin() as client:
        AdminApi(client).revoke_key(tenant, key)
    typer.echo(f"key {key} of tenant {tenant} revoked")

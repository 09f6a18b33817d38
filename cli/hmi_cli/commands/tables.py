"""``hmi refresh | rollback``: refresh a Domain's table now, or roll it back to an earlier one."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from hmi_api.names import REFRESH_ANNOTATION, TABLE_VERSION_ANNOTATION
from hmi_api.resources.kinds import DOMAIN
from hmi_cli.commands.resources import DEFAULT_NAMESPACE, Namespace
from hmi_cli.context import get_context
from hmi_cli.errors import CliError, UsageError

DomainName = Annotated[str, typer.Argument(metavar="DOMAIN", help="Name of the Domain.")]


def refresh(context: typer.Context, name: DomainName, namespace: Namespace = None) -> None:
    """Refresh a Domain's table from what traffic looked up, now.

    The Domain needs plot.refresh in its spec. `hmi describe dom` shows what the refresh changed.
    """
    scope = namespace or DEFAULT_NAMESPACE
    with get_context(context).resources() as api:
        item = api.get(DOMAIN, scope, name)
        if (item.get("spec") or {}).get("plot", {}).get("refresh") is None:
            raise CliError(
                f'{DOMAIN} "{name}" has no plot.refresh in its spec', hint="apply it with plot: {refresh: {}}"
            )
        if TABLE_VERSION_ANNOTATION in _annotations(item):
            raise CliError(
                f'{DOMAIN} "{name}" keeps an earlier table', hint=f"hmi rollback {name} --resume ends that"
            )
        api.annotate(DOMAIN, scope, name, REFRESH_ANNOTATION, datetime.now(UTC).isoformat(timespec="seconds"))
    typer.echo(f"{DOMAIN}/{name} refresh requested")


def rollback(
    context: typer.Context,
    name: DomainName,
    namespace: Namespace = None,
    to_version: Annotated[
        int | None, typer.Option("--to-version", min=1, help="Version to roll back to.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Let the table be refreshed again.")] = False,
) -> None:
    """Roll a Domain's table back, by default to the one before the last refresh.

    That table is served until --resume. `hmi describe dom` lists the versions that are kept.
    """
    if resume and to_version is not None:
        raise UsageError("--resume and --to-version exclude each other")
    scope = namespace or DEFAULT_NAMESPACE
    with get_context(context).resources() as api:
        item = api.get(DOMAIN, scope, name)
        if resume:
            api.annotate(DOMAIN, scope, name, TABLE_VERSION_ANNOTATION, None)
            typer.echo(f"{DOMAIN}/{name} is refreshed again")
            return
        version = to_version if to_version is not None else _version_before(item)
        kept = [table["version"] for table in _tables(item)]
        if version not in kept:
            listed = ", ".join(map(str, kept)) or "none"
            raise CliError(f'version {version} of {DOMAIN} "{name}" is not kept', hint=f"kept are {listed}")
        api.annotate(DOMAIN, scope, name, TABLE_VERSION_ANNOTATION, str(version))
    typer.echo(f"{DOMAIN}/{name} is rolled back to the table of version {version}")


def _version_before(item: dict[str, Any]) -> int:
    """Return the version before the last refresh."""
    tables = _tables(item)
    refreshed = next((at for at, table in enumerate(tables) if table.get("cause")), None)
    if refreshed is None or refreshed + 1 >= len(tables):
        raise CliError("no earlier table is kept", hint="`hmi describe dom` lists the kept versions")
    return int(tables[refreshed + 1]["version"])


def _tables(item: dict[str, Any]) -> list[dict[str, Any]]:
    return list(((item.get("status") or {}).get("refresh") or {}).get("tables") or [])


def _annotations(item: dict[str, Any]) -> dict[str, str]:
    return dict(item["metadata"].get("annotations") or {})

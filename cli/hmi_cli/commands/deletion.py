"""``hmi delete``: resources go, and what was trained for them; it is over when they are gone."""

import time
from dataclasses import dataclass
from http import HTTPStatus
from shlex import quote
from typing import Annotated

import typer

from hmi_api.resources.conditions import Phase
from hmi_cli.commands.resources import (
    DEFAULT_NAMESPACE,
    Files,
    Name,
    Namespace,
    Recursive,
    namespace_of,
    read_manifests,
)
from hmi_cli.errors import EXIT_FAILED, CliError, NotUnderstood, Refused, complain, usage_error
from hmi_cli.kinds import Kind, find_kind, split_target
from hmi_cli.manifests import Manifest
from hmi_cli.render.resources import condition
from hmi_cli.resource_api import Object, ResourceApi, object_path, title_of
from hmi_cli.session import finite, session_of

POLL_S = 0.25
PATIENCE_S = 2.0
"""What takes longer is told why: a Domain and what stands on it go one after the other, which is no news."""


@dataclass(frozen=True)
class Target:
    """One resource that is to go."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f'{self.kind} "{self.name}"'


def delete(
    context: typer.Context,
    target: Annotated[str | None, typer.Argument(metavar="TYPE", help="dom, ta, or TYPE/NAME.")] = None,
    name: Name = None,
    filename: Files = None,
    recursive: Recursive = False,
    namespace: Namespace = None,
    ignore_not_found: Annotated[
        bool, typer.Option("--ignore-not-found", help="What is gone is no error.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until they are gone.")] = True,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.", callback=finite)] = 30.0,
) -> None:
    """Delete resources: unload them, and erase what was trained for them.

    What is in use stays, marked for deletion, until nothing stands on it.
    """
    if filename:
        doomed, good = _declared(filename, namespace, recursive=recursive)
    elif target is not None:
        doomed, good = [_named(target, name, namespace)], True
    else:
        raise usage_error("say what to delete", hint="hmi delete TYPE NAME, or hmi delete -f FILE")
    with session_of(context).resources() as api:
        marked, accepted = _mark_all(api, doomed, ignore_not_found=ignore_not_found)
        left = _see_off(api, marked, timeout if wait else 0.0)
    for found, item in left.items():
        if wait:
            complain(_overdue(found, item, timeout))
        else:
            typer.echo(f"{found} {_marked(found, item)}")
    if not (good and accepted) or (wait and left):
        raise typer.Exit(EXIT_FAILED)


def _named(target: str, name: str | None, namespace: str | None) -> Target:
    word, name = split_target(target, name)
    if not name:
        raise usage_error("say which one to delete", hint=f"hmi delete {quote(target)} NAME [-n NAMESPACE]")
    return Target(find_kind(word), namespace or DEFAULT_NAMESPACE, name)


def _declared(names: list[str], namespace: str | None, *, recursive: bool) -> tuple[list[Target], bool]:
    """Return what files name, and whether all of it was understood.

    What stands on others goes first: adapters before the Domains under them, children before parents.
    """
    manifests, complete = read_manifests(names, recursive=recursive)
    found = []
    for manifest in reversed(manifests):
        title = f"{title_of(manifest)}/{manifest.body['metadata']['name']}"
        try:
            target = _target_of(manifest, namespace)
        except NotUnderstood as error:
            complain(error, f"{title} ({manifest.origin})")
            complete = False
            continue
        if target is None:
            typer.echo(f"{title} stays: only Domains and TaskAdapters are deleted", err=True)
        else:
            found.append(target)
    return found, complete


def _target_of(manifest: Manifest, namespace: str | None) -> Target | None:
    """Return what a manifest names; None for a Namespace, which is only a label here."""
    object_path(manifest, DEFAULT_NAMESPACE)
    if manifest.body["kind"] == "Namespace":
        return None
    scope = namespace_of(manifest, namespace)
    return Target(find_kind(manifest.body["kind"]), scope, manifest.body["metadata"]["name"])


def _mark_all(api: ResourceApi, doomed: list[Target], *, ignore_not_found: bool) -> tuple[list[Target], bool]:
    """Ask for the deletion of each; return those that were there, and whether no other was refused.

    All are marked before any is waited for: what stands on others must be going for them to go.
    """
    marked, accepted = [], True
    for target in doomed:
        try:
            api.delete(target.kind, target.namespace, target.name)
        except Refused as error:
            missing = error.status == HTTPStatus.NOT_FOUND
            if missing and not ignore_not_found:
                typer.echo(f"error: {target} not found in namespace {target.namespace}", err=True)
            elif not missing:
                complain(error, str(target))
            accepted &= missing and ignore_not_found
        else:
            marked.append(target)
    return marked, accepted


def _see_off(api: ResourceApi, marked: list[Target], limit_s: float) -> dict[Target, Object]:
    """Say which have gone, as they go, and what keeps the others; return what is there at the limit."""
    begun, left, told = time.monotonic(), dict[Target, Object](), dict[Target, str]()
    while True:
        left = _look(api, list(left) or marked)
        waited = time.monotonic() - begun
        if not left or waited >= limit_s:
            return left
        for target, item in left.items():
            why = _why(item)
            if waited >= PATIENCE_S and why and why != told.get(target):
                typer.echo(f"{target} waits: {why}", err=True)
                told[target] = why
        time.sleep(min(POLL_S, limit_s - waited))


def _look(api: ResourceApi, targets: list[Target]) -> dict[Target, Object]:
    """Say which of these have gone; return the others as they stand."""
    left = {}
    for target in targets:
        item = api.find_leaving(target.kind, target.namespace, target.name)
        if item is None:
            typer.echo(f"{target} deleted from namespace {target.namespace}")
        else:
            left[target] = item
    return left


def _why(item: Object) -> str:
    """Return why an object that is marked is still there; empty before the reconciler has looked at it."""
    ready, phase = condition(item, "Ready"), (item.get("status") or {}).get("phase")
    return str(ready.get("message") or "") if ready and phase == Phase.TERMINATING else ""


def _marked(target: Target, item: Object) -> str:
    """Return how an object stands that has not gone, with the reason where there is one."""
    why = _why(item)
    return f"marked for deletion in namespace {target.namespace}" + (f": {why}" if why else "")


def _overdue(target: Target, item: Object, limit_s: float) -> CliError:
    return CliError(
        f"{target} has not gone after {limit_s:g} s; it is {_marked(target, item)}",
        hint="it goes by itself once nothing keeps it; --timeout waits longer, --no-wait not at all",
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(delete)

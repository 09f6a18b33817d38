"""``hmi apply | get | describe | delete``: resources, as kubectl users expect them; runtimes too."""

import time
from dataclasses import dataclass
from http import HTTPStatus
from shlex import quote
from typing import Annotated, Any

import typer

from hmi_api.names import GROUP
from hmi_api.resources.conditions import Phase
from hmi_api.resources.kinds import KINDS, Kind
from hmi_cli.api import Object, ResourceApi, object_path, title_of
from hmi_cli.commands.runtimes import describe_runtimes, get_runtimes, is_runtime
from hmi_cli.context import finite, get_context
from hmi_cli.errors import EXIT_FAILED, EXIT_USAGE, ApiError, CliError, UsageError, print_error
from hmi_cli.manifests import Manifest, in_apply_order, parse
from hmi_cli.render.output import Output, dump_objects
from hmi_cli.render.resources import condition, resource_table
from hmi_cli.render.resources import describe as describe_text

DEFAULT_NAMESPACE = "default"
POLL_S = 0.25
PATIENCE_S = 2.0
"""Deletions that take longer print why; a Domain waits for its dependents in any case, for a moment."""
Files = Annotated[
    list[str] | None, typer.Option("--filename", "-f", help="File, folder or - for standard input.")
]
Recursive = Annotated[bool, typer.Option("--recursive", "-R", help="Go through the folders below, too.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace; default when absent.")]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Every namespace.")]
OneType = Annotated[str, typer.Argument(metavar="TYPE", help="dom, ta, runtime, or TYPE/NAME.")]
Name = Annotated[str | None, typer.Argument(help="Name of one resource.")]


def find_kind(word: str) -> Kind:
    """Return a kind by its kind, plural, singular or short name, in any case. Raise ``UsageError``."""
    lowered = word.lower().removesuffix(f".{GROUP}")
    for kind in KINDS.values():
        if lowered in (kind.plural, kind.singular, kind.short):
            return kind
    known = ", ".join(f"{kind.plural} ({kind.short})" for kind in KINDS.values())
    raise UsageError(
        f'there is no resource type "{word}"', hint=f"known types: {known}; `hmi get` takes all too"
    )


def find_kinds(word: str) -> tuple[Kind, ...]:
    """Return the kinds of a name; ``all`` stands for every kind."""
    return tuple(KINDS.values()) if word.lower() == "all" else (find_kind(word),)


def split_target(target: str, name: str | None) -> tuple[str, str | None]:
    """Return (type, name) of ``dom NAME`` or ``dom/NAME``."""
    word, slash, inline = target.partition("/")
    if slash and name is not None:
        raise UsageError(f'"{target}" names a resource already; remove "{name}"')
    return word, inline if slash else name


def apply(
    context: typer.Context,
    filename: Files = None,
    recursive: Recursive = False,
    namespace: Namespace = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only validate; change nothing.")] = False,
) -> None:
    """Create resources, or update them to what the manifests say."""
    if not filename:
        raise UsageError(
            "name what to apply with -f", hint="hmi apply -f FILE, -f FOLDER -R, or -f - for standard input"
        )
    manifests, complete = read_manifests(filename, recursive=recursive)
    with get_context(context).resources() as api:
        for manifest in in_apply_order(manifests):
            complete &= _apply_one(api, manifest, namespace, dry_run=dry_run)
    if not complete:
        raise typer.Exit(EXIT_FAILED)


def read_manifests(names: list[str], *, recursive: bool) -> tuple[list[Manifest], bool]:
    """Print what is wrong with the files; return their valid objects, and whether all were valid."""
    manifests, errors = parse(names, recursive=recursive)
    for error in errors:
        print_error(error)
    if not manifests:
        raise typer.Exit(EXIT_USAGE)
    return manifests, not errors


def _apply_one(api: ResourceApi, manifest: Manifest, namespace: str | None, *, dry_run: bool) -> bool:
    """Apply one object and print the result; return False if it failed, so that the others go on."""
    title = title_of(manifest)
    try:
        scope = namespace_of(manifest, namespace)
        before = api.find(manifest, scope)
        after = api.apply(manifest, scope, dry_run=dry_run)
    except (ApiError, UsageError) as error:
        print_error(error, f"{title} ({manifest.origin})")
        return False
    typer.echo(f"{title} {verdict(before, after)}" + (" (dry run)" if dry_run else ""))
    return True


def verdict(before: dict[str, Any] | None, after: dict[str, Any]) -> str:
    """Return the result of an apply: created, unchanged or configured, as kubectl says."""
    if before is None:
        return "created"
    compared = ("generation", "labels", "annotations")
    same = all(before["metadata"].get(field) == after["metadata"].get(field) for field in compared)
    return "unchanged" if same else "configured"


def namespace_of(manifest: Manifest, given: str | None) -> str:
    """Return the namespace of a manifest's object. Raise ``UsageError`` if -n contradicts it."""
    written = manifest.body["metadata"].get("namespace")
    if given and written and given != written:
        raise UsageError(f'the namespace "{written}" is not the one given with -n, "{given}"')
    return str(written or given or DEFAULT_NAMESPACE)


def get(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TYPE", help="dom, ta, runtime, all, or TYPE/NAME.")],
    name: Name = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="json, yaml or wide.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep running and print changes.")] = False,
) -> None:
    """List resources, or show one."""
    word, name = split_target(target, name)
    if name and all_namespaces:
        raise UsageError(
            "a resource cannot be named across all namespaces", hint="give its namespace with -n"
        )
    if is_runtime(word):
        if watch:
            raise UsageError("runtimes cannot be watched", hint="hmi get runtimes shows them once")
        get_runtimes(get_context(context), name, output)
        return
    kinds = find_kinds(word)
    if watch and len(kinds) > 1:
        raise UsageError("only one type can be watched at a time", hint="hmi get dom -w, or hmi get ta -w")
    if name and len(kinds) > 1:
        raise UsageError(
            "a name needs its type", hint=f"hmi get dom {quote(name)}, or hmi get ta {quote(name)}"
        )
    scope = None if all_namespaces else namespace or DEFAULT_NAMESPACE
    with get_context(context).resources() as api:
        if watch:
            _watch(api, kinds[0], scope, name, output)
            return
        found = [
            (kind, [api.get(kind, str(scope), name)] if name else api.list(kind, scope)) for kind in kinds
        ]
    _show(found, output, single=name is not None, scope=scope)


def _show(
    found: list[tuple[Kind, list[dict[str, Any]]]], output: Output | None, *, single: bool, scope: str | None
) -> None:
    if output in (Output.JSON, Output.YAML):
        typer.echo(dump_objects([item for _, items in found for item in items], output, single=single))
        return
    tables = [
        resource_table(kind, items, wide=output is Output.WIDE, namespaces=scope is None)
        for kind, items in found
        if items
    ]
    if tables:
        typer.echo("\n\n".join(tables))
    else:
        where = f"in namespace {scope}" if scope else "in any namespace"
        typer.echo(f"No resources found {where}." + (" -A shows all namespaces." if scope else ""), err=True)


def _watch(api: ResourceApi, kind: Kind, scope: str | None, name: str | None, output: Output | None) -> None:
    header = True
    for event, item in api.watch(kind, scope):
        if name and item["metadata"]["name"] != name:
            continue
        if output in (Output.JSON, Output.YAML):
            typer.echo(dump_objects([item], output, single=True))
            continue
        table = resource_table(
            kind, [item], wide=output is Output.WIDE, namespaces=scope is None
        ).splitlines()
        deleted = "   (deleted)" if event == "DELETED" else ""
        typer.echo("\n".join([*(table[:1] if header else []), table[1] + deleted]))
        header = False


def describe(context: typer.Context, target: OneType, name: Name = None, namespace: Namespace = None) -> None:
    """Show the spec, status and conditions of resources, or what runtimes compute in, and why."""
    word, name = split_target(target, name)
    if is_runtime(word):
        describe_runtimes(get_context(context), name)
        return
    kind, scope = find_kind(word), namespace or DEFAULT_NAMESPACE
    with get_context(context).resources() as api:
        items = [api.get(kind, scope, name)] if name else api.list(kind, scope)
    if not items:
        typer.echo(f"No resources found in namespace {scope}.", err=True)
    typer.echo("\n\n".join(describe_text(kind, item) for item in items))


@dataclass(frozen=True)
class DeletionTarget:
    """One resource to delete."""

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
        bool, typer.Option("--ignore-not-found", help="A missing resource is not an error.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until they are gone.")] = True,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.", callback=finite)] = 30.0,
) -> None:
    """Delete resources, with what was trained for them.

    A Domain with dependents stays, marked for deletion, until the last dependent is gone.
    """
    if filename:
        targets, valid = _targets_of_files(filename, namespace, recursive=recursive)
    elif target is not None:
        targets, valid = [_target_of_arguments(target, name, namespace)], True
    else:
        raise UsageError("name what to delete", hint="hmi delete TYPE NAME, or hmi delete -f FILE")
    with get_context(context).resources() as api:
        marked, accepted = _mark_all(api, targets, ignore_not_found=ignore_not_found)
        left = _wait_until_deleted(api, marked, timeout if wait else 0.0)
    for found, item in left.items():
        if wait:
            print_error(
                CliError(
                    f"{found} is not deleted after {timeout:g} s; it is {_deletion_state(found, item)}",
                    hint="deletion continues in the background; --timeout waits longer, --no-wait not at all",
                )
            )
        else:
            typer.echo(f"{found} {_deletion_state(found, item)}")
    if not (valid and accepted) or (wait and left):
        raise typer.Exit(EXIT_FAILED)


def _target_of_arguments(target: str, name: str | None, namespace: str | None) -> DeletionTarget:
    word, name = split_target(target, name)
    if not name:
        raise UsageError(
            "name the resource to delete", hint=f"hmi delete {quote(target)} NAME [-n NAMESPACE]"
        )
    return DeletionTarget(find_kind(word), namespace or DEFAULT_NAMESPACE, name)


def _targets_of_files(
    names: list[str], namespace: str | None, *, recursive: bool
) -> tuple[list[DeletionTarget], bool]:
    """Return the resources that files name, dependents first, and whether all documents were valid."""
    manifests, complete = read_manifests(names, recursive=recursive)
    found = []
    for manifest in reversed(manifests):
        title, kind = title_of(manifest), manifest.body["kind"]
        try:
            object_path(manifest, DEFAULT_NAMESPACE)  # fails for an unknown kind
            if kind == "Namespace":
                typer.echo(f"{title} stays: only Domains and TaskAdapters are deleted", err=True)
                continue
            scope = namespace_of(manifest, namespace)
            found.append(DeletionTarget(find_kind(kind), scope, manifest.body["metadata"]["name"]))
        except UsageError as error:
            print_error(error, f"{title} ({manifest.origin})")
            complete = False
    return found, complete


def _mark_all(
    api: ResourceApi, targets: list[DeletionTarget], *, ignore_not_found: bool
) -> tuple[list[DeletionTarget], bool]:
    """Request the deletion of each; return those that existed, and whether no request failed.

    All are marked before the first wait, since a Domain is deleted only after its dependents.
    """
    marked, accepted = [], True
    for target in targets:
        try:
            api.delete(target.kind, target.namespace, target.name)
        except ApiError as error:
            missing = error.status == HTTPStatus.NOT_FOUND
            if missing and not ignore_not_found:
                typer.echo(f"error: {target} not found in namespace {target.namespace}", err=True)
            elif not missing:
                print_error(error, str(target))
            accepted &= missing and ignore_not_found
        else:
            marked.append(target)
    return marked, accepted


def _wait_until_deleted(
    api: ResourceApi, marked: list[DeletionTarget], limit_s: float
) -> dict[DeletionTarget, Object]:
    """Print which are deleted and what blocks the others; return those that are left after the limit."""
    started, left, printed = time.monotonic(), dict[DeletionTarget, Object](), dict[DeletionTarget, str]()
    while True:
        left = _find_left(api, list(left) or marked)
        waited = time.monotonic() - started
        if not left or waited >= limit_s:
            return left
        for target, item in left.items():
            why = _blocked_by(item)
            if waited >= PATIENCE_S and why and why != printed.get(target):
                typer.echo(f"{target} waits: {why}", err=True)
                printed[target] = why
        time.sleep(min(POLL_S, limit_s - waited))


def _find_left(api: ResourceApi, targets: list[DeletionTarget]) -> dict[DeletionTarget, Object]:
    """Print which of these are deleted; return the current objects of the others."""
    left = {}
    for target in targets:
        item = api.find_deleting(target.kind, target.namespace, target.name)
        if item is None:
            typer.echo(f"{target} deleted from namespace {target.namespace}")
        else:
            left[target] = item
    return left


def _blocked_by(item: Object) -> str:
    """Return what blocks the deletion of an object; empty before the operator has reconciled it."""
    ready, phase = condition(item, "Ready"), (item.get("status") or {}).get("phase")
    return str(ready.get("message") or "") if ready and phase == Phase.TERMINATING else ""


def _deletion_state(target: DeletionTarget, item: Object) -> str:
    """Return how far the deletion of an object is, with what blocks it."""
    why = _blocked_by(item)
    return f"marked for deletion in namespace {target.namespace}" + (f": {why}" if why else "")

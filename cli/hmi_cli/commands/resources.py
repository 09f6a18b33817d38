"""``hmi apply | get | describe``: resources, as a kubectl user expects them."""

from shlex import quote
from typing import Annotated, Any

import typer

from hmi_cli.errors import EXIT_FAILED, EXIT_USAGE, NotUnderstood, Refused, complain, usage_error
from hmi_cli.kinds import Kind, find_kind, find_kinds, split_target
from hmi_cli.manifests import Manifest, in_apply_order, read
from hmi_cli.render.objects import Output, dump_objects
from hmi_cli.render.resources import describe as describe_text
from hmi_cli.render.resources import resource_table
from hmi_cli.resource_api import ResourceApi, title_of
from hmi_cli.session import session_of

DEFAULT_NAMESPACE = "default"

Files = Annotated[
    list[str] | None, typer.Option("--filename", "-f", help="File, folder or - for standard input.")
]
Recursive = Annotated[bool, typer.Option("--recursive", "-R", help="Go through the folders below, too.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace; default when absent.")]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Every namespace.")]
Target = Annotated[str, typer.Argument(metavar="TYPE", help="dom, ta, all, or TYPE/NAME.")]
Name = Annotated[str | None, typer.Argument(help="Name of one resource.")]


def apply(
    context: typer.Context,
    filename: Files = None,
    recursive: Recursive = False,
    namespace: Namespace = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Have it checked, change nothing.")] = False,
) -> None:
    """Create resources or bring them to what the manifests say."""
    if not filename:
        raise usage_error(
            "say what to apply with -f", hint="hmi apply -f FILE, -f FOLDER -R, or -f - for standard input"
        )
    manifests, complete = read_manifests(filename, recursive=recursive)
    with session_of(context).resources() as api:
        for manifest in in_apply_order(manifests):
            complete &= _apply_one(api, manifest, namespace, dry_run=dry_run)
    if not complete:
        raise typer.Exit(EXIT_FAILED)


def read_manifests(names: list[str], *, recursive: bool) -> tuple[list[Manifest], bool]:
    """Return the objects of the files and whether that is all; what is no object is said and passed over."""
    reading = read(names, recursive=recursive)
    for fault in reading.faults:
        complain(fault)
    if not reading.manifests:
        raise typer.Exit(EXIT_USAGE)
    return reading.manifests, not reading.faults


def _apply_one(api: ResourceApi, manifest: Manifest, namespace: str | None, *, dry_run: bool) -> bool:
    """Apply one object and say how it went; the others go on when this one cannot be applied."""
    title = f"{title_of(manifest)}/{manifest.body['metadata']['name']}"
    try:
        scope = namespace_of(manifest, namespace)
        before = api.find(manifest, scope)
        after = api.apply(manifest, scope, dry_run=dry_run)
    except (Refused, NotUnderstood) as error:
        complain(error, f"{title} ({manifest.origin})")
        return False
    typer.echo(f"{title} {verdict(before, after)}" + (" (dry run)" if dry_run else ""))
    return True


def verdict(before: dict[str, Any] | None, after: dict[str, Any]) -> str:
    """Return what applying did, in kubectl's words."""
    if before is None:
        return "created"
    told = ("generation", "labels", "annotations")
    same = all(before["metadata"].get(field) == after["metadata"].get(field) for field in told)
    return "unchanged" if same else "configured"


def namespace_of(manifest: Manifest, given: str | None) -> str:
    """Return the namespace of a manifest's object; ``CliError`` where -n contradicts it."""
    written = manifest.body["metadata"].get("namespace")
    if given and written and given != written:
        raise usage_error(f'the namespace "{written}" is not the one given with -n, "{given}"')
    return str(written or given or DEFAULT_NAMESPACE)


def get(
    context: typer.Context,
    target: Target,
    name: Name = None,
    namespace: Namespace = None,
    all_namespaces: AllNamespaces = False,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="json, yaml or wide.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on and print what changes.")] = False,
) -> None:
    """List resources, or show one."""
    word, name = split_target(target, name)
    if name and all_namespaces:
        raise usage_error(
            "a resource cannot be named across all namespaces", hint="give its namespace with -n"
        )
    kinds = find_kinds(word)
    if watch and len(kinds) > 1:
        raise usage_error("only one type can be watched at a time", hint="hmi get dom -w, or hmi get ta -w")
    if name and len(kinds) > 1:
        raise usage_error(
            "a name needs its type", hint=f"hmi get dom {quote(name)}, or hmi get ta {quote(name)}"
        )
    scope = None if all_namespaces else namespace or DEFAULT_NAMESPACE
    with session_of(context).resources() as api:
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
        typer.echo(f"No resources found {where}." + (" -A looks in all of them." if scope else ""), err=True)


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


def describe(context: typer.Context, target: Target, name: Name = None, namespace: Namespace = None) -> None:
    """Show all that is known of resources: spec, status and conditions."""
    word, name = split_target(target, name)
    kind, scope = find_kind(word), namespace or DEFAULT_NAMESPACE
    with session_of(context).resources() as api:
        items = [api.get(kind, scope, name)] if name else api.list(kind, scope)
    if not items:
        typer.echo(f"No resources found in namespace {scope}.", err=True)
    typer.echo("\n\n".join(describe_text(kind, item) for item in items))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (apply, get, describe):
        app.command()(command)

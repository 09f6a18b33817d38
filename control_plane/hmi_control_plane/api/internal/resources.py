"""Tenants, Domains and TaskAdapters, as the operator declares and reads them."""

from typing import Annotated

from fastapi import APIRouter, Query

from hmi_api.internal.catalog import (
    AdapterETags,
    AdapterKeys,
    AdapterRecord,
    AdapterView,
    ClusterRegistration,
    DomainRecord,
    DomainView,
    PublishAgain,
    PublishedAgain,
    RecordKey,
    RecordPage,
    RegisteredCluster,
    Revocation,
)
from hmi_api.internal.refreshes import Refreshes, RestoredTable, RestoreTable
from hmi_api.internal.storable import ResourceKey, Uid
from hmi_api.security.internal_auth import Role
from hmi_control_plane.api import NO_CONTENT
from hmi_control_plane.api.internal.runtimes import ChangeSignal
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.auth.guards import RoleGuard
from hmi_control_plane.catalog import adapters, clusters, domains, refreshes, tenants, versions
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.paging import Page, PageRequest, list_page
from hmi_control_plane.catalog.resources import ResourceRow, get_resource
from hmi_control_plane.catalog.tables import AdapterRow, DomainRow
from hmi_control_plane.catalog.tree import load_tree
from hmi_control_plane.http.parameters import Name

OnlyUid = Annotated[Uid | None, Query(description="Delete only what was declared for this object.")]
Cursor = Annotated[str | None, Query(max_length=400, description="next_cursor of the previous page.")]


def build(database: Database, guard: RoleGuard, changes: ChangeSignal, files: ArtifactFiles) -> APIRouter:
    """Return the routes under ``/tenants``, ``/domains`` and ``/adapters``, which the operator calls."""
    router = APIRouter(route_class=guard.only(Role.OPERATOR))
    _add_cluster(router, database)
    _add_domains(router, database)
    _add_adapters(router, database, changes)
    _add_revocations(router, database, changes)
    _add_publish_again(router, database, changes, files)
    _add_refreshes(router, database, changes, files)
    return router


def _add_refreshes(
    router: APIRouter, database: Database, changes: ChangeSignal, files: ArtifactFiles
) -> None:
    @router.get("/domains/{namespace}/{name}/refreshes")
    def read_refreshes(namespace: Name, name: Name) -> Refreshes:
        """Read the kept tables of a Domain's current layers, and its last refresh run."""
        with database.read() as session:
            return refreshes.list_refreshes(session, get_resource(session, DomainRow, namespace, name))

    @router.post("/domains/{namespace}/{name}/restore-table")
    def restore_table(namespace: Name, name: Name, wanted: RestoreTable) -> RestoredTable:
        """Publish the table of a kept version again."""
        with database.read() as session:
            row = get_resource(session, DomainRow, namespace, name)
            needed = refreshes.restorable_artifacts(session, row, wanted)
        if needed is None or not all(files.is_whole(ref) for ref in needed):
            return RestoredTable()
        with database.write() as session:
            number = refreshes.restore_table(session, namespace, name, wanted)
        changes.notify()
        return RestoredTable(version=number)


def _add_publish_again(
    router: APIRouter, database: Database, changes: ChangeSignal, files: ArtifactFiles
) -> None:
    def publish_again(
        kind: type[ResourceRow], namespace: str, name: str, wanted: PublishAgain
    ) -> PublishedAgain:
        with database.read() as session:
            found = versions.find_earlier_version(session, kind, namespace, name, wanted)
        if found is None or not all(files.is_whole(ref) for ref in found.artifacts):
            return PublishedAgain()
        with database.write() as session:
            number = versions.publish_again(session, kind, namespace, name, wanted, found.version)
        changes.notify()
        return PublishedAgain(version=number)

    @router.post("/domains/{namespace}/{name}/publish-again")
    def publish_domain_again(namespace: Name, name: Name, wanted: PublishAgain) -> PublishedAgain:
        """Publish again the version that was made from the declared spec, if there is one."""
        return publish_again(DomainRow, namespace, name, wanted)

    @router.post("/adapters/{namespace}/{name}/publish-again")
    def publish_adapter_again(namespace: Name, name: Name, wanted: PublishAgain) -> PublishedAgain:
        """Publish again the version that was made from the declared spec, if there is one."""
        return publish_again(AdapterRow, namespace, name, wanted)


def _add_revocations(router: APIRouter, database: Database, changes: ChangeSignal) -> None:
    @router.put("/adapters/{namespace}/{name}/revocation", **NO_CONTENT)
    def revoke_adapter(namespace: Name, name: Name, revoked: Revocation) -> None:
        """Record that a TaskAdapter may not use its Domain any more, or that its grace time is over."""
        with database.write() as session:
            adapters.record_revocation(session, namespace, name, revoked)
        changes.notify()

    @router.delete("/adapters/{namespace}/{name}/revocation", **NO_CONTENT)
    def restore_adapter(namespace: Name, name: Name) -> None:
        """Record that a TaskAdapter may use its Domain again."""
        with database.write() as session:
            adapters.delete_revocation(session, namespace, name)


def _add_cluster(router: APIRouter, database: Database) -> None:
    @router.put("/cluster")
    def register_cluster(cluster: ClusterRegistration) -> RegisteredCluster:
        """Register a cluster's operator with this catalog; 409 while another cluster's operator uses it."""
        with database.write() as session:
            return clusters.register_cluster(session, cluster.uid)

    @router.put("/tenants/{tenant}", **NO_CONTENT)
    def ensure_tenant(tenant: Name) -> None:
        """Create the tenant if it does not exist."""
        with database.write() as session:
            tenants.ensure_tenant(session, tenant)


def _add_domains(router: APIRouter, database: Database) -> None:
    @router.put("/domains/{namespace}/{name}", **NO_CONTENT)
    def declare_domain(namespace: Name, name: Name, record: DomainRecord) -> None:
        """Declare a Domain."""
        with database.write() as session:
            domains.declare_domain(session, namespace, name, record)

    @router.get("/domains")
    def list_domains(cursor: Cursor = None) -> RecordPage:
        """List the Domains of the catalog."""
        with database.read() as session:
            return _declared(list_page(session, DomainRow, DomainRow.key, PageRequest(cursor=cursor)))

    # Defaults are left out: an operator of an older version refuses fields that it does not know.
    @router.get("/domains/{namespace}/{name}", response_model_exclude_defaults=True)
    def read_domain(
        namespace: Name,
        name: Name,
        lookups: Annotated[bool, Query(description="Include what traffic looked up.")] = False,
        tree: Annotated[bool, Query(description="Include what it shares with others.")] = False,
    ) -> DomainView:
        """Read a Domain, its current version, and on request what traffic looked up in it."""
        with database.read() as session:
            row = get_resource(session, DomainRow, namespace, name)
            view = domains.build_view(session, row, lookups=lookups)
            shared = load_tree(session, row) if tree else None
            return view if shared is None else view.model_copy(update={"tree": shared})

    @router.delete("/domains/{namespace}/{name}", **NO_CONTENT)
    def delete_domain(namespace: Name, name: Name, uid: OnlyUid = None) -> None:
        """Delete a Domain; 409 while TaskAdapters use it."""
        with database.write() as session:
            domains.delete_domain(session, namespace, name, uid=uid)


def _add_adapters(router: APIRouter, database: Database, changes: ChangeSignal) -> None:
    @router.put("/adapters/{namespace}/{name}", **NO_CONTENT)
    def declare_adapter(namespace: Name, name: Name, record: AdapterRecord) -> None:
        """Declare a TaskAdapter; 409 when the tenant has the name in another namespace."""
        with database.write() as session:
            adapters.declare_adapter(session, namespace, name, record)
        changes.notify()

    @router.post("/adapters/etags")
    def read_etags(wanted: AdapterKeys) -> AdapterETags:
        """Read the ETags of many TaskAdapters, to see which of them to read again."""
        with database.read() as session:
            return AdapterETags(etags=adapters.list_etags(session, wanted.keys))

    @router.get("/adapters")
    def list_adapters(
        cursor: Cursor = None,
        domain: Annotated[ResourceKey | None, Query(description="Only those on this Domain.")] = None,
    ) -> RecordPage:
        """List the TaskAdapters of the catalog."""
        with database.read() as session:
            page = PageRequest(cursor=cursor)
            return _declared(list_page(session, AdapterRow, AdapterRow.id, page, domain=domain))

    @router.get("/adapters/{namespace}/{name}")
    def read_adapter(namespace: Name, name: Name) -> AdapterView:
        """Read a TaskAdapter, its current version, and where it is scheduled and loaded."""
        with database.read() as session:
            return adapters.build_view(session, get_resource(session, AdapterRow, namespace, name))

    @router.delete("/adapters/{namespace}/{name}", **NO_CONTENT)
    def delete_adapter(namespace: Name, name: Name, uid: OnlyUid = None) -> None:
        """Delete a TaskAdapter."""
        with database.write() as session:
            adapters.delete_adapter(session, namespace, name, uid=uid)
        changes.notify()


def _declared(page: Page[DomainRow] | Page[AdapterRow]) -> RecordPage:
    items = [RecordKey(key=f"{row.namespace}/{row.name}", uid=row.uid) for row in page.items]
    return RecordPage(items=items, next_cursor=page.next_cursor)

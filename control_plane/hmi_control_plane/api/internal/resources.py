"""Tenants, Domains and TaskAdapters, as the operator declares and reads them."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from hmi_api.internal.catalog import (
    AdapterETags,
    AdapterKeys,
    AdapterRecord,
    AdapterView,
    ClusterClaim,
    ClusterClaimed,
    Declared,
    DeclaredPage,
    DomainRecord,
    DomainView,
    PublishAgain,
    PublishedAgain,
    Revocation,
)
from hmi_api.internal.storable import ResourceKey, Uid
from hmi_api.security.internal_auth import Role
from hmi_control_plane.api.internal.runtimes import ChangeSignal
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.auth import RoleGuard
from hmi_control_plane.catalog import adapters, clusters, domains, tenants, versions
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.paging import MAX_PAGE_ITEMS, Page
from hmi_control_plane.catalog.tables import AdapterRow, DomainRow
from hmi_control_plane.http.parameters import Name

_NO_CONTENT = 204

OnlyUid = Annotated[Uid | None, Query(description="Delete only what was declared for this object.")]
Cursor = Annotated[str | None, Query(max_length=400, description="next_cursor of the previous page.")]


def build(database: Database, door: RoleGuard, changes: ChangeSignal, files: ArtifactFiles) -> APIRouter:
    """Return the routes under ``/tenants``, ``/domains`` and ``/adapters``, which the operator calls."""
    router = APIRouter()
    router.include_router(_declaration_routes(database, door, changes))
    router.include_router(_revocation_routes(database, door, changes))
    router.include_router(_publish_again_routes(database, door, changes, files))
    return router


def _publish_again_routes(
    database: Database, door: RoleGuard, changes: ChangeSignal, files: ArtifactFiles
) -> APIRouter:
    router = APIRouter(route_class=door.only(Role.OPERATOR))

    def publish_again(
        kind: type[versions.ResourceRow], namespace: str, name: str, wanted: PublishAgain
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

    return router


def _revocation_routes(database: Database, door: RoleGuard, changes: ChangeSignal) -> APIRouter:
    router = APIRouter(route_class=door.only(Role.OPERATOR))

    @router.put("/adapters/{namespace}/{name}/revocation", status_code=_NO_CONTENT)
    def revoke_adapter(namespace: Name, name: Name, revoked: Revocation) -> Response:
        """Record that a TaskAdapter may not use its Domain any more, or that its grace time is over."""
        with database.write() as session:
            adapters.record_revocation(session, namespace, name, revoked)
        changes.notify()
        return Response(status_code=_NO_CONTENT)

    @router.delete("/adapters/{namespace}/{name}/revocation", status_code=_NO_CONTENT)
    def restore_adapter(namespace: Name, name: Name) -> Response:
        """Record that a TaskAdapter may use its Domain again."""
        with database.write() as session:
            adapters.delete_revocation(session, namespace, name)
        return Response(status_code=_NO_CONTENT)

    return router


def _declaration_routes(database: Database, door: RoleGuard, changes: ChangeSignal) -> APIRouter:
    router = APIRouter(route_class=door.only(Role.OPERATOR))

    @router.put("/cluster")
    def claim_catalog(claim: ClusterClaim) -> ClusterClaimed:
        """Claim this catalog for a cluster's operator; 409 while another cluster's operator uses it."""
        with database.write() as session:
            return clusters.claim_catalog(session, claim.uid)

    @router.put("/tenants/{tenant}", status_code=_NO_CONTENT)
    def ensure_tenant(tenant: Name) -> Response:
        """Create the tenant if it does not exist."""
        with database.write() as session:
            tenants.ensure_tenant(session, tenant)
        return Response(status_code=_NO_CONTENT)

    @router.put("/domains/{namespace}/{name}", status_code=_NO_CONTENT)
    def declare_domain(namespace: Name, name: Name, record: DomainRecord) -> Response:
        """Declare a Domain."""
        with database.write() as session:
            domains.declare_domain(session, namespace, name, record)
        return Response(status_code=_NO_CONTENT)

    @router.get("/domains")
    def list_domains(cursor: Cursor = None) -> DeclaredPage:
        """List the Domains of the catalog."""
        with database.read() as session:
            page = domains.list_domains(session, tenant=None, limit=MAX_PAGE_ITEMS, cursor=cursor)
            return _page(page.map(lambda row: Declared(key=row.key, uid=row.uid)))

    @router.get("/domains/{namespace}/{name}")
    def read_domain(namespace: Name, name: Name) -> DomainView:
        """Read a Domain and its current version."""
        with database.read() as session:
            return domains.get_domain_view(session, namespace, name)

    @router.delete("/domains/{namespace}/{name}", status_code=_NO_CONTENT)
    def delete_domain(namespace: Name, name: Name, uid: OnlyUid = None) -> Response:
        """Delete a Domain; 409 while TaskAdapters use it."""
        with database.write() as session:
            domains.delete_domain(session, namespace, name, uid=uid)
        return Response(status_code=_NO_CONTENT)

    @router.put("/adapters/{namespace}/{name}", status_code=_NO_CONTENT)
    def declare_adapter(namespace: Name, name: Name, record: AdapterRecord) -> Response:
        """Declare a TaskAdapter; 409 when the tenant has the name in another namespace."""
        with database.write() as session:
            adapters.declare_adapter(session, namespace, name, record)
        changes.notify()
        return Response(status_code=_NO_CONTENT)

    @router.post("/adapters/etags")
    def read_etags(wanted: AdapterKeys) -> AdapterETags:
        """Read the ETags of many TaskAdapters, to see which of them to read again."""
        with database.read() as session:
            return AdapterETags(etags=adapters.list_etags(session, wanted.keys))

    @router.get("/adapters")
    def list_adapters(
        cursor: Cursor = None,
        domain: Annotated[ResourceKey | None, Query(description="Only those on this Domain.")] = None,
    ) -> DeclaredPage:
        """List the TaskAdapters of the catalog."""
        with database.read() as session:
            page = adapters.list_adapters(session, domain=domain, limit=MAX_PAGE_ITEMS, cursor=cursor)
            return _page(page.map(lambda row: Declared(key=f"{row.namespace}/{row.name}", uid=row.uid)))

    @router.get("/adapters/{namespace}/{name}")
    def read_adapter(namespace: Name, name: Name) -> AdapterView:
        """Read a TaskAdapter, its current version, and where it is scheduled and loaded."""
        with database.read() as session:
            return adapters.get_adapter_view(session, namespace, name)

    @router.delete("/adapters/{namespace}/{name}", status_code=_NO_CONTENT)
    def delete_adapter(namespace: Name, name: Name, uid: OnlyUid = None) -> Response:
        """Delete a TaskAdapter."""
        with database.write() as session:
            adapters.delete_adapter(session, namespace, name, uid=uid)
        changes.notify()
        return Response(status_code=_NO_CONTENT)

    return router


def _page(page: Page[Declared]) -> DeclaredPage:
    return DeclaredPage(items=page.items, next_cursor=page.next_cursor)

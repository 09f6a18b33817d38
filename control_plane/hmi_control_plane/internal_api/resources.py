"""Tenants, Domains and TaskAdapters, as the reconciler declares and reads them."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from hmi_api.internal.catalog import (
    AdapterKeys,
    AdapterRecord,
    AdapterStamps,
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
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.auth import Door
from hmi_control_plane.catalog import adapters, clusters, domains, republish, revocation, stamps, tenants
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.paging import LARGEST_PAGE, Page
from hmi_control_plane.http.parameters import Name
from hmi_control_plane.internal_api.changes import Changes

_DONE = 204

OnlyUid = Annotated[Uid | None, Query(description="Erase only what was declared for this object.")]
Cursor = Annotated[str | None, Query(max_length=400, description="next_cursor of the page before.")]


def build(database: Database, door: Door, changes: Changes, files: ArtifactFiles) -> APIRouter:
    """Return the routes under ``/tenants``, ``/domains`` and ``/adapters``, which the operator calls."""
    router = APIRouter()
    router.include_router(_declared(database, door, changes))
    router.include_router(_revoked(database, door, changes))
    router.include_router(_published_again(database, door, changes, files))
    return router


def _published_again(database: Database, door: Door, changes: Changes, files: ArtifactFiles) -> APIRouter:
    router = APIRouter(route_class=door.only(Role.OPERATOR))

    def are_whole(found: republish.Earlier) -> bool:
        return all(files.is_whole(ref) for ref in found.artifacts)

    @router.post("/domains/{namespace}/{name}/publish-again")
    def publish_domain_again(namespace: Name, name: Name, wanted: PublishAgain) -> PublishedAgain:
        """Publish the version again that was made from the declared spec, where there is one."""
        with database.read() as session:
            found = republish.earlier_domain_version(session, namespace, name, wanted)
        if found is None or not are_whole(found):
            return PublishedAgain()
        with database.write() as session:
            number = republish.publish_domain_again(session, namespace, name, wanted, found.version)
        changes.notify()
        return PublishedAgain(version=number)

    @router.post("/adapters/{namespace}/{name}/publish-again")
    def publish_adapter_again(namespace: Name, name: Name, wanted: PublishAgain) -> PublishedAgain:
        """Publish the version again that was made from the declared spec, where there is one."""
        with database.read() as session:
            found = republish.earlier_adapter_version(session, namespace, name, wanted)
        if found is None or not are_whole(found):
            return PublishedAgain()
        with database.write() as session:
            number = republish.publish_adapter_again(session, namespace, name, wanted, found.version)
        changes.notify()
        return PublishedAgain(version=number)

    return router


def _revoked(database: Database, door: Door, changes: Changes) -> APIRouter:
    router = APIRouter(route_class=door.only(Role.OPERATOR))

    @router.put("/adapters/{namespace}/{name}/revocation", status_code=_DONE)
    def revoke_adapter(namespace: Name, name: Name, revoked: Revocation) -> Response:
        """Say that a TaskAdapter may not stand on its Domain any more, and when its grace time is over."""
        with database.write() as session:
            revocation.revoke(session, namespace, name, revoked)
        changes.notify()
        return Response(status_code=_DONE)

    @router.delete("/adapters/{namespace}/{name}/revocation", status_code=_DONE)
    def restore_adapter(namespace: Name, name: Name) -> Response:
        """Say that a TaskAdapter may stand on its Domain again."""
        with database.write() as session:
            revocation.restore(session, namespace, name)
        return Response(status_code=_DONE)

    return router


def _declared(database: Database, door: Door, changes: Changes) -> APIRouter:
    router = APIRouter(route_class=door.only(Role.OPERATOR))

    @router.put("/cluster")
    def claim_catalog(claim: ClusterClaim) -> ClusterClaimed:
        """Say which cluster's operator works on this catalog; 409 while another's does."""
        with database.write() as session:
            return clusters.claim(session, claim.uid)

    @router.put("/tenants/{tenant}", status_code=_DONE)
    def ensure_tenant(tenant: Name) -> Response:
        """Ensure that a tenant is there."""
        with database.write() as session:
            tenants.ensure_tenant(session, tenant)
        return Response(status_code=_DONE)

    @router.put("/domains/{namespace}/{name}", status_code=_DONE)
    def declare_domain(namespace: Name, name: Name, record: DomainRecord) -> Response:
        """Declare a Domain."""
        with database.write() as session:
            domains.declare_domain(session, namespace, name, record)
        return Response(status_code=_DONE)

    @router.get("/domains")
    def list_domains(cursor: Cursor = None) -> DeclaredPage:
        """List the Domains that the catalog has."""
        with database.read() as session:
            page = domains.list_domains(session, tenant=None, limit=LARGEST_PAGE, cursor=cursor)
            return _page(page.map(lambda row: Declared(key=row.key, uid=row.uid)))

    @router.get("/domains/{namespace}/{name}")
    def read_domain(namespace: Name, name: Name) -> DomainView:
        """Read a Domain and its current version."""
        with database.read() as session:
            return domains.domain_view(session, namespace, name)

    @router.delete("/domains/{namespace}/{name}", status_code=_DONE)
    def erase_domain(namespace: Name, name: Name, uid: OnlyUid = None) -> Response:
        """Erase a Domain; 409 while TaskAdapters stand on it."""
        with database.write() as session:
            domains.erase_domain(session, namespace, name, uid=uid)
        return Response(status_code=_DONE)

    @router.put("/adapters/{namespace}/{name}", status_code=_DONE)
    def declare_adapter(namespace: Name, name: Name, record: AdapterRecord) -> Response:
        """Declare a TaskAdapter; 409 when the tenant has the name in another namespace."""
        with database.write() as session:
            adapters.declare_adapter(session, namespace, name, record)
        changes.notify()
        return Response(status_code=_DONE)

    @router.post("/adapters/stamps")
    def read_stamps(wanted: AdapterKeys) -> AdapterStamps:
        """Read the stamps of many TaskAdapters, to see which of them to read again."""
        with database.read() as session:
            return AdapterStamps(stamps=stamps.adapter_stamps(session, wanted.keys))

    @router.get("/adapters")
    def list_adapters(
        cursor: Cursor = None,
        domain: Annotated[ResourceKey | None, Query(description="Only those on this Domain.")] = None,
    ) -> DeclaredPage:
        """List the TaskAdapters that the catalog has."""
        with database.read() as session:
            page = adapters.list_adapters(session, domain=domain, limit=LARGEST_PAGE, cursor=cursor)
            return _page(page.map(lambda row: Declared(key=f"{row.namespace}/{row.name}", uid=row.uid)))

    @router.get("/adapters/{namespace}/{name}")
    def read_adapter(namespace: Name, name: Name) -> AdapterView:
        """Read a TaskAdapter, its current version and where it is served."""
        with database.read() as session:
            return adapters.adapter_view(session, namespace, name)

    @router.delete("/adapters/{namespace}/{name}", status_code=_DONE)
    def erase_adapter(namespace: Name, name: Name, uid: OnlyUid = None) -> Response:
        """Erase a TaskAdapter."""
        with database.write() as session:
            adapters.erase_adapter(session, namespace, name, uid=uid)
        changes.notify()
        return Response(status_code=_DONE)

    return router


def _page(page: Page[Declared]) -> DeclaredPage:
    return DeclaredPage(items=page.items, next_cursor=page.next_cursor)

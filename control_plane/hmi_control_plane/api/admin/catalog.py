"""Lists of the catalog: Domains, adapters, artifacts, runs, runtimes, placements; and deletion of orphans."""

from collections.abc import Callable

from fastapi import APIRouter, Response

from hmi_api.internal.runtimes import ResidentBytes
from hmi_control_plane.api.admin.schemas import (
    ArtifactBody,
    Cursor,
    Limit,
    Listing,
    NamedAdapter,
    NamedDomain,
    PlacementBody,
    RunBody,
    RuntimeBody,
    TenantFilter,
    listing,
)
from hmi_control_plane.catalog import adapters, artifacts, domains, runs, runtimes
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.runs import run_view
from hmi_control_plane.catalog.tables import Artifact, Placement, Runtime, TrainingRun
from hmi_control_plane.http.parameters import Name, RuntimeId

_NO_CONTENT = 204


def build(database: Database, notify: Callable[[], None]) -> APIRouter:
    """Return the routes; ``notify`` is called after a desired state changed."""
    router = APIRouter()
    _add_resources(router, database)
    _add_deletions(router, database, notify)
    _add_runtimes(router, database)
    return router


def _add_resources(router: APIRouter, database: Database) -> None:
    @router.get("/domains")
    def list_domains(
        tenant: TenantFilter = None, limit: Limit = 100, cursor: Cursor = None
    ) -> Listing[NamedDomain]:
        """List Domains by namespace and name."""
        with database.read() as session:
            page = domains.list_domains(session, tenant=tenant, limit=limit, cursor=cursor)
            return listing(
                page.map(
                    lambda row: NamedDomain(
                        namespace=row.namespace, name=row.name, domain=domains.build_view(session, row)
                    )
                )
            )

    @router.get("/adapters")
    def list_adapters(
        tenant: TenantFilter = None, limit: Limit = 100, cursor: Cursor = None
    ) -> Listing[NamedAdapter]:
        """List TaskAdapters in the order of their declaration."""
        with database.read() as session:
            page = adapters.list_adapters(session, tenant=tenant, limit=limit, cursor=cursor)
            return listing(
                page.map(
                    lambda row: NamedAdapter(
                        namespace=row.namespace, name=row.name, adapter=adapters.build_view(session, row)
                    )
                )
            )

    @router.get("/artifacts")
    def list_artifacts(limit: Limit = 100, cursor: Cursor = None) -> Listing[ArtifactBody]:
        """List artifacts by digest."""
        with database.read() as session:
            page = artifacts.list_artifacts(session, limit=limit, cursor=cursor)
            return listing(page.map(_artifact_body))

    @router.get("/runs")
    def list_runs(tenant: TenantFilter = None, limit: Limit = 100, cursor: Cursor = None) -> Listing[RunBody]:
        """List training runs, the newest first."""
        with database.read() as session:
            page = runs.list_runs(session, tenant=tenant, limit=limit, cursor=cursor)
            return listing(page.map(_run_body))


def _add_deletions(router: APIRouter, database: Database, notify: Callable[[], None]) -> None:
    @router.delete("/adapters/{namespace}/{name}", status_code=_NO_CONTENT)
    def delete_adapter(namespace: Name, name: Name) -> Response:
        """Delete a TaskAdapter from the catalog; if its object still exists, it is trained again."""
        with database.write() as session:
            adapters.get_adapter(session, namespace, name)
            adapters.delete_adapter(session, namespace, name)
        notify()
        return Response(status_code=_NO_CONTENT)

    @router.delete("/domains/{namespace}/{name}", status_code=_NO_CONTENT)
    def delete_domain(namespace: Name, name: Name) -> Response:
        """Delete a Domain from the catalog; 409 while TaskAdapters use it."""
        with database.write() as session:
            domains.get_domain(session, namespace, name)
            domains.delete_domain(session, namespace, name)
        return Response(status_code=_NO_CONTENT)


def _add_runtimes(router: APIRouter, database: Database) -> None:
    @router.get("/runtimes")
    def list_runtimes(limit: Limit = 100, cursor: Cursor = None) -> Listing[RuntimeBody]:
        """List runtimes by id, including lost ones."""
        with database.read() as session:
            page = runtimes.list_runtimes(session, limit=limit, cursor=cursor)
            return listing(page.map(_runtime_body))

    @router.get("/runtimes/{runtime_id}/placements")
    def list_placements(
        runtime_id: RuntimeId, limit: Limit = 100, cursor: Cursor = None
    ) -> Listing[PlacementBody]:
        """List the placements on a runtime, by adapter."""
        with database.read() as session:
            page = runtimes.list_placements(session, runtime_id, limit=limit, cursor=cursor)
            return listing(page.map(_placement_body))


def _artifact_body(row: Artifact) -> ArtifactBody:
    return ArtifactBody(
        artifact=artifacts.artifact_ref(row), refcount=row.refcount, created_at=row.created_at
    )


def _run_body(row: TrainingRun) -> RunBody:
    return RunBody(
        tenant=row.tenant,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        run=run_view(row),
    )


def _runtime_body(row: Runtime) -> RuntimeBody:
    return RuntimeBody(
        id=row.id,
        url=row.url,
        device=row.device,
        capacity_bytes=row.capacity_bytes,
        placed_bytes=row.placed_bytes,
        free_bytes=row.free_bytes,
        queue_depth=row.queue_depth,
        resident=[ResidentBytes.model_validate(entry) for entry in row.resident],
        draining=row.draining,
        lost=row.lost,
        registered_at=row.registered_at,
        heartbeat_at=row.heartbeat_at,
    )


def _placement_body(row: Placement) -> PlacementBody:
    return PlacementBody(adapter=row.adapter_key, bytes=row.bytes, revision=row.revision)

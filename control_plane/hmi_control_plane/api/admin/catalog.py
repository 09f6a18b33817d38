"""Lists of the catalog: Domains, adapters, artifacts, runs, runtimes, placements, precision choices.

Also deletes orphans, and choices that are to be measured again.
"""

from collections.abc import Callable

from fastapi import APIRouter

from hmi_control_plane.api import NO_CONTENT
from hmi_control_plane.api.admin.schemas import (
    ArtifactBody,
    Listing,
    NamedAdapter,
    NamedDomain,
    Paging,
    PlacementBody,
    PrecisionChoiceBody,
    RunBody,
    RuntimeBody,
    TenantFilter,
    listing,
)
from hmi_control_plane.catalog import adapters, domains, runtimes
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.paging import list_page
from hmi_control_plane.catalog.resources import get_resource
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    Artifact,
    DomainRow,
    RecordedChoice,
    Runtime,
    TrainingRun,
)
from hmi_control_plane.http.parameters import ChoiceId, Name, RuntimeId


def build(database: Database, notify: Callable[[], None]) -> APIRouter:
    """Return the routes; ``notify`` is called after a desired state changed."""
    router = APIRouter()
    _add_resources(router, database)
    _add_deletions(router, database, notify)
    _add_runtimes(router, database)
    return router


def _add_resources(router: APIRouter, database: Database) -> None:
    @router.get("/domains")
    def list_domains(page: Paging, tenant: TenantFilter = None) -> Listing[NamedDomain]:
        """List Domains by namespace and name."""
        with database.read() as session:

            def named(row: DomainRow) -> NamedDomain:
                view = domains.build_view(session, row, lookups=True)
                return NamedDomain(namespace=row.namespace, name=row.name, domain=view)

            return listing(list_page(session, DomainRow, DomainRow.key, page, tenant=tenant), named)

    @router.get("/adapters")
    def list_adapters(page: Paging, tenant: TenantFilter = None) -> Listing[NamedAdapter]:
        """List TaskAdapters in the order of their declaration."""
        with database.read() as session:

            def named(row: AdapterRow) -> NamedAdapter:
                view = adapters.build_view(session, row)
                return NamedAdapter(namespace=row.namespace, name=row.name, adapter=view)

            return listing(list_page(session, AdapterRow, AdapterRow.id, page, tenant=tenant), named)

    @router.get("/artifacts")
    def list_artifacts(page: Paging) -> Listing[ArtifactBody]:
        """List artifacts by digest."""
        with database.read() as session:
            return listing(list_page(session, Artifact, Artifact.digest, page), ArtifactBody.of)

    @router.get("/runs")
    def list_runs(page: Paging, tenant: TenantFilter = None) -> Listing[RunBody]:
        """List training runs, the newest first."""
        with database.read() as session:
            found = list_page(session, TrainingRun, TrainingRun.id, page, descending=True, tenant=tenant)
            return listing(found, RunBody.of)


def _add_deletions(router: APIRouter, database: Database, notify: Callable[[], None]) -> None:
    @router.delete("/adapters/{namespace}/{name}", **NO_CONTENT)
    def delete_adapter(namespace: Name, name: Name) -> None:
        """Delete a TaskAdapter from the catalog; if its object still exists, it is trained again."""
        with database.write() as session:
            get_resource(session, AdapterRow, namespace, name)
            adapters.delete_adapter(session, namespace, name)
        notify()

    @router.delete("/domains/{namespace}/{name}", **NO_CONTENT)
    def delete_domain(namespace: Name, name: Name) -> None:
        """Delete a Domain from the catalog; 409 while TaskAdapters use it."""
        with database.write() as session:
            get_resource(session, DomainRow, namespace, name)
            domains.delete_domain(session, namespace, name)


def _add_runtimes(router: APIRouter, database: Database) -> None:
    @router.get("/runtimes")
    def list_runtimes(page: Paging) -> Listing[RuntimeBody]:
        """List runtimes by id, including lost ones."""
        with database.read() as session:
            return listing(list_page(session, Runtime, Runtime.id, page), RuntimeBody.model_validate)

    @router.get("/runtimes/{runtime_id}/placements")
    def list_placements(runtime_id: RuntimeId, page: Paging) -> Listing[PlacementBody]:
        """List the placements on a runtime, by adapter."""
        with database.read() as session:
            return listing(runtimes.list_placements(session, runtime_id, page), PlacementBody.model_validate)

    @router.get("/precision-choices")
    def list_precision_choices(page: Paging) -> Listing[PrecisionChoiceBody]:
        """List the precision choices of all pools, in the order in which they were recorded."""
        with database.read() as session:
            found = list_page(session, RecordedChoice, RecordedChoice.id, page)
            return listing(found, PrecisionChoiceBody.model_validate)

    @router.delete("/precision-choices/{choice_id}", **NO_CONTENT)
    def delete_precision_choice(choice_id: ChoiceId) -> None:
        """Delete a precision choice; the next runtime of the pool that starts measures again."""
        with database.write() as session:
            runtimes.delete_choice(session, choice_id)

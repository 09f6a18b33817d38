"""Routes as the catalog knows them."""

from collections.abc import Mapping, Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from hmi_api.names import AdapterKey, adapter_key
from hmi_api.resources.task_adapter import TaskType
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import AdapterRow, LoadReport, LoadState, Runtime, Tenant
from hmi_control_plane.gateway.absence import absences
from hmi_control_plane.gateway.routes import CatalogUnavailableError, ReadRoutes, Route, RuntimeAddress


def read_routes_from(database: Database) -> ReadRoutes:
    """Return a reader of routes for a ``RoutingTable``; it queries in a thread."""

    async def read(keys: Sequence[AdapterKey]) -> Mapping[AdapterKey, Route]:
        return await run_in_threadpool(_read, database, keys)

    return read


def _read(database: Database, keys: Sequence[AdapterKey]) -> dict[AdapterKey, Route]:
    try:
        with database.read() as session:
            return read_routes(session, keys)
    except SQLAlchemyError as error:
        raise CatalogUnavailableError(str(error)) from error


def read_routes(session: Session, keys: Sequence[AdapterKey]) -> dict[AdapterKey, Route]:
    """Return the routes of those ``keys`` that exist, in two queries; some more for what is not served."""
    names = [tuple(key.split("/", 1)) for key in keys]
    found = session.execute(
        select(AdapterRow, Tenant.id)
        .join(Tenant, Tenant.name == AdapterRow.tenant)
        .where(tuple_(AdapterRow.tenant, AdapterRow.name).in_(names))
    ).all()
    adapters = [adapter for adapter, _ in found]
    serving = _serving(session, {row.id: row.current_version for row in adapters})
    missing = absences(session, [row for row in adapters if row.id not in serving])
    routes = {}
    for row, tenant_id in found:
        key = adapter_key(row.tenant, row.name)
        runtimes, loaded = serving.get(row.id, ((), frozenset()))
        routes[key] = Route(
            key,
            tenant_id,
            TaskType(row.task_type),
            row.current_version,
            runtimes,
            loaded,
            missing.get(row.id),
        )
    return routes


_Serving = tuple[tuple[RuntimeAddress, ...], frozenset[int]]


def _serving(session: Session, current: Mapping[int, int | None]) -> dict[int, _Serving]:
    """Return by adapter id who serves it, and which versions; an older one serves until the new one does.

    A runtime that is about to stop is named only where nobody else serves the adapter yet.
    """
    rows = session.execute(
        select(LoadReport.adapter_id, LoadReport.version, Runtime.id, Runtime.url, Runtime.draining)
        .join(Runtime, Runtime.id == LoadReport.runtime_id)
        .where(
            LoadReport.adapter_id.in_(current),
            LoadReport.state == LoadState.READY,
            Runtime.lost.is_(False),
        )
        .order_by(LoadReport.version.desc(), Runtime.id)
    ).all()
    staying = {row.adapter_id for row in rows if not row.draining}
    rows = [row for row in rows if not row.draining or row.adapter_id not in staying]
    found: dict[int, dict[str, RuntimeAddress]] = {}
    versions: dict[int, set[int]] = {}
    for current_first in (True, False):
        for adapter_id, version, runtime_id, url, _ in rows:
            if (version == current[adapter_id]) is current_first:
                found.setdefault(adapter_id, {}).setdefault(runtime_id, RuntimeAddress(runtime_id, url))
                versions.setdefault(adapter_id, set()).add(version)
    return {
        adapter_id: (tuple(addresses.values()), frozenset(versions[adapter_id]))
        for adapter_id, addresses in found.items()
    }

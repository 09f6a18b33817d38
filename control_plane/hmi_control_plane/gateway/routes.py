"""The routing table: which runtimes can serve an adapter now, kept in memory for the adapters in use.

Only what is asked for is read, many adapters in one query, so its cost follows the traffic and not the number
of registered adapters. A route that serves is believed for a while and then read again in the background; one
that does not exist or does not serve yet is read again before it is answered, so that news shows at once.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from sqlalchemy import select, tuple_
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from hmi_api.names import AdapterKey, adapter_key
from hmi_api.resources.task_adapter import TaskType
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import AdapterRow, LoadReport, LoadState, Runtime, Tenant
from hmi_control_plane.gateway.unavailable_models import Absence, absences

_SHORTEST_BELIEF_SECONDS = 0.25
_LARGEST_READ = 500
_LONGEST_WAIT_SECONDS = 2.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RuntimeAddress:
    """A runtime that takes requests."""

    id: str
    url: str


@dataclass(frozen=True, slots=True)
class Route:
    """An adapter and the runtimes that say they can serve it, those with its current version first.

    ``tenant_id`` is whose it is: a name may have been another tenant's. ``loaded`` are the versions that they
    have; ``absence`` is why there is none.
    """

    key: AdapterKey
    tenant_id: str
    task_type: TaskType
    version: int | None
    runtimes: tuple[RuntimeAddress, ...]
    loaded: frozenset[int] = frozenset()
    absence: Absence | None = None


class CatalogUnavailableError(Exception):
    """The catalog cannot be read at the moment."""


ReadRoutes = Callable[[Sequence[AdapterKey]], Awaitable[Mapping[AdapterKey, Route]]]


@dataclass(slots=True)
class _Entry:
    route: Route | None
    read_at: float
    serves: bool


class RoutingTable:
    """Routes by adapter key. ``read`` asks the catalog for several; keys it does not know are left out.

    While the catalog is away, known routes go on; asking for others raises CatalogUnavailableError.

    Use it from one event loop.
    """

    def __init__(
        self,
        read: ReadRoutes,
        *,
        believe_seconds: float = 2.0,
        capacity: int = 200_000,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._read = read
        self._believe_seconds = believe_seconds
        self._capacity = capacity
        self._clock = clock
        self._entries: OrderedDict[AdapterKey, _Entry] = OrderedDict()
        self._reading: dict[AdapterKey, asyncio.Future[None]] = {}
        self._wanted: list[AdapterKey] = []
        self._reader: asyncio.Task[None] | None = None

    async def routes(self, keys: Collection[AdapterKey]) -> dict[AdapterKey, Route]:
        """Return the routes of ``keys``; those that do not exist are left out."""
        waiting = {key: reading for key in keys if (reading := self._freshen(key)) is not None}
        if waiting:
            # Not gathered: others wait for the same reads, which must not end with whoever gives up first.
            await asyncio.wait(waiting.values(), timeout=_LONGEST_WAIT_SECONDS)
        for key, reading in waiting.items():
            if reading.done():
                reading.result()
            elif not self._is_known(key):
                raise CatalogUnavailableError("the catalog takes too long")
        found = {}
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None and entry.route is not None:
                found[key] = entry.route
        return found

    def distrust(self, keys: Collection[AdapterKey]) -> None:
        """Have these routes read again before their next use: a runtime did not keep what they promise."""
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None:
                entry.serves, entry.read_at = False, float("-inf")

    async def close(self) -> None:
        """Wait for a read in progress."""
        if self._reader is not None:
            await self._reader

    def _freshen(self, key: AdapterKey) -> asyncio.Future[None] | None:
        """Have ``key`` read when its entry is old; return what to wait for, or None when it may be used."""
        entry = self._entries.get(key)
        if entry is None:
            return self._request(key)
        self._entries.move_to_end(key)
        age = self._clock() - entry.read_at
        if age < (self._believe_seconds if entry.serves else _SHORTEST_BELIEF_SECONDS):
            return None
        reading = self._request(key)
        return None if entry.serves else reading

    def _is_known(self, key: AdapterKey) -> bool:
        """Say whether a route was read that led somewhere, however long ago."""
        entry = self._entries.get(key)
        return entry is not None and entry.route is not None and bool(entry.route.runtimes)

    def _request(self, key: AdapterKey) -> asyncio.Future[None]:
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.get_running_loop().create_future()
            self._wanted.append(key)
            if self._reader is None:
                self._reader = asyncio.create_task(self._read_all(), name="gateway-routes")
        return reading

    async def _read_all(self) -> None:
        try:
            while self._wanted:
                keys, self._wanted = self._wanted[:_LARGEST_READ], self._wanted[_LARGEST_READ:]
                await self._read_some(keys)
        finally:
            self._reader = None

    async def _read_some(self, keys: list[AdapterKey]) -> None:
        try:
            routes = await self._read(keys)
        except CatalogUnavailableError as error:
            log.warning("routes could not be read: %s", error)
            self._fail(keys, error)
            return
        for key in keys:
            route = routes.get(key)
            serves = route is not None and bool(route.runtimes)
            self._entries[key] = _Entry(route, self._clock(), serves)
            self._entries.move_to_end(key)
            self._reading.pop(key).set_result(None)
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def _fail(self, keys: list[AdapterKey], error: CatalogUnavailableError) -> None:
        for key in keys:
            reading = self._reading.pop(key)
            entry = self._entries.get(key)
            if entry is not None and self._is_known(key):
                # The known route goes on, distrusted or not; it is read again after a while, not at once.
                entry.serves, entry.read_at = True, self._clock()
                reading.set_result(None)
            else:
                reading.set_exception(error)
                reading.exception()  # a read in the background has nobody who waits for it


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

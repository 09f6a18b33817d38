"""The routing table: which runtimes serve an adapter, cached for the adapters in use.

Only requested adapters are read, many in one query, so the cost depends on the traffic and not on the
number of adapters. A route with runtimes is cached for a while and then refreshed in the background. A
route that does not exist or has no runtimes is read again before it is used, so that changes show at once.
"""

import asyncio
import logging
from collections import OrderedDict, defaultdict
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
from hmi_control_plane.gateway.unavailable_models import Unavailability, explain_unavailable

_MIN_CACHE_SECONDS = 0.25
_MAX_KEYS_PER_READ = 500
MAX_WAIT_SECONDS = 2.0
"""How long a request waits for a route to be read."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RuntimeAddress:
    """The id and URL of a runtime."""

    id: str
    url: str


@dataclass(frozen=True, slots=True)
class Route:
    """An adapter and the runtimes that have it loaded, those with its current version first.

    ``tenant_id`` identifies the tenant even if its name belonged to another tenant before. ``loaded`` are the
    versions that the runtimes have; ``unavailable`` says why there are no runtimes.
    """

    key: AdapterKey
    tenant_id: str
    task_type: TaskType
    version: int | None
    runtimes: tuple[RuntimeAddress, ...]
    loaded: frozenset[int] = frozenset()
    unavailable: Unavailability | None = None


class CatalogUnavailableError(Exception):
    """The catalog cannot be read at the moment."""


ReadRoutes = Callable[[Sequence[AdapterKey]], Awaitable[Mapping[AdapterKey, Route]]]


@dataclass(slots=True)
class _Entry:
    route: Route | None
    read_at: float
    serves: bool


class RoutingTable:
    """A cache of routes by adapter key. ``read`` queries the catalog and omits keys that do not exist.

    While the catalog is unavailable, cached routes are used; others raise CatalogUnavailableError. Use it
    from one event loop.
    """

    def __init__(
        self,
        read: ReadRoutes,
        *,
        cache_seconds: float = 2.0,
        capacity: int = 200_000,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._read = read
        self._cache_seconds = cache_seconds
        self._capacity = capacity
        self._clock = clock
        self._entries: OrderedDict[AdapterKey, _Entry] = OrderedDict()
        self._reading: dict[AdapterKey, asyncio.Future[None]] = {}
        self._queue: list[AdapterKey] = []
        self._reader: asyncio.Task[None] | None = None

    async def routes(self, keys: Collection[AdapterKey]) -> dict[AdapterKey, Route]:
        """Return the routes of ``keys``, without those that do not exist."""
        waiting = {key: reading for key in keys if (reading := self._refresh(key)) is not None}
        if waiting:
            # Not asyncio.gather: a request that is cancelled must not cancel reads that others wait for.
            await asyncio.wait(waiting.values(), timeout=MAX_WAIT_SECONDS)
        for key, reading in waiting.items():
            if reading.done():
                reading.result()
            elif not self._has_runtimes(key):
                raise CatalogUnavailableError("the catalog does not answer in time")
        found = {}
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None and entry.route is not None:
                found[key] = entry.route
        return found

    def invalidate(self, keys: Collection[AdapterKey]) -> None:
        """Make the next use of these routes read them again: a runtime did not answer as they say."""
        for key in keys:
            entry = self._entries.get(key)
            if entry is not None:
                entry.serves, entry.read_at = False, float("-inf")

    async def close(self) -> None:
        """Wait for a read in progress."""
        if self._reader is not None:
            await self._reader

    def _refresh(self, key: AdapterKey) -> asyncio.Future[None] | None:
        """Start a read if the entry is old; return what to wait for, or None if the entry can be used."""
        entry = self._entries.get(key)
        if entry is None:
            return self._enqueue(key)
        self._entries.move_to_end(key)
        age = self._clock() - entry.read_at
        if age < (self._cache_seconds if entry.serves else _MIN_CACHE_SECONDS):
            return None
        reading = self._enqueue(key)
        return None if entry.serves else reading

    def _has_runtimes(self, key: AdapterKey) -> bool:
        """Return whether the cache has a route with runtimes, however old."""
        entry = self._entries.get(key)
        return entry is not None and entry.route is not None and bool(entry.route.runtimes)

    def _enqueue(self, key: AdapterKey) -> asyncio.Future[None]:
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.get_running_loop().create_future()
            self._queue.append(key)
            if self._reader is None:
                self._reader = asyncio.create_task(self._read_queue(), name="gateway-routes")
        return reading

    async def _read_queue(self) -> None:
        try:
            while self._queue:
                keys, self._queue = self._queue[:_MAX_KEYS_PER_READ], self._queue[_MAX_KEYS_PER_READ:]
                await self._read_batch(keys)
        finally:
            self._reader = None

    async def _read_batch(self, keys: list[AdapterKey]) -> None:
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
            if entry is not None and self._has_runtimes(key):
                # Use the cached route, even an invalidated one, for the cache time before the next read.
                entry.serves, entry.read_at = True, self._clock()
                reading.set_result(None)
            else:
                reading.set_exception(error)
                reading.exception()  # retrieved here, as nobody waits for a background read


def catalog_reader(database: Database) -> ReadRoutes:
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
    """Return the routes of the ``keys`` that exist, by two queries; more for models without runtimes."""
    names = [tuple(key.split("/", 1)) for key in keys]
    found = session.execute(
        select(AdapterRow, Tenant.id)
        .join(Tenant, Tenant.name == AdapterRow.tenant)
        .where(tuple_(AdapterRow.tenant, AdapterRow.name).in_(names))
    ).all()
    adapters = [adapter for adapter, _ in found]
    runtimes_of = _runtimes_of(session, {row.id: row.current_version for row in adapters})
    unavailable = explain_unavailable(session, [row for row in adapters if row.id not in runtimes_of])
    routes = {}
    for row, tenant_id in found:
        key = adapter_key(row.tenant, row.name)
        runtimes, loaded = runtimes_of.get(row.id, ((), frozenset()))
        routes[key] = Route(
            key,
            tenant_id,
            TaskType(row.task_type),
            row.current_version,
            runtimes,
            loaded,
            unavailable.get(row.id),
        )
    return routes


_Serving = tuple[tuple[RuntimeAddress, ...], frozenset[int]]


def _runtimes_of(session: Session, current: Mapping[int, int | None]) -> dict[int, _Serving]:
    """Return by adapter id the runtimes that serve it, and their versions, older ones included.

    A draining runtime is included only if no other runtime serves the adapter.
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
    not_draining = {row.adapter_id for row in rows if not row.draining}
    usable = [row for row in rows if not row.draining or row.adapter_id not in not_draining]
    found: dict[int, dict[str, RuntimeAddress]] = defaultdict(dict)
    versions: dict[int, set[int]] = defaultdict(set)
    # Runtimes with the current version come first.
    for row in sorted(usable, key=lambda row: row.version != current[row.adapter_id]):
        found[row.adapter_id].setdefault(row.id, RuntimeAddress(row.id, row.url))
        versions[row.adapter_id].add(row.version)
    return {
        adapter_id: (tuple(addresses.values()), frozenset(versions[adapter_id]))
        for adapter_id, addresses in found.items()
    }

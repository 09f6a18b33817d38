"""The routing table: few reads, current routes, and cached routes while the catalog is unavailable."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence

import pytest

from hmi_api.names import AdapterKey
from hmi_api.resources.task_adapter import TaskType
from hmi_control_plane.gateway.routes import CatalogUnavailableError, Route, RoutingTable, RuntimeAddress

SPAM, FRESH, ABSENT = AdapterKey("acme/spam"), AdapterKey("acme/fresh"), AdapterKey("acme/absent")


class Catalog:
    """A catalog that counts its reads, and a clock that only a test moves."""

    def __init__(self) -> None:
        self.reads: list[list[AdapterKey]] = []
        self.known: dict[AdapterKey, Route] = {SPAM: route(SPAM, "r1"), FRESH: route(FRESH)}
        self.away = False
        self.now = 0.0

    async def read(self, keys: Sequence[AdapterKey]) -> Mapping[AdapterKey, Route]:
        """Read routes."""
        await asyncio.sleep(0)
        self.reads.append(list(keys))
        if self.away:
            raise CatalogUnavailableError("away")
        return {key: self.known[key] for key in keys if key in self.known}

    def table(self, capacity: int = 100) -> RoutingTable:
        """Return a table over this catalog that caches a route for two seconds."""
        return RoutingTable(self.read, cache_seconds=2.0, capacity=capacity, clock=lambda: self.now)


def route(key: AdapterKey, *runtimes: str) -> Route:
    """Return a route to some runtimes."""
    addresses = tuple(RuntimeAddress(name, f"http://{name}") for name in runtimes)
    return Route(key, "tenant_1", TaskType.SEQUENCE_CLASSIFICATION, 1, addresses)


@pytest.fixture
def catalog() -> Catalog:
    """A catalog with one model that has runtimes and one that has none."""
    return Catalog()


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run one test in an event loop."""
    asyncio.run(test())


def test_a_cached_route_is_not_read_again(catalog: Catalog) -> None:
    async def test() -> None:
        table = catalog.table()
        for _ in range(100):
            assert (await table.routes([SPAM]))[SPAM].runtimes[0].id == "r1"
        assert len(catalog.reads) == 1

    run(test)


def test_many_uncached_routes_are_read_together(catalog: Catalog) -> None:
    async def test() -> None:
        table = catalog.table()
        found = await asyncio.gather(*(table.routes([SPAM, ABSENT]) for _ in range(50)))
        assert all(set(routes) == {SPAM} for routes in found)
        assert catalog.reads == [[SPAM, ABSENT]]

    run(test)


def test_an_old_route_is_used_while_it_is_read_again(catalog: Catalog) -> None:
    async def test() -> None:
        table = catalog.table()
        await table.routes([SPAM])
        catalog.known[SPAM] = route(SPAM, "r2")
        catalog.now = 2.5
        assert (await table.routes([SPAM]))[SPAM].runtimes[0].id == "r1"
        await table.close()
        assert (await table.routes([SPAM]))[SPAM].runtimes[0].id == "r2"

    run(test)


def test_a_route_without_runtimes_is_read_before_it_is_used(catalog: Catalog) -> None:
    async def test() -> None:
        table = catalog.table()
        assert (await table.routes([FRESH, ABSENT]))[FRESH].runtimes == ()
        catalog.known |= {FRESH: route(FRESH, "r1"), ABSENT: route(ABSENT, "r1")}
        catalog.now = 0.3
        assert set(await table.routes([FRESH, ABSENT])) == {FRESH, ABSENT}

    run(test)


def test_an_invalidated_route_is_read_before_it_is_used(catalog: Catalog) -> None:
    async def test() -> None:
        table = catalog.table()
        await table.routes([SPAM])
        catalog.known[SPAM] = route(SPAM, "r2")
        table.invalidate([SPAM, ABSENT])
        assert (await table.routes([SPAM]))[SPAM].runtimes[0].id == "r2"

    run(test)


def test_while_the_catalog_is_unavailable_cached_routes_are_used(catalog: Catalog) -> None:
    async def test() -> None:
        table = catalog.table()
        await table.routes([SPAM])
        catalog.away, catalog.now = True, 10.0
        for _ in range(10):
            assert SPAM in await table.routes([SPAM])
            await table.close()
        assert len(catalog.reads) == 2
        with pytest.raises(CatalogUnavailableError):
            await table.routes([FRESH])
        catalog.away = False
        assert FRESH in await table.routes([FRESH])

    run(test)


def test_the_table_keeps_the_routes_that_were_used_last(catalog: Catalog) -> None:
    async def test() -> None:
        table = catalog.table(capacity=1)
        await table.routes([SPAM])
        await table.routes([FRESH])
        await table.routes([SPAM])
        assert len(catalog.reads) == 3

    run(test)

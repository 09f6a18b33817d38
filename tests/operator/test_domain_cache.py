"""A Domain is asked for once by many, and nobody sees an older one than it was planned from itself."""

import asyncio
from typing import Any

import pytest
from planning_fixtures import DIGEST, domain_version

from hmi_api.internal.catalog import DomainRecord, DomainView
from hmi_api.names import DomainKey
from hmi_operator.observer import DOMAIN_CACHE_SECONDS, DomainCache

pytestmark = pytest.mark.anyio

KEY = DomainKey("shop/hotel")


class Catalog:
    """Answers with what it has when it is let go."""

    def __init__(self) -> None:
        self.view: DomainView | None = None
        self.asked = 0
        self.held: asyncio.Event | None = None

    async def domain(self, key: str) -> DomainView | None:
        self.asked += 1
        view, held = self.view, self.held
        if held is not None:
            await held.wait()
        return view


@pytest.fixture
def catalog() -> Any:
    return Catalog()


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def views(catalog: Any, now: list[float]) -> DomainCache:
    return DomainCache(catalog, clock=lambda: now[0])


def published() -> DomainView:
    record = DomainRecord(uid="u", tenant="acme", generation=1, spec_digest=DIGEST, base_uri="wheel://m")
    return DomainView(record=record, current=domain_version(DIGEST))


async def test_many_ask_once_for_a_while(catalog: Any, views: DomainCache, now: list[float]) -> None:
    catalog.view = published()
    assert [await views.get(KEY) for _ in range(3)] == [catalog.view] * 3
    assert catalog.asked == 1
    now[0] += DOMAIN_CACHE_SECONDS
    await views.get(KEY)
    assert catalog.asked == 2


async def test_that_there_is_none_is_remembered_too(catalog: Any, views: DomainCache) -> None:
    assert await views.get(KEY) is None
    assert await views.get(KEY) is None
    assert catalog.asked == 1


async def test_what_a_domain_was_planned_from_is_what_stands_on_it_sees(
    catalog: Any, views: DomainCache
) -> None:
    assert await views.get(KEY) is None
    catalog.view = published()
    assert await views.read(KEY) == catalog.view
    assert await views.get(KEY) == catalog.view


async def test_an_answer_that_comes_late_does_not_hide_a_newer_one(
    catalog: Any, views: DomainCache, now: list[float]
) -> None:
    catalog.held = asyncio.Event()
    late = asyncio.create_task(views.get(KEY))
    await asyncio.sleep(0)
    let_go, catalog.held = catalog.held, None
    catalog.view = published()
    now[0] += 1
    await views.read(KEY)
    let_go.set()
    assert await late is None
    assert await views.get(KEY) == catalog.view


async def test_what_was_erased_is_asked_for_again(catalog: Any, views: DomainCache) -> None:
    catalog.view = published()
    await views.get(KEY)
    catalog.view = None
    views.forget(KEY)
    assert await views.get(KEY) is None

"""A Domain is requested once for many TaskAdapters, and none sees an older one than it was planned from."""

import asyncio

import pytest
from fake_control_plane import FakeControlPlane
from fake_versions import StoredDomain
from planning_fixtures import DIGEST, domain_version

from hmi_api.internal.catalog import DomainRecord, DomainView
from hmi_api.internal.window_counts import DomainLookups
from hmi_api.names import DomainKey
from hmi_operator.observer import DOMAIN_CACHE_SECONDS, DomainCache

pytestmark = pytest.mark.anyio

KEY = DomainKey("shop/hotel")


@pytest.fixture
def plane() -> FakeControlPlane:
    return FakeControlPlane()


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def views(plane: FakeControlPlane, now: list[float]) -> DomainCache:
    return DomainCache(plane.client(), clock=lambda: now[0])


def publish(plane: FakeControlPlane) -> DomainView:
    """Publish the Domain; return its view."""
    record = DomainRecord(uid="u", tenant="acme", generation=1, spec_digest=DIGEST, base_uri="wheel://m")
    plane.catalog.domains[KEY] = StoredDomain(record, current=domain_version(DIGEST))
    shared = {"lookups": DomainLookups.of(0, 0), "tree": plane.windows.tree_of(KEY)}
    return plane.catalog.domain_view(KEY).model_copy(update=shared)


async def test_a_domain_is_requested_once_for_a_while(
    plane: FakeControlPlane, views: DomainCache, now: list[float]
) -> None:
    view = publish(plane)
    assert [await views.get(KEY) for _ in range(3)] == [view] * 3
    assert len(plane.requests) == 1
    now[0] += DOMAIN_CACHE_SECONDS
    await views.get(KEY)
    assert len(plane.requests) == 2


async def test_a_missing_domain_is_cached_too(plane: FakeControlPlane, views: DomainCache) -> None:
    assert await views.get(KEY) is None
    assert await views.get(KEY) is None
    assert len(plane.requests) == 1


async def test_a_read_domain_is_cached_for_its_dependents(
    plane: FakeControlPlane, views: DomainCache
) -> None:
    assert await views.get(KEY) is None
    view = publish(plane)
    assert await views.read(KEY) == view
    assert await views.get(KEY) == view


async def test_a_late_answer_does_not_hide_a_newer_one(
    plane: FakeControlPlane, views: DomainCache, now: list[float]
) -> None:
    answered = plane.hold(f"GET /domains/{KEY}")
    late = asyncio.create_task(views.get(KEY))
    await asyncio.sleep(0)
    assert plane.requests
    view = publish(plane)
    now[0] += 1
    await views.read(KEY)
    answered.set()
    assert await late is None
    assert await views.get(KEY) == view


async def test_a_deleted_domain_is_requested_again(plane: FakeControlPlane, views: DomainCache) -> None:
    publish(plane)
    await views.get(KEY)
    del plane.catalog.domains[KEY]
    views.forget(KEY)
    assert await views.get(KEY) is None

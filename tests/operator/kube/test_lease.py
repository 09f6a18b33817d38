"""Which of several replicas may act, on a real API server and with clocks that a test moves."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from kube_objects import LEASES
from operator_harness import DOMAINS, Cluster, PromptJobs

from hmi_api.errors import NotReady
from hmi_api.internal.client import ControlPlaneClient
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.handlers import list_all
from hmi_operator.kubernetes.lease import Lease
from hmi_operator.kubernetes.store import KubeResourceStore
from hmi_operator.ports import Ports
from hmi_operator.reconciler import Reconciler

pytestmark = pytest.mark.anyio

SECONDS = 6.0


@dataclass
class Clock:
    """A clock that a test moves."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lease_of(here: Cluster, clock: Clock, name: str) -> Lease:
    return Lease(here.client, here.namespace, name, seconds=SECONDS, clock=clock)


async def holder(here: Cluster) -> Any:
    found = await here.get(LEASES, "hmi-operator")
    assert found is not None
    return found["spec"]["holderIdentity"]


async def acquires(lease: Lease) -> bool:
    """Return whether one attempt gets the lease: ``acquire`` returns at once or not at all."""
    try:
        async with asyncio.timeout(lease.every):
            await lease.acquire()
    except TimeoutError:
        return False
    return True


async def test_a_second_replica_waits_until_the_lease_expires(here: Cluster, clock: Clock) -> None:
    first, second = lease_of(here, clock, "first"), lease_of(here, clock, "second")
    await first.acquire()
    assert first.held
    assert not await acquires(second)
    clock.now += SECONDS * 0.9
    assert not first.held, "the first stops before the second may start"
    assert not await acquires(second)
    clock.now += SECONDS * 0.1
    assert await acquires(second)
    assert (second.held, await holder(here)) == (True, "second")
    found = await here.get(LEASES, "hmi-operator")
    assert found is not None
    assert found["spec"]["leaseTransitions"] == 1


async def test_a_suspended_replica_neither_acts_nor_takes_the_lease_back(here: Cluster, clock: Clock) -> None:
    first, second = lease_of(here, clock, "first"), lease_of(here, clock, "second")
    await first.acquire()
    assert not await acquires(second)
    clock.now += SECONDS
    assert await acquires(second)
    with pytest.raises(NotReady):
        first.require_held()
    await first.keep()
    assert not await acquires(first)
    assert await holder(here) == "second"


async def test_the_reconciler_does_nothing_without_the_lease(
    here: Cluster, clock: Clock, served: Any, domain_body: dict[str, Any]
) -> None:
    made = await here.apply(domain_body)
    cache = ResourceCache()
    await list_all(here.client, cache, [here.namespace])
    lease = lease_of(here, clock, "first")
    await lease.acquire()
    clock.now += SECONDS
    async with ControlPlaneClient(served.url, served.token) as control_plane:
        store = KubeResourceStore(here.client, cache)
        engine = Reconciler(
            Ports(store, control_plane, PromptJobs(served.url, served.token), lease.require_held)
        )
        with pytest.raises(NotReady, match="NotLeader"):
            await engine.reconcile(cache.refs()[0])
    assert await here.get(DOMAINS, "hotel") == made
    assert served.catalog.tenants == set()


async def test_a_released_lease_is_free_at_once(here: Cluster, clock: Clock) -> None:
    first, second = lease_of(here, clock, "first"), lease_of(here, clock, "second")
    await first.acquire()
    await first.release()
    assert not first.held
    assert await acquires(second)
    await first.release()
    assert await holder(here) == "second", "a lease that was lost is not released"


async def test_the_same_replica_takes_its_own_lease_after_a_restart(here: Cluster, clock: Clock) -> None:
    await lease_of(here, clock, "first").acquire()
    assert await acquires(lease_of(here, clock, "first"))


async def test_keep_renews_the_lease_until_it_is_taken(here: Cluster) -> None:
    first = Lease(here.client, here.namespace, "first", seconds=2.0)
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    second = Lease(here.client, here.namespace, "second", seconds=2.0)
    assert not await acquires(second)
    await second.seize()
    async with asyncio.timeout(10):
        await keeping
    assert not first.held
    assert second.held
    assert await holder(here) == "second"

"""Uninstallation: resources without an operator can be deleted."""

import asyncio
from typing import Any

import pytest
from kube_objects import LEASES
from operator_harness import DOMAINS, TASK_ADAPTERS, Cluster, is_ready, replica

from hmi_operator.kubernetes.lease import Lease
from hmi_operator.kubernetes.remove_finalizers import remove_finalizers

pytestmark = pytest.mark.anyio


async def test_a_deletion_without_an_operator_waits_until_it_is_released(
    here: Cluster, served: Any, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace, seconds=2.0) as one:
        await here.apply_all(domain_body, adapter_body)
        await here.reached(TASK_ADAPTERS, "topic", is_ready)
        # The operator is still there, as at the start of an uninstallation.
        releasing = Lease(here.client, here.namespace, "release", seconds=2.0)
        assert await remove_finalizers(here.client, releasing, [here.namespace]) == 2
        assert not one.operator.leads
        for kind, name in ((DOMAINS, "hotel"), (TASK_ADAPTERS, "topic")):
            found = await here.get(kind, name)
            assert found is not None, "what is declared stays"
            assert "finalizers" not in found["metadata"]
            assert is_ready(found)
    await here.delete(TASK_ADAPTERS, "topic")
    await here.delete(DOMAINS, "hotel")
    await here.gone(TASK_ADAPTERS, "topic")
    await here.gone(DOMAINS, "hotel")


async def test_a_new_installation_continues_with_released_resources(
    here: Cluster, served: Any, domain_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace):
        await here.apply(domain_body)
        await here.reached(DOMAINS, "hotel", is_ready)
    await remove_finalizers(
        here.client, Lease(here.client, here.namespace, "release", seconds=2.0), [here.namespace]
    )
    await here.delete(LEASES, "hmi-operator")  # else it is waited for, a minute
    async with replica(served, here.namespace), asyncio.timeout(20):
        await here.reached(DOMAINS, "hotel", lambda found: "finalizers" in found["metadata"])
    assert len(served.catalog.created_runs) == 1

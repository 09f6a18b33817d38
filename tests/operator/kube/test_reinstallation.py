"""A new installation on an existing catalog: manifests are adopted, and records without objects deleted."""

from typing import Any

import pytest
from kube_objects import EVENTS
from operator_harness import (
    DOMAINS,
    TASK_ADAPTERS,
    Cluster,
    condition,
    has_phase,
    is_ready,
    replica,
    until,
)

from hmi_operator.orphans import OrphanGrace

pytestmark = pytest.mark.anyio

BOTH = ((TASK_ADAPTERS, "topic"), (DOMAINS, "hotel"))


async def apply(here: Cluster, *bodies: dict[str, Any]) -> None:
    for body in bodies:
        await here.apply(body)


async def leave_behind(here: Cluster, served: Any, *bodies: dict[str, Any]) -> None:
    """Fill a catalog, uninstall HMI, and delete the objects while no operator is there."""
    async with replica(served, here.namespace):
        await apply(here, *bodies)
        for kind, name in BOTH:
            await here.reached(kind, name, is_ready)
    for kind, name in BOTH:
        # As the chart's hook removes all finalizers.
        await here.api.merge_patch(kind, here.namespace, name, {"metadata": {"finalizers": []}})
        await here.delete(kind, name)
        await here.gone(kind, name)


async def test_the_same_files_applied_again_are_adopted_without_training(
    here: Cluster, served: Any, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    await leave_behind(here, served, domain_body, adapter_body)
    runs = set(served.catalog.created_runs)
    async with replica(served, here.namespace, name="replica-2") as again:
        await apply(here, adapter_body, domain_body)  # in any order
        for kind, name in BOTH:
            found = await here.reached(kind, name, is_ready)
            table = served.catalog.domains if kind is DOMAINS else served.catalog.adapters
            assert table[f"{here.namespace}/{name}"].record.uid == found["metadata"]["uid"]
            assert found["status"]["version"] == 1
        assert again.jobs.started == []
    assert set(served.catalog.created_runs) == runs


async def test_a_record_without_an_object_is_deleted_with_an_event(
    here: Cluster, served: Any, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    await leave_behind(here, served, domain_body, adapter_body)
    async with replica(served, here.namespace, name="replica-2", grace=OrphanGrace(seconds=0.0)):

        async def deleted() -> bool:
            return not served.catalog.domains and not served.catalog.adapters

        await until(deleted)

        async def orphan_events() -> set[str]:
            events = here.api.list(EVENTS, here.namespace, fieldSelector="reason=OrphanErased")
            found = {event["regarding"]["name"] async for event in events}
            return found if found == {"topic", "hotel"} else set()

        await until(orphan_events)


async def test_a_domain_is_not_blocked_by_adapters_deleted_without_a_finalizer(
    here: Cluster, served: Any, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    await leave_behind(here, served, domain_body, adapter_body)
    async with replica(served, here.namespace, name="replica-2"):
        await here.apply(domain_body)
        await here.reached(DOMAINS, "hotel", is_ready)
        await here.delete(DOMAINS, "hotel")
        await here.gone(DOMAINS, "hotel")
        assert (served.catalog.domains, served.catalog.adapters) == ({}, {})


async def test_nothing_is_reconciled_while_the_catalog_belongs_to_another_cluster(
    here: Cluster, served: Any, domain_body: dict[str, Any]
) -> None:
    served.plane.cluster = "another"
    async with replica(served, here.namespace) as one:
        await here.apply(domain_body)

        async def leads() -> bool:
            return one.lease.held

        await until(leads)
        assert not one.operator.leads
        assert served.catalog.domains == {}
        served.plane.cluster = None
        await here.reached(DOMAINS, "hotel", is_ready)


async def test_a_resource_created_after_a_seen_deletion_is_a_new_one(
    here: Cluster, served: Any, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace) as one:
        await apply(here, domain_body, adapter_body)
        first = await here.reached(TASK_ADAPTERS, "topic", is_ready)
        uid = first["metadata"]["uid"]
        # By force, so that nothing is deleted before the object is gone.
        one.jobs.paused = True
        refusing = served.plane.fail(409, "NotNow", request="DELETE /adapters/", times=1_000_000)
        await here.delete(TASK_ADAPTERS, "topic")
        await here.reached(TASK_ADAPTERS, "topic", has_phase("Terminating"))
        patch = {"metadata": {"finalizers": []}}
        await here.api.merge_patch(TASK_ADAPTERS, here.namespace, "topic", patch)
        await here.gone(TASK_ADAPTERS, "topic")
        refusing.left = 0
        await here.apply(adapter_body)
        again = await here.reached(TASK_ADAPTERS, "topic", has_phase("Training"))
        assert again["metadata"]["uid"] != uid
        assert condition(again, "Published") is not None
        assert len(one.jobs.started) == 3

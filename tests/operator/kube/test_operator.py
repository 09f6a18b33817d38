"""The operator on a real API server, with a control plane behind HTTP and trainings that end at once."""

import asyncio
import copy
from typing import Any

import pytest
from kube_objects import NAMESPACES
from kube_server import KubeServer
from operator_harness import (
    DOMAINS,
    TASK_ADAPTERS,
    Cluster,
    cluster,
    condition,
    has_phase,
    is_ready,
    replica,
    until,
)

from hmi_operator.kubernetes.lease import boot_clock

pytestmark = pytest.mark.anyio


def reason(manifest: dict[str, Any], type_: str) -> str:
    found = condition(manifest, type_)
    assert found is not None, f"there is no condition {type_}"
    return found.reason


async def test_an_adapter_applied_before_its_domain_becomes_ready(
    here: Cluster, served: Any, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace):
        await here.apply(adapter_body)
        waiting = await here.reached(TASK_ADAPTERS, "topic", has_phase("Waiting"))
        assert reason(waiting, "DomainReady") == "DomainNotFound"
        await here.apply(domain_body)
        adapter = await here.reached(TASK_ADAPTERS, "topic", is_ready)
        assert adapter["status"]["observedGeneration"] == adapter["metadata"]["generation"]
        assert adapter["metadata"]["finalizers"] == ["hmi.dev/cleanup"]
        assert is_ready(await here.reached(DOMAINS, "hotel", is_ready))


async def test_transition_times_stay_while_a_condition_stays(
    here: Cluster, served: Any, domain_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace):
        await here.apply(domain_body)
        first = condition(await here.reached(DOMAINS, "hotel", is_ready), "Ready")
        domain_body["spec"]["training"] = {"steps": 7}
        changed = await here.apply(domain_body)
        generation = changed["metadata"]["generation"]
        later = await here.reached(
            DOMAINS,
            "hotel",
            lambda found: found["status"]["observedGeneration"] == generation and is_ready(found),
        )
        again = condition(later, "Ready")
        assert first is not None
        assert again is not None
        assert again.last_transition_time == first.last_transition_time
        assert again.observed_generation == generation
        assert later["status"]["version"] == 2


async def test_progress_of_a_training_run_is_reported(
    here: Cluster, served: Any, domain_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace) as one:
        one.jobs.paused = True
        await here.apply(domain_body)
        found = await here.reached(DOMAINS, "hotel", lambda found: "progress" in found.get("status", {}))
        assert found["status"]["progress"] == "training 120/400"
        assert found["status"]["phase"] == "Training"
        assert found["status"]["runRef"] == one.jobs.started[0]


async def test_deleting_a_domain_waits_for_its_dependents(
    here: Cluster, served: Any, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace) as one:
        await here.apply_all(domain_body, adapter_body)
        await here.reached(TASK_ADAPTERS, "topic", is_ready)
        await here.delete(DOMAINS, "hotel")
        domain_object = await here.reached(DOMAINS, "hotel", has_phase("Terminating"))
        assert reason(domain_object, "Ready") == "InUse"
        await here.delete(TASK_ADAPTERS, "topic")
        await here.gone(TASK_ADAPTERS, "topic")
        await here.gone(DOMAINS, "hotel")
        assert (served.catalog.domains, served.catalog.adapters) == ({}, {})
        assert domain_object["metadata"]["uid"] in one.jobs.deleted


async def test_a_deletion_waits_for_the_control_plane_and_reports_it(
    here: Cluster, served: Any, domain_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace):
        await here.apply(domain_body)
        await here.reached(DOMAINS, "hotel", is_ready)
        failing = served.plane.fail(503, times=1_000_000)
        await here.delete(DOMAINS, "hotel")
        domain_object = await here.reached(
            DOMAINS, "hotel", lambda found: reason(found, "Ready") == "ControlPlaneUnavailable"
        )
        assert domain_object["status"]["phase"] == "Terminating"
        failing.left = 0
        await here.gone(DOMAINS, "hotel")


async def test_a_served_adapter_keeps_its_status_while_the_control_plane_is_away(
    here: Cluster, served: Any, domain_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace):
        await here.apply(domain_body)
        before = await here.reached(DOMAINS, "hotel", is_ready)
        failing = served.plane.fail(503, times=8)
        domain_body["spec"]["training"] = {"steps": 9}
        await here.apply(domain_body)
        after = await here.reached(DOMAINS, "hotel", lambda found: found["status"]["version"] == 2)
        assert failing.left == 0
        assert before["status"]["version"] == 1
        assert is_ready(await here.reached(DOMAINS, "hotel", is_ready))
        assert reason(after, "Ready") in ("Serving", "PreviousVersion")


async def test_an_edited_status_is_corrected(here: Cluster, served: Any, domain_body: dict[str, Any]) -> None:
    async with replica(served, here.namespace):
        await here.apply(domain_body)
        before = await here.reached(DOMAINS, "hotel", is_ready)
        wrong = {"status": {"phase": "Failed", "version": 99, "conditions": [], "runRef": "nobody"}}
        await here.api.merge_patch(DOMAINS, here.namespace, "hotel", wrong, "status")
        after = await here.reached(
            DOMAINS, "hotel", lambda found: is_ready(found) and found["status"].get("version") == 1
        )
        after_conditions = {one["type"]: one["status"] for one in after["status"]["conditions"]}
        assert after_conditions == {one["type"]: one["status"] for one in before["status"]["conditions"]}
        assert len(served.catalog.created_runs) == 1


async def test_conditions_of_other_controllers_are_kept(
    here: Cluster, served: Any, domain_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace):
        made = await here.apply(domain_body)
        foreign = {
            "type": "acme.com/Approved",
            "status": "True",
            "reason": "Requested",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        present = made.get("status", {}).get("conditions", [])
        patch = {"status": {"conditions": [*present, foreign]}}
        await here.api.merge_patch(DOMAINS, here.namespace, "hotel", patch, "status")
        found = await here.reached(DOMAINS, "hotel", is_ready)
        assert foreign["type"] in [one["type"] for one in found["status"]["conditions"]]


async def test_a_restart_writes_nothing_and_trains_nothing_again(
    here: Cluster, served: Any, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace):
        await here.apply_all(domain_body, adapter_body)
        await here.reached(TASK_ADAPTERS, "topic", is_ready)
        await here.reached(DOMAINS, "hotel", is_ready)
    before = [await here.get(DOMAINS, "hotel"), await here.get(TASK_ADAPTERS, "topic")]
    async with replica(served, here.namespace, name="replica-2") as again:
        await until(lambda: _true(lambda: again.operator.leads))
        for name in ("inn", "motel"):  # later entries of the queue are done once these are
            later = copy.deepcopy(domain_body)
            later["metadata"]["name"] = name
            await here.apply(later)
            await here.reached(DOMAINS, name, is_ready)
    after = [await here.get(DOMAINS, "hotel"), await here.get(TASK_ADAPTERS, "topic")]
    assert after == before
    assert len(served.catalog.created_runs) == 4


async def test_a_domain_of_another_namespace_must_be_shared(
    here: Cluster,
    kubeconfig: KubeServer,
    served: Any,
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
) -> None:
    async with cluster(kubeconfig, f"{here.namespace}-b") as there:
        adapter_body["spec"]["domainRef"] = {"name": "hotel", "namespace": here.namespace}
        async with replica(served, here.namespace, also=(there.namespace,)):
            await here.apply(domain_body)
            await there.apply(adapter_body)
            await here.reached(DOMAINS, "hotel", is_ready)
            refused = await there.reached(TASK_ADAPTERS, "topic", has_phase("Failed"))
            assert reason(refused, "Accepted") == "NotShared"
            domain_body["spec"]["sharing"] = {"namespaces": [there.namespace]}
            await here.apply(domain_body)
            await there.reached(TASK_ADAPTERS, "topic", is_ready)


async def test_a_namespaces_label_names_its_tenant(
    here: Cluster, served: Any, domain_body: dict[str, Any]
) -> None:
    label = {"metadata": {"labels": {"hmi.dev/tenant": "acme"}}}
    await here.api.merge_patch(NAMESPACES, None, here.namespace, label)
    async with replica(served, here.namespace):
        await here.apply(domain_body)
        await here.reached(DOMAINS, "hotel", is_ready)
    assert served.catalog.tenants == {"acme"}


async def test_a_resource_that_is_deleted_and_created_again_is_another(
    here: Cluster, served: Any, domain_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace):
        await here.apply(domain_body)
        first = await here.reached(DOMAINS, "hotel", is_ready)
        await here.delete(DOMAINS, "hotel")
        await here.gone(DOMAINS, "hotel")
        await here.apply(domain_body)
        second = await here.reached(DOMAINS, "hotel", is_ready)
        assert first["metadata"]["uid"] != second["metadata"]["uid"]
        assert second["status"]["version"] == 1
        assert len(served.catalog.created_runs) == 2


async def test_a_replica_is_not_ready_while_it_cannot_acquire_the_lease(here: Cluster, served: Any) -> None:
    later = 0.0
    async with replica(served, here.namespace, seconds=4.0, clock=lambda: boot_clock() + later) as one:
        await until(lambda: _true(lambda: one.operator.leads and one.operator.problem() is None))
        later = 100.0
        assert "could not be read or renewed for" in (one.operator.problem() or "")
        await until(lambda: _true(lambda: one.operator.problem() is None))


async def test_the_lease_is_released_at_the_end(here: Cluster, served: Any) -> None:
    async with replica(served, here.namespace, name="first", seconds=60.0) as one:
        await until(lambda: _true(lambda: one.operator.leads))
    async with replica(served, here.namespace, name="second", seconds=60.0) as other:
        async with asyncio.timeout(20):
            await until(lambda: _true(lambda: other.operator.leads))


async def _true(condition: Any) -> bool:
    return bool(condition())

"""How users and tools wait for a change, on a real API server: kubectl wait, scale and get, and kstatus."""

import asyncio
from typing import Any

import pytest
from kube_server import KubeServer
from operator_harness import DOMAINS, TASK_ADAPTERS, Cluster, is_ready, replica
from support_kstatus import health_of

pytestmark = pytest.mark.anyio

ADAPTER = "taskadapter/topic"


async def kubectl(server: KubeServer, here: Cluster, *arguments: str, check: bool = True) -> str:
    return await asyncio.to_thread(server.kubectl, "-n", here.namespace, *arguments, check=check)


async def waits(server: KubeServer, here: Cluster, what: str, *, for_: str, seconds: int = 60) -> bool:
    """Run ``kubectl wait``; return whether it came to be in time."""
    arguments = ("wait", what, f"--for={for_}", f"--timeout={seconds}s")
    return "condition met" in await kubectl(server, here, *arguments, check=False)


async def test_waiting_for_a_change_ends_when_the_new_version_is_loaded(
    kubeconfig: KubeServer,
    here: Cluster,
    served: Any,
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
) -> None:
    async with replica(served, here.namespace) as one:
        await here.apply_all(domain_body, adapter_body)
        assert await waits(kubeconfig, here, ADAPTER, for_="condition=Loaded")
        one.jobs.paused = True
        adapter_body["spec"]["training"] = {"epochs": 7}
        await here.apply(adapter_body)
        assert await waits(kubeconfig, here, ADAPTER, for_="condition=Ready"), "the version before serves"
        assert not await waits(kubeconfig, here, ADAPTER, for_="condition=Loaded", seconds=1)
        assert not await waits(kubeconfig, here, ADAPTER, for_="condition=Reconciling=False", seconds=1)
        (run,) = [run for run in served.catalog.runs.values() if run.result is None]
        await one.jobs.finish(run)
        assert await waits(kubeconfig, here, ADAPTER, for_="condition=Loaded")
        assert await waits(kubeconfig, here, ADAPTER, for_="condition=Reconciling=False")
        found = await here.get(TASK_ADAPTERS, "topic")
        assert found is not None
        assert found["status"]["version"] == 2
        assert health_of(found) == "Current"


async def test_an_earlier_spec_is_published_again_without_training(
    kubeconfig: KubeServer,
    here: Cluster,
    served: Any,
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
) -> None:
    def has_version(number: int) -> Any:
        return lambda found: found["status"].get("version") == number and health_of(found) == "Current"

    async with replica(served, here.namespace) as one:
        for body, kind, name in ((domain_body, DOMAINS, "hotel"), (adapter_body, TASK_ADAPTERS, "topic")):
            await here.apply(body)
            await here.reached(kind, name, has_version(1))
        for epochs, number in ((7, 2), (10, 3)):
            adapter_body["spec"]["training"] = {"epochs": epochs}
            await here.apply(adapter_body)
            await here.reached(TASK_ADAPTERS, "topic", has_version(number))
        assert len(one.jobs.started) == 3, "the Domain, and two specs of the TaskAdapter"


async def test_a_resource_that_no_operator_has_seen_is_in_progress(
    kubeconfig: KubeServer, here: Cluster, domain_body: dict[str, Any]
) -> None:
    made = await here.apply(domain_body)
    assert health_of(made) == "InProgress"
    assert (made["status"]["observedGeneration"], made["status"]["phase"]) == (-1, "Pending")


async def test_a_task_adapter_is_scaled_by_kubectl(
    kubeconfig: KubeServer,
    here: Cluster,
    served: Any,
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
) -> None:
    async with replica(served, here.namespace):
        await here.apply_all(domain_body, adapter_body)
        await here.reached(TASK_ADAPTERS, "topic", is_ready)
        await kubectl(kubeconfig, here, "scale", "ta/topic", "--replicas=3")
        key = f"{here.namespace}/topic"
        await here.reached(
            TASK_ADAPTERS, "topic", lambda found: served.catalog.adapters[key].record.replicas == 3
        )
        scale = kubeconfig.read(
            f"/apis/hmi.dev/v1alpha1/namespaces/{here.namespace}/taskadapters/topic/scale"
        )
        assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (3, 1)
        assert len(served.catalog.created_runs) == 2, "it is not trained again"


async def test_kubectl_get_shows_progress_and_wide_the_message(
    kubeconfig: KubeServer, here: Cluster, served: Any, domain_body: dict[str, Any]
) -> None:
    async with replica(served, here.namespace) as one:
        one.jobs.paused = True
        await here.apply(domain_body)
        await here.reached(DOMAINS, "hotel", lambda found: "progress" in found.get("status", {}))
        table = await kubectl(kubeconfig, here, "get", "dom")
        assert "PROGRESS" in table
        assert "training 120/400" in table
        wide = await kubectl(kubeconfig, here, "get", "hmi", "-o", "wide")
        assert "MESSAGE" in wide
        assert "is running." in wide

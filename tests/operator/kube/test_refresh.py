"""A refresh of a Domain's table and its rollback on a real API server, as users of kubectl see them."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from fake_window_counts import window_array
from kube_server import KubeServer
from operator_harness import DOMAINS, TASK_ADAPTERS, Cluster, condition, is_ready, replica, until

from hmi_api.internal.window_counts import DomainWindows, TenantWindows, WindowCountReport
from hmi_api.names import REFRESH_ANNOTATION, TABLE_VERSION_ANNOTATION

pytestmark = pytest.mark.anyio
REFRESHES = {"plot": {"refresh": {"schedule": "0 0 31 12 *", "minMissRate": 1}}}


def look_up(served: Any, key: str) -> None:
    """Report what a runtime looked up in a Domain: 400 windows, 300 of which its table had."""
    current = served.plane.catalog.domains[key].current
    counted = DomainWindows(
        domain=key,
        version=current.version,
        layers_digest=current.layers.digest,
        lookups=400,
        hits=300,
        tenants=[TenantWindows(tenant_id="tenant_a", **window_array({7: 3}).model_dump())],
    )
    served.plane.windows.record(WindowCountReport(incarnation="i1", sequence=1, domains=[counted]))


async def annotate(kube: KubeServer, namespace: str, annotation: str) -> None:
    await asyncio.to_thread(
        kube.kubectl, "-n", namespace, "annotate", "--overwrite", "dom", "hotel", annotation
    )


def refreshed(reason: str, version: int) -> Callable[[dict[str, Any]], bool]:
    def check(manifest: dict[str, Any]) -> bool:
        found = condition(manifest, "Refreshed")
        return found is not None and found.reason == reason and manifest["status"]["version"] == version

    return check


async def notes(kube: KubeServer, namespace: str, reason: str) -> list[str]:
    """The Events of a reason, once there are any."""

    async def find() -> list[str]:
        query = ("-n", namespace, "get", "events.events.k8s.io", "-o", "json")
        found = json.loads(await asyncio.to_thread(kube.kubectl, *query))["items"]
        return [event["note"] for event in found if event["reason"] == reason]

    sent: list[str] = await until(find)
    return sent


async def test_an_annotation_refreshes_a_table_and_another_puts_it_back(
    here: Cluster,
    kube: KubeServer,
    served: Any,
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
) -> None:
    domain_body["spec"] |= REFRESHES
    async with replica(served, here.namespace) as one:
        await here.apply_all(domain_body, adapter_body)
        await here.reached(DOMAINS, "hotel", refreshed("RefreshWaits", 1))
        await here.reached(TASK_ADAPTERS, "topic", is_ready)
        trained = list(one.jobs.started)
        look_up(served, f"{here.namespace}/hotel")

        await annotate(kube, here.namespace, f"{REFRESH_ANNOTATION}=now")
        after = await here.reached(DOMAINS, "hotel", refreshed("TableRefreshed", 2))
        assert is_ready(after)
        assert len(one.jobs.started) == len(trained) + 1, "one run, and no TaskAdapter is trained again"
        newest, first = after["status"]["refresh"]["tables"]
        assert (newest["version"], newest["cause"], first["version"]) == (2, "Request", 1)
        assert (newest["windowsIn"], newest["windowsOut"], newest["hitRateBefore"]) == (3, 1, 0.75)
        assert after["status"]["refresh"]["nextTime"].endswith("-12-31T00:00:00Z")
        (note,) = await notes(kube, here.namespace, "TableRefreshed")
        assert "3 windows came in, 1 left" in note

        header, row = kube.kubectl("-n", here.namespace, "get", "dom").splitlines()
        column = header.index("VERSION")
        assert row[column:].split()[0] == "2"
        assert "HIT RATE" in header

        await annotate(kube, here.namespace, f"{TABLE_VERSION_ANNOTATION}=1")
        pinned = await here.reached(DOMAINS, "hotel", refreshed("TablePinned", 3))
        assert pinned["status"]["refresh"]["tables"][0]["restored"] == 1
        assert pinned["status"]["entries"] == first["entries"]
        (note,) = await notes(kube, here.namespace, "TableRestored")
        assert note == "Version 3 has the table of version 1 again."

        await annotate(kube, here.namespace, f"{TABLE_VERSION_ANNOTATION}-")
        await here.reached(DOMAINS, "hotel", lambda found: not refreshed("TablePinned", 3)(found))
        assert len(one.jobs.started) == len(trained) + 1, "nothing is refreshed again by that"
        adapter = await here.get(TASK_ADAPTERS, "topic")
        assert adapter is not None
        assert is_ready(adapter)


async def test_a_new_leader_creates_an_event_that_the_last_one_did_not(
    here: Cluster, kube: KubeServer, served: Any, domain_body: dict[str, Any]
) -> None:
    domain_body["spec"] |= REFRESHES
    async with replica(served, here.namespace):
        await here.apply(domain_body)
        await here.reached(DOMAINS, "hotel", refreshed("RefreshWaits", 1))
        look_up(served, f"{here.namespace}/hotel")
        await annotate(kube, here.namespace, f"{REFRESH_ANNOTATION}=now")
        await here.reached(DOMAINS, "hotel", refreshed("TableRefreshed", 2))
    (note,) = await notes(kube, here.namespace, "TableRefreshed")
    async with replica(served, here.namespace):
        await annotate(kube, here.namespace, f"{TABLE_VERSION_ANNOTATION}=1")
        await here.reached(DOMAINS, "hotel", refreshed("TablePinned", 3))
        await notes(kube, here.namespace, "TableRestored")
    assert await notes(kube, here.namespace, "TableRefreshed") == [note], "it was there already"
    await asyncio.to_thread(
        kube.kubectl, "-n", here.namespace, "delete", "events.events.k8s.io", "--all", "--wait"
    )
    async with replica(served, here.namespace):
        assert len(await notes(kube, here.namespace, "TableRestored")) == 1


async def test_a_schedule_without_a_time_and_an_unknown_version_are_conditions(
    here: Cluster, kube: KubeServer, served: Any, domain_body: dict[str, Any]
) -> None:
    domain_body["spec"] |= {"plot": {"refresh": {"schedule": "0 0 31 2 *"}}}
    async with replica(served, here.namespace):
        await here.apply(domain_body)
        found = await here.reached(DOMAINS, "hotel", refreshed("ScheduleInvalid", 1))
        assert is_ready(found)
        assert "nextTime" not in found["status"]["refresh"]
        await annotate(kube, here.namespace, f"{TABLE_VERSION_ANNOTATION}=9")
        await here.reached(DOMAINS, "hotel", refreshed("TableNotKept", 1))
        (note,) = await notes(kube, here.namespace, "TableNotKept")
        assert "names version '9'; kept are 1." in note

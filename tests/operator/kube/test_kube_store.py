"""Writes to a real API server: preconditions, conflicts, and what must not be written."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from kube_server import KubeServer
from operator_harness import DOMAINS, Cluster, cluster

from hmi_api.names import FINALIZER
from hmi_api.resources.conditions import Condition, ConditionStatus
from hmi_api.resources.domain import DomainStatus
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.client import connect
from hmi_operator.kubernetes.handlers import list_all
from hmi_operator.kubernetes.store import KubeResourceStore
from hmi_operator.ports import ResourceRef

pytestmark = pytest.mark.anyio


@dataclass
class Store:
    """A store over a listed namespace, and its requests to the API server."""

    here: Cluster
    store: KubeResourceStore
    cache: ResourceCache
    ref: ResourceRef
    uid: str
    requests: Counter[str]
    enqueued: list[ResourceRef] = field(default_factory=list)

    async def status(self) -> dict[str, Any]:
        found = await self.here.get(DOMAINS, "hotel")
        assert found is not None
        status: dict[str, Any] = found.get("status", {})
        return status


@pytest.fixture
async def listed(kubeconfig: KubeServer, namespace: str, domain_body: dict[str, Any]) -> AsyncIterator[Store]:
    """A store that has listed one Domain."""
    requests: Counter[str] = Counter()

    def count(method: str, _: str, code: int) -> None:
        requests[f"{method} {code}"] += 1

    async with cluster(kubeconfig, namespace) as here, connect(count) as client:
        made = await here.apply(domain_body)
        cache = ResourceCache()
        await list_all(client, cache, [namespace])
        requests.clear()
        store = KubeResourceStore(client, cache)
        ref = ResourceRef("Domain", namespace, "hotel")
        found = Store(here, store, cache, ref, made["metadata"]["uid"], requests)
        cache.on_change = found.enqueued.append
        yield found


def ready(message: str = "") -> Condition:
    return Condition(
        type="Ready",
        status=ConditionStatus.TRUE,
        reason="Serving",
        message=message,
        last_transition_time="2026-01-01T00:00:00Z",
    )


async def test_an_unchanged_status_is_not_written(listed: Store) -> None:
    status = DomainStatus(phase="Ready", conditions=[ready()], metrics={"loss": 1.0})
    await listed.store.write_status(listed.ref, listed.uid, status)
    await listed.store.write_status(listed.ref, listed.uid, status)
    assert listed.requests == {"PATCH 200": 1}


async def test_removed_fields_are_removed_from_the_stored_status(listed: Store) -> None:
    full = DomainStatus(phase="Training", run_ref="run-1", progress="training 1/2", metrics={"a": 1, "b": 2})
    await listed.store.write_status(listed.ref, listed.uid, full)
    await listed.store.write_status(listed.ref, listed.uid, DomainStatus(phase="Ready", metrics={"b": 3}))
    status = await listed.status()
    assert status.keys().isdisjoint({"runRef", "progress"})
    assert status["metrics"] == {"b": 3}


async def test_a_write_that_conflicts_is_repeated_on_the_new_version(listed: Store) -> None:
    foreign = {"type": "acme.com/Seen", "status": "True", "reason": "R"} | {
        "lastTransitionTime": "2026-01-01T00:00:00Z"
    }
    await listed.here.apply(
        {"kind": "Domain", "metadata": {"name": "hotel", "labels": {"a": "b"}, "finalizers": ["acme.com/x"]}}
    )
    await listed.here.api.merge_patch(
        DOMAINS, listed.ref.namespace, "hotel", {"status": {"conditions": [foreign]}}, "status"
    )
    await listed.store.write_status(listed.ref, listed.uid, DomainStatus(phase="Ready", conditions=[ready()]))
    assert listed.requests["PATCH 409"] == 1
    status = await listed.status()
    assert [one["type"] for one in status["conditions"]] == ["Ready", "acme.com/Seen"]
    await listed.store.add_finalizer(listed.ref, listed.uid, FINALIZER)
    found = await listed.here.get(DOMAINS, "hotel")
    assert found is not None
    assert found["metadata"]["finalizers"] == ["acme.com/x", FINALIZER]
    assert found["metadata"]["labels"] == {"a": "b"}


async def test_a_status_for_another_uid_is_not_written(listed: Store, domain_body: dict[str, Any]) -> None:
    await listed.here.delete(DOMAINS, "hotel")
    await listed.here.apply(domain_body)
    await listed.store.write_status(listed.ref, listed.uid, DomainStatus(phase="Ready"))
    assert await listed.status() == {"observedGeneration": -1, "phase": "Pending"}, "as it was created"


async def test_a_write_to_a_deleted_object_removes_it_from_the_cache(listed: Store) -> None:
    await listed.here.delete(DOMAINS, "hotel")
    await listed.store.write_status(listed.ref, listed.uid, DomainStatus(phase="Ready"))
    assert listed.store.get(listed.ref) is None
    await listed.store.remove_finalizer(listed.ref, listed.uid, FINALIZER)


async def test_removing_the_last_finalizer_of_a_deleted_resource_removes_it_from_the_cache(
    listed: Store,
) -> None:
    await listed.store.add_finalizer(listed.ref, listed.uid, FINALIZER)
    await listed.here.delete(DOMAINS, "hotel")
    await listed.store.remove_finalizer(listed.ref, listed.uid, FINALIZER)
    assert await listed.here.get(DOMAINS, "hotel") is None
    assert listed.store.get(listed.ref) is None


async def test_only_writes_of_others_enqueue(listed: Store) -> None:
    await listed.store.write_status(listed.ref, listed.uid, DomainStatus(phase="Ready"))
    written = await listed.here.get(DOMAINS, "hotel")
    assert written is not None
    listed.cache.observe("Domain", written)
    assert listed.enqueued == []
    wrong = {"status": {"phase": "Failed"}}
    edited = await listed.here.api.merge_patch(DOMAINS, listed.ref.namespace, "hotel", wrong, "status")
    assert edited is not None
    listed.cache.observe("Domain", edited)
    assert listed.enqueued == [listed.ref]
    listed.cache.observe("Domain", written)  # late, and older
    found = listed.store.get(listed.ref)
    assert found is not None
    assert found.status.phase == "Failed"

"""The cache of a cluster's resources, fed with watch events; no API server is needed."""

from typing import Any

import pytest

from hmi_api.names import FINALIZER, DomainKey
from hmi_operator.kubernetes.cache import ResourceCache
from hmi_operator.kubernetes.objects import InvalidObject, parse
from hmi_operator.ports import ResourceRef

DOMAIN = ResourceRef("Domain", "shop", "hotel")
ADAPTER = ResourceRef("TaskAdapter", "shop", "topic")


@pytest.fixture
def enqueued() -> list[ResourceRef]:
    return []


@pytest.fixture
def cache(enqueued: list[ResourceRef]) -> ResourceCache:
    made = ResourceCache()
    made.on_change = enqueued.append
    return made


def watched(body: dict[str, Any], version: int, uid: str = "u1", **metadata: Any) -> dict[str, Any]:
    """Return an object as a watch delivers it."""
    own = {"resourceVersion": str(version), "uid": uid, "managedFields": [{"manager": "kubectl"}]}
    return body | {"metadata": body["metadata"] | own | metadata}


def test_a_domain_enqueues_its_dependents_when_its_spec_changes(
    cache: ResourceCache,
    enqueued: list[ResourceRef],
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
) -> None:
    cache.observe("TaskAdapter", watched(adapter_body, 1))
    cache.observe("Domain", watched(domain_body, 2))
    assert enqueued == [ADAPTER, DOMAIN, ADAPTER]
    enqueued.clear()
    cache.observe("Domain", watched(domain_body, 3) | {"status": {"phase": "Odd"}})
    assert enqueued == [DOMAIN]
    cache.observe_deleted("Domain", watched(domain_body, 4))
    assert enqueued == [DOMAIN, DOMAIN, ADAPTER]


def test_adding_our_finalizer_enqueues_nothing_and_its_removal_does(
    cache: ResourceCache, enqueued: list[ResourceRef], adapter_body: dict[str, Any]
) -> None:
    cache.observe("TaskAdapter", watched(adapter_body, 1))
    enqueued.clear()
    cache.observe("TaskAdapter", watched(adapter_body, 2, finalizers=[FINALIZER]))
    cache.observe("TaskAdapter", watched(adapter_body, 3, finalizers=[FINALIZER, "example.com/another"]))
    assert enqueued == []
    cache.observe("TaskAdapter", watched(adapter_body, 4, finalizers=["example.com/another"]))
    assert enqueued == [ADAPTER]


def test_a_deleted_resource_enqueues_its_domain(
    cache: ResourceCache, enqueued: list[ResourceRef], adapter_body: dict[str, Any]
) -> None:
    cache.observe("TaskAdapter", watched(adapter_body, 1))
    enqueued.clear()
    cache.observe_deleted("TaskAdapter", watched(adapter_body, 2))
    assert enqueued == [ADAPTER, DOMAIN]
    assert cache.dependents(DomainKey("shop/hotel")) == []


def test_the_deletion_of_an_earlier_object_of_the_name_is_ignored(
    cache: ResourceCache, domain_body: dict[str, Any]
) -> None:
    cache.observe("Domain", watched(domain_body, 5, uid="new"))
    cache.observe_deleted("Domain", watched(domain_body, 4, uid="old"))
    assert cache.get(DOMAIN) is not None


def test_only_metadata_that_is_read_is_cached(cache: ResourceCache, domain_body: dict[str, Any]) -> None:
    notes = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "hmi.dev/retrain": "1"}
    cache.observe("Domain", watched(domain_body, 1, annotations=notes))
    found = cache.get(DOMAIN)
    assert found is not None
    assert found.metadata.annotations == {"hmi.dev/retrain": "1"}
    assert not found.metadata.model_extra


def test_a_packed_object_is_unpacked_unchanged(
    cache: ResourceCache, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    ready = {"type": "Ready", "status": "True", "reason": "Serving"} | {
        "lastTransitionTime": "2026-01-01T00:00:00Z"
    }
    status = {"phase": "Ready", "conditions": [ready], "metrics": {"loss": 1}, "version": 2}
    for kind, body in ((DOMAIN.kind, domain_body), (ADAPTER.kind, adapter_body)):
        manifest = watched(body, 1, labels={"a": "b"}, finalizers=["hmi.dev/cleanup"]) | {"status": status}
        cache.observe(kind, manifest)
        expected = parse(kind, manifest)
        assert not isinstance(expected, InvalidObject)
        assert cache.get(ResourceRef.of(expected)) == expected


def test_objects_missing_from_a_complete_list_are_dropped(
    cache: ResourceCache,
    enqueued: list[ResourceRef],
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
) -> None:
    cache.observe("Domain", watched(domain_body, 1))
    cache.observe("TaskAdapter", watched(adapter_body, 1))
    with cache.listing("Domain"):
        later = watched(domain_body, 3, uid="u3")
        later["metadata"]["name"] = "inn"
        cache.observe("Domain", later)  # it came while the list was read, and is not in it
    assert cache.get(DOMAIN) is None
    assert cache.get(ResourceRef("Domain", "shop", "inn")) is not None
    assert cache.get(ADAPTER) is not None


def test_an_object_deleted_during_a_list_does_not_return(
    cache: ResourceCache, domain_body: dict[str, Any]
) -> None:
    cache.observe("Domain", watched(domain_body, 1))
    with cache.listing("Domain") as take:
        cache.observe_deleted("Domain", watched(domain_body, 2))
        take(watched(domain_body, 1))
    assert cache.get(DOMAIN) is None


def test_a_status_that_cannot_be_read_counts_as_none(
    cache: ResourceCache, domain_body: dict[str, Any]
) -> None:
    cache.observe("Domain", watched(domain_body, 1) | {"status": {"phase": 7}})
    found = cache.get(DOMAIN)
    assert found is not None
    assert found.status.phase == "Pending"


def test_an_invalid_spec_is_cached_with_its_problem(
    cache: ResourceCache, enqueued: list[ResourceRef], domain_body: dict[str, Any]
) -> None:
    cache.observe("Domain", watched(domain_body, 1))
    newer = watched(domain_body, 2)
    newer["spec"] = newer["spec"] | {"colour": "red"}
    cache.observe("Domain", newer)
    assert cache.get(DOMAIN) is None
    invalid = cache.invalid(DOMAIN)
    assert invalid is not None
    assert "colour is not a field" in invalid.problem
    cache.observe("Domain", watched(domain_body, 3))
    assert cache.invalid(DOMAIN) is None
    assert DOMAIN in enqueued


def test_a_new_tenant_label_enqueues_all_resources_of_the_namespace(
    cache: ResourceCache,
    enqueued: list[ResourceRef],
    domain_body: dict[str, Any],
    adapter_body: dict[str, Any],
) -> None:
    cache.observe("Domain", watched(domain_body, 1))
    cache.observe("TaskAdapter", watched(adapter_body, 1))
    enqueued.clear()
    cache.put_namespace("shop", {"team": "a"})
    assert enqueued == []
    cache.put_namespace("shop", {"hmi.dev/tenant": "acme"})
    assert sorted(enqueued, key=str) == [DOMAIN, ADAPTER]
    assert cache.tenant("shop") == "acme"

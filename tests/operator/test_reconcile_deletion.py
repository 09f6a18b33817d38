"""Deletion of Domains and TaskAdapters, and records that have no object or that of another cluster."""

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from reconciler_fakes import DOMAIN, TONE, TOPIC, Here

from hmi_api.errors import HmiError, NotReady
from hmi_api.resources.conditions import find_condition
from hmi_api.resources.manifests import parse_manifest
from hmi_operator.embedded import FileResourceStore
from hmi_operator.ports import Ports, ResourceRef
from hmi_operator.reconciler import Reconciler

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("closed", [set(), {"zoo"}])
async def test_an_adapter_without_access_does_not_block_the_deletion_of_a_domain(
    here: Here, domain_body: dict[str, Any], adapter_body: dict[str, Any], closed: set[str]
) -> None:
    here.jobs.closed = closed
    secret, other_tenants = (
        ResourceRef("Domain", "shop", "secret"),
        ResourceRef("TaskAdapter", "zoo", "topic"),
    )
    adapter_body["metadata"]["namespace"] = other_tenants.namespace
    adapter_body["spec"]["domainRef"] = {"name": secret.name, "namespace": secret.namespace}
    domain_body["metadata"]["name"] = secret.name
    await here.store.apply(parse_manifest(adapter_body))
    await here.reconcile(other_tenants)
    assert other_tenants.key in here.catalog.adapters, "the Domain was not there yet"
    await here.store.apply(parse_manifest(domain_body))
    await here.reconcile(secret)
    await here.reconcile(other_tenants)
    accepted = find_condition((await here.status(other_tenants)).conditions, "Accepted")
    assert accepted is not None
    assert accepted.reason == "NotShared"
    await here.store.delete(secret)
    outcome = await here.reconcile(secret)
    assert here.store.get(secret) is None
    assert (secret.key in here.catalog.domains, other_tenants.key in here.catalog.adapters) == (False, False)
    assert other_tenants in outcome.enqueue
    await here.reconcile(other_tenants)
    assert (await here.status(other_tenants)).phase == "Waiting"


async def both_published(here: Here) -> None:
    """Have both TaskAdapters published, as after their runs."""
    for ref in (TOPIC, TONE):
        await here.reconcile(ref)
        here.publish(ref)
        await here.reconcile(ref)


@pytest.fixture
async def rebuilt(
    here: Here, tmp_path: Path, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> Here:
    """The same manifests in another store, on the catalog and with the runs of the first."""
    await both_published(here)
    store = FileResourceStore(tmp_path / "second")
    for body in (adapter_body, domain_body):
        await store.apply(parse_manifest(body))
    return replace(here, store=store, engine=Reconciler(Ports(store, here.plane.client(), here.jobs)))


async def test_the_same_manifests_in_another_cluster_adopt_the_catalogs_records(rebuilt: Here) -> None:
    runs = list(rebuilt.catalog.created_runs)
    for ref in (TOPIC, DOMAIN, TOPIC):
        await rebuilt.reconcile(ref)
    assert rebuilt.catalog.created_runs == runs, "nothing is trained again"
    for ref, rows in ((DOMAIN, rebuilt.catalog.domains), (TOPIC, rebuilt.catalog.adapters)):
        found = rebuilt.store.get(ref)
        assert found is not None
        assert (rows[ref.key].record.uid, found.status.version) == (found.metadata.uid, 1)


async def test_an_object_whose_deletion_was_seen_is_not_adopted(
    rebuilt: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {rebuilt.catalog.adapters[TOPIC.key].record.uid}
    monkeypatch.setattr(rebuilt.store, "was_deleted", gone.__contains__)
    await rebuilt.reconcile(DOMAIN)
    await rebuilt.reconcile(TOPIC)
    row = rebuilt.catalog.adapters[TOPIC.key]
    assert row.current is None
    assert row.record.uid not in gone
    assert "POST /runs" in rebuilt.calls


async def test_only_the_leader_deletes_the_records_of_a_deleted_object(
    rebuilt: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {rebuilt.catalog.adapters[TOPIC.key].record.uid, rebuilt.catalog.domains[DOMAIN.key].record.uid}
    monkeypatch.setattr(rebuilt.store, "was_deleted", gone.__contains__)

    def refuse() -> None:
        raise NotReady("NotLeader", "Another replica is the leader.")

    engine = Reconciler(Ports(rebuilt.store, rebuilt.plane.client(), rebuilt.jobs, refuse))
    for ref in (TOPIC, DOMAIN):
        with pytest.raises(NotReady, match="NotLeader"):
            await engine.reconcile(ref)
    assert not [call for call in rebuilt.calls if call.startswith("DELETE")]


async def test_a_new_object_with_another_base_model_is_another_domain(
    rebuilt: Here, domain_body: dict[str, Any]
) -> None:
    other = ResourceRef("Domain", "shop", "inn")
    row = copy.deepcopy(rebuilt.catalog.domains[DOMAIN.key])
    row.record = row.record.model_copy(update={"uid": "uid-of-the-first-inn"})
    rebuilt.catalog.domains[other.key] = row
    domain_body["metadata"]["name"] = other.name
    domain_body["spec"]["baseModel"] = {"uri": "wheel://another"}
    await rebuilt.store.apply(parse_manifest(domain_body))
    await rebuilt.reconcile(other)
    accepted = find_condition((await rebuilt.status(other)).conditions, "Accepted")
    assert accepted is not None
    assert accepted.status == "True"
    assert "POST /runs" in rebuilt.calls


async def test_records_without_objects_do_not_block_the_deletion_of_a_domain(rebuilt: Here) -> None:
    await rebuilt.reconcile(DOMAIN)
    await rebuilt.store.delete(TOPIC)  # before it had a finalizer
    await rebuilt.store.delete(DOMAIN)
    await rebuilt.reconcile(DOMAIN)
    assert rebuilt.store.get(DOMAIN) is None
    assert (rebuilt.catalog.domains, rebuilt.catalog.adapters) == ({}, {})


@pytest.mark.parametrize("error", [NotReady("ApiServerUnavailable", "Away."), None])
async def test_records_whose_objects_may_exist_block_the_deletion_of_a_domain(
    rebuilt: Here, monkeypatch: pytest.MonkeyPatch, error: HmiError | None
) -> None:
    async def is_absent(ref: ResourceRef) -> bool:
        if error is not None:
            raise error
        return False

    monkeypatch.setattr(rebuilt.store, "is_absent", is_absent)
    await rebuilt.reconcile(DOMAIN)
    await rebuilt.store.delete(TOPIC)
    await rebuilt.store.delete(DOMAIN)
    with pytest.raises(HmiError):
        await rebuilt.reconcile(DOMAIN)
    assert set(rebuilt.catalog.adapters) == {TOPIC.key, TONE.key}
    ready = find_condition((await rebuilt.status(DOMAIN)).conditions, "Ready")
    assert ready is not None
    assert ready.reason == (error.reason if error else "DomainInUse")
    assert ready.message.startswith("It cannot be deleted yet: ")
    assert ready.message.endswith(" The deletion is retried.")


async def test_an_adapter_of_another_namespace_is_withdrawn_after_the_grace_time_and_its_domain_deleted(
    here: Here, domain_body: dict[str, Any], adapter_body: dict[str, Any]
) -> None:
    guest = ResourceRef("TaskAdapter", "zoo", "topic")
    adapter_body["metadata"]["namespace"] = guest.namespace
    adapter_body["spec"]["domainRef"] = {"name": DOMAIN.name, "namespace": DOMAIN.namespace}
    domain_body["spec"]["sharing"] = {"namespaces": [guest.namespace]}
    for ref in (TOPIC, TONE):
        await here.store.delete(ref)
    for body in (domain_body, adapter_body):
        await here.store.apply(parse_manifest(body))
    await here.reconcile(guest)
    here.publish(guest)
    await here.reconcile(guest)

    await here.store.delete(DOMAIN)
    assert guest in (await here.reconcile(DOMAIN)).enqueue
    assert (await here.reconcile(guest)).requeue_after == 0.0
    assert (await here.reconcile(guest)).requeue_after > 0.0
    waiting = find_condition((await here.reconcile_status(DOMAIN)).conditions, "Ready")
    assert waiting is not None
    assert "TaskAdapter zoo/topic (served until " in waiting.message

    here.catalog.adapters[guest.key].revoked_at = datetime.now(UTC) - timedelta(hours=1)
    await here.reconcile(guest)
    assert here.catalog.adapters[guest.key].withdrawn
    await here.reconcile(DOMAIN)
    assert here.store.get(DOMAIN) is None
    assert here.catalog.adapters[guest.key].withdrawn, "the row stays, to answer requests with the reason"


async def test_domains_that_name_one_another_as_parent_can_all_be_deleted(
    here: Here, domain_body: dict[str, Any]
) -> None:
    refs = [ResourceRef("Domain", "shop", name) for name in ("left", "right")]
    for ref, other in zip(refs, reversed(refs), strict=True):
        body = domain_body | {"metadata": {"name": ref.name, "namespace": ref.namespace}}
        body["spec"] = domain_body["spec"] | {"parentRef": {"name": other.name}}
        await here.store.apply(parse_manifest(body))
        here.catalog.domains[ref.key] = copy.deepcopy(here.catalog.domains[DOMAIN.key])
    for ref in refs:
        await here.reconcile(ref)
        await here.store.delete(ref)
    for ref in refs:
        await here.reconcile(ref)
        assert here.store.get(ref) is None

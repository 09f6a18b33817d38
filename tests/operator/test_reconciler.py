"""The effects of one reconciliation of a resource, and its number of requests."""

import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_catalog import FakeCatalog
from fake_control_plane import FakeControlPlane, Request
from reconciler_fakes import Jobs

from hmi_api.errors import HmiError, NotReady
from hmi_api.internal.runs import RunCreate, RunPod, RunProgress, RunState
from hmi_api.names import FINALIZER
from hmi_api.resources.conditions import find_condition
from hmi_api.resources.manifests import parse_manifest
from hmi_operator.embedded import FileResourceStore
from hmi_operator.planning import PodProblem
from hmi_operator.ports import Ports, ResourceRef
from hmi_operator.reconciler import Reconciler, ReconcileResult

pytestmark = pytest.mark.anyio

DOMAIN = ResourceRef("Domain", "shop", "hotel")
TOPIC, TONE = (ResourceRef("TaskAdapter", "shop", name) for name in ("topic", "tone"))
ROW = "/adapters/shop/topic"


@dataclass
class Here:
    """A reconciler with its ports."""

    store: FileResourceStore
    plane: FakeControlPlane
    jobs: Jobs
    engine: Reconciler
    written: list[str]

    @property
    def catalog(self) -> FakeCatalog:
        return self.plane.catalog

    @property
    def calls(self) -> list[str]:
        """The requests to the control plane since the last reconciliation began."""
        return self.plane.calls()

    def publish(self, ref: ResourceRef) -> None:
        """Complete the run of a resource."""
        (run,) = [
            run
            for run in self.catalog.runs.values()
            if (run.spec.namespace, run.spec.name) == (ref.namespace, ref.name) and run.result is None
        ]
        self.catalog.finish_run(run.id)

    async def reconcile(self, ref: ResourceRef) -> ReconcileResult:
        """Reconcile a resource; only the requests and writes of this time are kept."""
        self.plane.requests.clear()
        self.written.clear()
        return await self.engine.reconcile(ref)

    async def reconcile_status(self, ref: ResourceRef) -> Any:
        """Reconcile a resource; return its status."""
        await self.reconcile(ref)
        return await self.status(ref)

    async def status(self, ref: ResourceRef) -> Any:
        found = self.store.get(ref)
        assert found is not None
        return found.status


@pytest.fixture
async def here(tmp_path: Path, domain_body: dict[str, Any], adapter_body: dict[str, Any]) -> Here:
    """A Domain that is published, and two TaskAdapters on it that were not reconciled yet."""
    store, plane, jobs = FileResourceStore(tmp_path), FakeControlPlane(), Jobs()
    plane.runtimes.start("r1")
    written: list[str] = []
    engine = Reconciler(
        Ports(store, plane.client(), jobs),
        on_status_change=lambda resource, old, new: written.append(new.phase),
    )
    bodies = [domain_body, adapter_body]
    bodies.append(adapter_body | {"metadata": adapter_body["metadata"] | {"name": TONE.name}})
    for body in bodies:
        await store.apply(parse_manifest(body))
    here = Here(store, plane, jobs, engine, written)
    await engine.reconcile(DOMAIN)
    here.publish(DOMAIN)
    await engine.reconcile(DOMAIN)
    return here


async def test_one_reconciliation_adds_the_finalizer_declares_and_starts_a_run(here: Here) -> None:
    outcome = await here.reconcile(TOPIC)
    assert here.calls == [f"GET {ROW}", f"PUT {ROW}", "POST /runs"]
    found = here.store.get(TOPIC)
    assert found is not None
    assert found.metadata.finalizers == [FINALIZER]
    assert here.written == ["Training"]
    assert found.status.run_ref in here.jobs.started
    trained = find_condition(found.status.conditions, "Trained")
    assert trained is not None
    assert trained.reason == "Running"
    assert outcome.requeue_after


async def test_a_second_reconciliation_does_nothing(here: Here) -> None:
    await here.reconcile(TOPIC)
    run = (await here.status(TOPIC)).run_ref
    await here.reconcile(TOPIC)
    assert here.calls == [f"GET /runs/{run}", f"GET {ROW}"]
    assert here.written == []
    assert len(here.catalog.runs) == 2, "the Domain's and its own"


async def test_a_problem_of_a_new_job_is_in_the_first_status(here: Here) -> None:
    here.jobs.refused = PodProblem("QuotaExceeded", "The quota is used up.")
    outcome = await here.reconcile(TOPIC)
    assert outcome.requeue_after == 0.0
    status = await here.status(TOPIC)
    assert status.run_ref in here.catalog.runs


async def test_a_run_that_has_already_ended_is_planned_again_with_its_version(here: Here) -> None:
    def publish(request: Request) -> None:
        run = here.catalog.create_run(RunCreate.model_validate_json(request.body))
        here.catalog.finish_run(run.id)

    here.plane.before("POST /runs", publish)
    outcome = await here.reconcile(TOPIC)
    assert outcome.requeue_after == 0.0
    assert (await here.status(TOPIC)).run_ref in here.catalog.runs
    assert len(here.catalog.runs) == 2, (
        "the view that the first reconciliation read is too old to start another"
    )


@pytest.mark.parametrize("active", [RunState.RUNNING, RunState.SUCCEEDED])
async def test_a_status_that_names_another_resources_run_is_not_trusted(here: Here, active: RunState) -> None:
    await here.reconcile(TONE)
    theirs = (await here.status(TONE)).run_ref
    here.catalog.report_progress(theirs, RunProgress(stage="training", step=1, total=2))
    if active is RunState.SUCCEEDED:
        here.publish(TONE)
    for forged in (theirs, "../tenants/acme", "nobody", "0" * 33, "x" * 1000):
        found = here.store.get(TOPIC)
        assert found is not None
        status = found.status.model_copy(update={"run_ref": forged})
        await here.store.write_status(TOPIC, found.metadata.uid, status)
        await here.reconcile(TOPIC)
        requested = [call for call in here.calls if call.startswith("GET /runs/")]
        assert requested == ([f"GET /runs/{theirs}"] if forged == theirs else []), "no other is requested"
        own = (await here.status(TOPIC)).run_ref
        assert here.catalog.runs[own].spec.name == TOPIC.name
        assert here.catalog.runs[theirs].state is active

    found = here.store.get(TOPIC)
    assert found is not None
    forging = found.status.model_copy(update={"run_ref": theirs})
    await here.store.write_status(TOPIC, found.metadata.uid, forging)
    await here.store.delete(TOPIC)
    await here.reconcile(TOPIC)
    assert here.catalog.runs[theirs].state is active
    assert theirs in here.jobs.started, "its process keeps running"


async def test_the_pods_of_a_run_are_reported_once_for_each_change(here: Here) -> None:
    here.jobs.pods = (RunPod(uid="p1"),)
    await here.reconcile(TOPIC)
    run = (await here.status(TOPIC)).run_ref
    assert here.catalog.pods == {run: list(here.jobs.pods)}
    await here.reconcile(TOPIC)
    assert f"PUT /runs/{run}/pods" not in here.calls
    here.jobs.pods = (RunPod(uid="p1"), RunPod(uid="p2"))
    await here.reconcile(TOPIC)
    assert here.catalog.pods == {run: list(here.jobs.pods)}


async def test_a_status_that_lost_its_run_finds_it_again(here: Here) -> None:
    await here.reconcile(TOPIC)
    found = here.store.get(TOPIC)
    assert found is not None
    run = found.status.run_ref
    await here.store.write_status(
        TOPIC, found.metadata.uid, found.status.model_copy(update={"run_ref": None})
    )
    await here.reconcile(TOPIC)
    assert (await here.status(TOPIC)).run_ref == run


async def test_a_missing_tenant_is_created(here: Here) -> None:
    here.catalog.tenants.clear()
    await here.reconcile(TOPIC)
    assert here.calls == [f"GET {ROW}", f"PUT {ROW}", "PUT /tenants/shop", f"PUT {ROW}", "POST /runs"]


async def test_dependents_are_planned_with_the_version_that_enqueued_them(here: Here) -> None:
    for ref in (TOPIC, TONE):
        await here.reconcile(ref)
    row = here.catalog.domains[DOMAIN.key]
    assert row.current is not None
    row.current = row.current.model_copy(update={"version": 2})
    outcome = await here.reconcile(DOMAIN)
    assert set(outcome.enqueue) == {TOPIC, TONE}
    for ref in outcome.enqueue:
        await here.reconcile(ref)
        assert f"GET /domains/{DOMAIN.key}" not in here.calls
        ready = find_condition((await here.status(ref)).conditions, "DomainReady")
        assert ready is not None
        assert "version 2" in ready.message


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


async def changed(here: Here, adapter_body: dict[str, Any], epochs: int) -> None:
    body = adapter_body | {"spec": adapter_body["spec"] | {"training": {"epochs": epochs}}}
    await here.store.apply(parse_manifest(body))


async def test_a_first_spec_requests_no_earlier_version(here: Here) -> None:
    await here.reconcile(TOPIC)
    assert f"POST {ROW}/publish-again" not in here.calls


async def test_an_earlier_spec_is_published_again_without_training(
    here: Here, adapter_body: dict[str, Any]
) -> None:
    await here.reconcile(TOPIC)
    here.publish(TOPIC)
    await here.reconcile(TOPIC)
    await changed(here, adapter_body, 7)
    await here.reconcile(TOPIC)
    assert here.calls == [f"GET {ROW}", f"PUT {ROW}", f"POST {ROW}/publish-again", "POST /runs"]
    here.publish(TOPIC)
    await here.reconcile(TOPIC)
    runs = set(here.catalog.runs)
    await here.store.apply(parse_manifest(adapter_body))
    outcome = await here.reconcile(TOPIC)
    assert here.calls[-2:] == [f"PUT {ROW}", f"POST {ROW}/publish-again"]
    assert (set(here.catalog.runs), outcome.requeue_after) == (runs, 0.0)
    current = here.catalog.adapters[TOPIC.key].current
    assert current is not None
    assert current.version == 3
